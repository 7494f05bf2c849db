//! Log-probabilities of given tokens, without ever holding the matrix of all logits.
//!
//! The vocabulary is often a hundred times the hidden size, so that the logits of a batch would outweigh
//! everything else. Rows are taken in chunks; a chunk's logits are a matrix product in the weights' element
//! type, the softmax is f32. Training goes in two steps, so that the same bound holds with gradients:
//! [`logprobs_kept`] gives the numbers the loss is computed from, and [`logprobs_backward`] takes the loss's
//! gradient in them and computes each chunk again, unless they were few, for the gradients of the hidden
//! states and the head. All write over the chunk they hold instead of making new ones: on the CPU the passes
//! over the logits take as long as the products. None records gradients for autograd.

use tch::{Device, Kind, Tensor};

/// How many logits a device takes at a time.
#[derive(Debug, Clone, Copy)]
struct ChunkSize {
    /// Elements of the largest chunk.
    elements: i64,
    /// Chunks that are kept for the backward pass when there are no more.
    most_kept: usize,
}

impl ChunkSize {
    /// On the CPU 64 MiB in f32, of which 256 MiB are kept: passes over a chunk find it in the cache. On
    /// other devices 1 GiB, of which two are kept: each chunk reads the whole head three times, and 64 MiB of
    /// a large vocabulary are a hundred rows, too few for the products to be worth that.
    fn on(device: Device) -> Self {
        match device {
            Device::Cpu => Self { elements: 1 << 24, most_kept: 4 },
            _ => Self { elements: 1 << 28, most_kept: 2 },
        }
    }
}

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

/// Log-probabilities of `targets` `[rows]` i64 given the final hidden states `hidden` `[rows, hidden]`, with
/// the head `[vocab, hidden]`: `log softmax(hidden head^T / temperature)[target]`.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn logprobs(hidden: &Tensor, head: &Tensor, targets: &Tensor, options: LogprobOptions) -> TokenLogprobs {
    pass(hidden, head, targets, options, Some(0)).0
}

/// The log-probability of every token of some rows: all chunks, `[rows, vocab]` f32 each, or none.
#[derive(Debug, Default)]
pub struct Kept(Vec<Tensor>);

impl Kept {
    /// Whether everything is to be computed again.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// [`logprobs`], and what [`logprobs_backward`] would otherwise compute again, if it is no more than a few
/// chunks.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn logprobs_kept(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    options: LogprobOptions,
) -> (TokenLogprobs, Kept) {
    pass(hidden, head, targets, options, None)
}

/// Keeps the chunks if there are no more than `most_kept`, or than the device allows.
fn pass(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    options: LogprobOptions,
    most_kept: Option<usize>,
) -> (TokenLogprobs, Kept) {
    let _guard = tch::no_grad_guard();
    let (mut logprobs, mut entropies, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    let size = ChunkSize::on(head.device());
    let chunks = chunks(hidden.size()[0], head.size()[0], size);
    let keep = chunks.len() <= most_kept.unwrap_or(size.most_kept);
    for (start, count) in chunks {
        let all = all_logprobs(&hidden.narrow(0, start, count), head, options.temperature);
        let targets = targets.narrow(0, start, count).unsqueeze(-1);
        logprobs.push(all.gather(-1, &targets, false).squeeze_dim(-1));
        if options.entropy {
            entropies.push(entropy(&all));
        }
        if keep {
            kept.push(all);
        }
    }
    let place = (Kind::Float, hidden.device());
    let entropy = options.entropy.then(|| joined(entropies, &[0], place));
    (TokenLogprobs { logprobs: joined(logprobs, &[0], place), entropy }, Kept(kept))
}

/// What log-probabilities were computed from.
#[derive(Debug, Clone, Copy)]
pub struct LogprobInputs<'a> {
    /// Final hidden states, `[rows, hidden]`.
    pub hidden: &'a Tensor,
    /// The head, `[vocab, hidden]`.
    pub head: &'a Tensor,
    /// The tokens, `[rows]` i64.
    pub targets: &'a Tensor,
}

/// The gradients of a loss in what [`logprobs`] returned.
#[derive(Debug)]
pub struct TokenGradients<'a> {
    /// In the log-probabilities, `[rows]` f32.
    pub logprobs: &'a Tensor,
    /// In the entropy, `[rows]` f32, if the loss has it.
    pub entropy: Option<&'a Tensor>,
}

/// Propagates gradients in log-probabilities (and entropies) to the hidden states and the head, one chunk at
/// a time; `kept` is what [`logprobs_kept`] made of the same inputs.
///
/// With the probabilities `p` and the entropy `H` of a row at the temperature `T`, and the gradients `g` in
/// the log-probability of target `t` and `e` in the entropy, the gradient in logit `j` is `(g (1[j = t] -
/// p_j) - e p_j (log p_j + H)) / T`.
///
/// Returns the gradient in `hidden`, `[rows, hidden]`, in its element type; the gradient in the head is added
/// to `head_gradient`, `[vocab, hidden]`, unless the head is frozen.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn logprobs_backward(
    inputs: LogprobInputs<'_>,
    kept: Kept,
    temperature: f64,
    gradients: &TokenGradients,
    mut head_gradient: Option<&mut Tensor>,
) -> Tensor {
    let _guard = tch::no_grad_guard();
    let LogprobInputs { hidden, head, targets } = inputs;
    let (rows, width) = hidden.size2().expect("hidden states are [rows, hidden]");
    let mut kept = kept.0.into_iter();
    let mut grad_hidden = Vec::new();
    for (start, count) in chunks(rows, head.size()[0], ChunkSize::on(head.device())) {
        let hidden = hidden.narrow(0, start, count);
        let targets = targets.narrow(0, start, count).unsqueeze(-1);
        let grad_logprobs = (gradients.logprobs.narrow(0, start, count) / temperature).unsqueeze(-1);
        let grad_entropy =
            gradients.entropy.map(|entropy| (entropy.narrow(0, start, count) / temperature).unsqueeze(-1));
        let all = kept.next().unwrap_or_else(|| all_logprobs(&hidden, head, temperature));
        let mut grad_logits = weighted_probabilities(all, &grad_logprobs, grad_entropy.as_ref());
        let _ = grad_logits.scatter_add_(-1, &targets, &grad_logprobs);
        let grad_logits = grad_logits.to_kind(head.kind());
        match &mut head_gradient {
            Some(sum) if sum.kind() == head.kind() => drop(sum.addmm_(&grad_logits.tr(), &hidden)),
            Some(sum) => drop(sum.g_add_(&grad_logits.tr().matmul(&hidden))),
            None => {}
        }
        grad_hidden.push(grad_logits.matmul(head));
    }
    joined(grad_hidden, &[0, width], (hidden.kind(), hidden.device()))
}

/// `-g p - e p (log p + H)`, `[rows, vocab]`, of the log-probabilities `all`; `g` and `e` are `[rows, 1]`.
fn weighted_probabilities(mut all: Tensor, g: &Tensor, e: Option<&Tensor>) -> Tensor {
    let Some(e) = e else { return all.exp_().g_mul_(&g.neg()) };
    let (probabilities, entropy) = (all.exp(), entropy(&all).unsqueeze(-1));
    let _ = all.g_add_(&entropy).g_mul_(e).g_add_(g);
    all.neg_().g_mul_(&probabilities)
}

/// Start and count of each chunk of rows.
fn chunks(rows: i64, vocab: i64, size: ChunkSize) -> impl ExactSizeIterator<Item = (i64, i64)> {
    let most = (size.elements / vocab.max(1)).max(1);
    let count = usize::try_from((rows + most - 1) / most).unwrap_or(0);
    (0..count).map(move |chunk| {
        let start = chunk as i64 * most;
        (start, most.min(rows - start))
    })
}

/// The log-probability of every token at the temperature, `[rows, vocab]` f32.
fn all_logprobs(hidden: &Tensor, head: &Tensor, temperature: f64) -> Tensor {
    let mut logits = hidden.linear(head, None::<&Tensor>).to_kind(Kind::Float);
    if temperature != 1.0 {
        let _ = logits.g_div_scalar_(temperature);
    }
    // logsumexp sums a large vocabulary more exactly than log_softmax does.
    let normalizer = logits.logsumexp([-1], true);
    logits.g_sub_(&normalizer)
}

/// The entropy of each row of log-probabilities, `[rows]`.
fn entropy(all: &Tensor) -> Tensor {
    -all.exp().g_mul_(all).sum_dim_intlist([-1].as_slice(), false, Kind::Float)
}

/// Parts of rows end to end; without any, zeros of this shape.
fn joined(parts: Vec<Tensor>, empty: &[i64], place: (Kind, Device)) -> Tensor {
    match parts.as_slice() {
        [] => Tensor::zeros(empty, place),
        [only] => only.shallow_clone(),
        several => Tensor::cat(several, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 16,384 tokens with the vocabulary of Qwen 2.5: each chunk reads the whole head.
    #[test]
    fn a_gpu_takes_many_rows_at_a_time() {
        let count = |device| chunks(16_384, 151_936, ChunkSize::on(device)).len();
        assert_eq!((count(Device::Cpu), count(Device::Cuda(0))), (149, 10));
        for device in [Device::Cpu, Device::Cuda(0)] {
            let mut end = 0;
            for (start, rows) in chunks(1000, 151_936, ChunkSize::on(device)) {
                assert!(start == end && rows > 0);
                end += rows;
            }
            assert_eq!(end, 1000);
        }
    }
}
