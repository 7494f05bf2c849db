//! Log-probabilities of given tokens, without ever holding the matrix of all logits.
//!
//! The vocabulary is often a hundred times the hidden size, so that the logits of a batch would outweigh everything
//! else. Rows are taken in chunks; a chunk's logits are a matrix product in the weights' element type, the softmax
//! is f32. Training goes in two steps, so that the same bound holds with gradients: [`logprobs`] without gradients
//! gives the numbers the loss is computed from, and [`logprobs_backward`] takes the loss's gradient in them and
//! recomputes each chunk for the gradients of the hidden states and the head. ([`logprobs`] under autograd gives
//! the same gradients, but keeps every chunk for the backward pass.)

use tch::{Kind, Tensor};

/// Elements of the largest chunk of logits: 64 MiB in f32.
const CHUNK_ELEMENTS: i64 = 1 << 24;

/// What [`logprobs`] computes for each row.
#[derive(Debug)]
pub struct TokenLogprobs {
    /// Log-probability of the target at the temperature, `[rows]` f32.
    pub logprobs: Tensor,
    /// Entropy of the distribution at the temperature in nats, `[rows]` f32, if asked for.
    pub entropy: Option<Tensor>,
}

/// What to compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogprobOptions {
    /// The logits are divided by this. Positive.
    pub temperature: f64,
    /// Whether the entropy is wanted.
    pub entropy: bool,
}

impl Default for LogprobOptions {
    fn default() -> Self {
        Self { temperature: 1.0, entropy: false }
    }
}

/// Log-probabilities of `targets` `[rows]` i64 given the final hidden states `hidden` `[rows, hidden]`, with the
/// head `[vocab, hidden]`: `log softmax(hidden head^T / temperature)[target]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn logprobs(hidden: &Tensor, head: &Tensor, targets: &Tensor, options: LogprobOptions) -> TokenLogprobs {
    let (rows, _) = hidden.size2().expect("hidden states are [rows, hidden]");
    let chunks: Vec<TokenLogprobs> = chunks(rows, head)
        .map(|(start, count)| {
            let targets = targets.narrow(0, start, count);
            chunk_logprobs(&hidden.narrow(0, start, count), head, &targets, options)
        })
        .collect();
    let join = |parts: Vec<&Tensor>| match parts.as_slice() {
        [] => Tensor::zeros([0], (Kind::Float, hidden.device())),
        [only] => only.shallow_clone(),
        several => Tensor::cat(several, 0),
    };
    let entropy =
        options.entropy.then(|| join(chunks.iter().filter_map(|chunk| chunk.entropy.as_ref()).collect()));
    TokenLogprobs { logprobs: join(chunks.iter().map(|chunk| &chunk.logprobs).collect()), entropy }
}

/// The gradients of a loss in what [`logprobs`] returned.
#[derive(Debug)]
pub struct TokenGradients<'a> {
    /// In the log-probabilities, `[rows]` f32.
    pub logprobs: &'a Tensor,
    /// In the entropy, `[rows]` f32, if the loss has it.
    pub entropy: Option<&'a Tensor>,
}

/// Propagates gradients in log-probabilities (and entropies) to the hidden states and the head, one chunk at a time.
///
/// Returns the gradient in `hidden`, `[rows, hidden]`, in its element type; the gradient in the head is added to
/// `head_gradient`, `[vocab, hidden]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn logprobs_backward(
    (hidden, head, targets): (&Tensor, &Tensor, &Tensor),
    temperature: f64,
    gradients: &TokenGradients,
    head_gradient: &mut Tensor,
) -> Tensor {
    let (rows, width) = hidden.size2().expect("hidden states are [rows, hidden]");
    let head = head.detach().set_requires_grad(true);
    let mut hidden_gradients = Vec::new();
    for (start, count) in chunks(rows, &head) {
        let of_chunk = |tensor: &Tensor| tensor.narrow(0, start, count);
        let inputs = of_chunk(&hidden.detach()).set_requires_grad(true);
        let weighted = tch::with_grad(|| {
            let options = LogprobOptions { temperature, entropy: gradients.entropy.is_some() };
            let chunk = chunk_logprobs(&inputs, &head, &of_chunk(targets), options);
            let loss = chunk.logprobs.dot(&of_chunk(gradients.logprobs));
            match chunk.entropy.zip(gradients.entropy) {
                Some((entropy, gradient)) => loss + entropy.dot(&of_chunk(gradient)),
                None => loss,
            }
        });
        let [hidden_gradient, of_head] =
            <[Tensor; 2]>::try_from(Tensor::run_backward(&[&weighted], &[&inputs, &head], false, false))
                .expect("one gradient for each of two inputs");
        let _guard = tch::no_grad_guard();
        let _ = head_gradient.g_add_(&of_head);
        hidden_gradients.push(hidden_gradient);
    }
    match hidden_gradients.as_slice() {
        [] => Tensor::zeros([0, width], (hidden.kind(), hidden.device())),
        several => Tensor::cat(several, 0),
    }
}

/// Start and count of each chunk of rows.
fn chunks(rows: i64, head: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let vocab = head.size()[0].max(1);
    let most = (CHUNK_ELEMENTS / vocab).max(1);
    (0..(rows + most - 1) / most).map(move |chunk| (chunk * most, most.min(rows - chunk * most)))
}

fn chunk_logprobs(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    options: LogprobOptions,
) -> TokenLogprobs {
    let logits = hidden.linear(head, None::<&Tensor>).to_kind(Kind::Float); // [rows, vocab]
    let logits = if options.temperature == 1.0 { logits } else { logits / options.temperature };
    let normalizer = logits.logsumexp([-1], false);
    let chosen = logits.gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
    let entropy = options.entropy.then(|| {
        // logsumexp sums a large vocabulary more exactly than softmax does, so the probabilities are taken from it.
        let all = &logits - normalizer.unsqueeze(-1);
        -(all.exp() * &all).sum_dim_intlist([-1].as_slice(), false, Kind::Float)
    });
    TokenLogprobs { logprobs: chosen - normalizer, entropy }
}
