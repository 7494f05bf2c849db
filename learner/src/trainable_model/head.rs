//! What stands behind the last block: the final norm and the head, for the wanted rows only.

use model::{
    Kept, LogprobInputs, LogprobOptions, ModelConfig, OutputWeights, TokenGradients, TokenLogprobs, logprobs,
    logprobs_backward, logprobs_kept, scores,
};
use tch::Tensor;

use super::blocks::backpropagate;
use crate::error::Result;
use crate::host;
use crate::microbatch::Microbatch;

/// What is wanted of the head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum HeadRequest {
    /// Log-probs of the targets at this temperature, with or without entropies.
    Logprobs(LogprobOptions),
    /// The numbers of a scalar head: values of a critic, scores of a reward model.
    Scalars,
}

/// What the head says at the wanted rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HeadOutputs {
    /// Log-probs or scalars, `[wanted]`.
    pub(crate) values: Vec<f32>,
    /// Entropies in nats, `[wanted]`, where asked for.
    pub(crate) entropies: Option<Vec<f32>>,
}

/// The gradient of a loss in [`HeadOutputs`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HeadGradients {
    /// In the values, `[wanted]`.
    pub(crate) values: Vec<f32>,
    /// In the entropies, `[wanted]`, where the loss has them.
    pub(crate) entropies: Option<Vec<f32>>,
}

impl HeadGradients {
    /// The gradient of a loss that has none: it makes the norm of the minibatch's gradient no number on every
    /// rank, so that none makes the step.
    pub(crate) fn not_a_number(outputs: &HeadOutputs) -> Self {
        let entropies = outputs.entropies.as_ref().map(|entropies| vec![f32::NAN; entropies.len()]);
        Self { values: vec![f32::NAN; outputs.values.len()], entropies }
    }
}

/// The network and the micro-batch that a head belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadContext<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) microbatch: &'a Microbatch,
}

/// Where the head's gradients are added, f32. Absent where the head is frozen.
#[derive(Debug)]
pub(crate) struct HeadSums {
    /// The output group's, `[numel]`.
    pub(crate) output: Tensor,
    /// The embedding's, `[vocab * hidden]`, where it is the head.
    pub(crate) tied: Option<Tensor>,
    /// Whether the norm trains, whose gradient is the output group's last part; otherwise the head alone
    /// does.
    pub(crate) has_norm: bool,
}

/// The head over one micro-batch.
#[derive(Debug)]
pub(crate) struct Head {
    /// Norm and head matrix.
    weights: OutputWeights,
    /// The last block's output at the wanted rows, `[wanted, hidden]`.
    selected: Tensor,
    /// The same behind the norm.
    hidden: Tensor,
    /// What the backward pass need not compute again.
    kept: Kept,
}

impl Head {
    /// `x` is the last block's output, `[total, hidden]`; `output` the buffer of the output group and
    /// `embedding` that of the embedding where it is the head.
    pub(crate) fn new(
        context: HeadContext<'_>,
        x: &Tensor,
        output: &Tensor,
        embedding: Option<&Tensor>,
    ) -> Self {
        let HeadContext { config, microbatch } = context;
        let embedding = match embedding {
            Some(flat) => flat.view([config.vocab_size, config.hidden_size]),
            None => Tensor::new(),
        };
        let weights = OutputWeights::view(config, output, &embedding);
        let selected = x.index_select(0, &microbatch.rows);
        let hidden = model::final_norm(config, &weights, &selected);
        Self { weights, selected, hidden, kept: Kept::default() }
    }

    /// The outputs, with what [`backward`](Self::backward) need not compute again.
    pub(crate) fn outputs_for_backward(
        &mut self,
        microbatch: &Microbatch,
        request: HeadRequest,
    ) -> Result<HeadOutputs> {
        let HeadRequest::Logprobs(options) = request else { return self.outputs(microbatch, request) };
        let (found, kept) = logprobs_kept(&self.hidden, &self.weights.head, &microbatch.targets, options);
        self.kept = kept;
        token_outputs(&found)
    }

    /// The outputs alone.
    pub(crate) fn outputs(&self, microbatch: &Microbatch, request: HeadRequest) -> Result<HeadOutputs> {
        match request {
            HeadRequest::Logprobs(options) => {
                token_outputs(&logprobs(&self.hidden, &self.weights.head, &microbatch.targets, options))
            }
            HeadRequest::Scalars => {
                let values = to_floats(&scores(&self.weights, &self.hidden))?;
                Ok(HeadOutputs { values, entropies: None })
            }
        }
    }

    /// The gradient in the last block's output, `[total, hidden]`, from the one in the head's outputs. Those
    /// in the head's own weights are added to `sums`.
    pub(crate) fn backward(
        mut self,
        context: HeadContext<'_>,
        request: HeadRequest,
        grad_outputs: &HeadGradients,
        sums: Option<&HeadSums>,
    ) -> Result<Tensor> {
        let grad_matrix = sums.map(|sums| self.matrix_sum(sums));
        let grad_hidden = match request {
            HeadRequest::Logprobs(options) => {
                self.logprobs_backward(context.microbatch, options, grad_outputs, grad_matrix)
            }
            HeadRequest::Scalars => self.scalars_backward(grad_outputs, grad_matrix)?,
        };
        self.norm_backward(context, &grad_hidden, sums)
    }

    /// From the gradients in log-probs and entropies to that in the normed hidden states, `[wanted, hidden]`.
    fn logprobs_backward(
        &mut self,
        microbatch: &Microbatch,
        options: LogprobOptions,
        grad_outputs: &HeadGradients,
        grad_matrix: Option<Tensor>,
    ) -> Tensor {
        let grad_logprobs = self.on_device(&grad_outputs.values);
        let grad_entropy = grad_outputs.entropies.as_ref().map(|gradient| self.on_device(gradient));
        let gradients = TokenGradients { logprobs: &grad_logprobs, entropy: grad_entropy.as_ref() };
        let mut grad_matrix = grad_matrix;
        let (hidden, head) = (&self.hidden, &self.weights.head);
        let inputs = LogprobInputs { hidden, head, targets: &microbatch.targets };
        let kept = std::mem::take(&mut self.kept);
        logprobs_backward(inputs, kept, options.temperature, &gradients, grad_matrix.as_mut())
    }

    /// From the gradient in the scalars to that in the normed hidden states, `[wanted, hidden]`.
    fn scalars_backward(&self, grad_outputs: &HeadGradients, grad_matrix: Option<Tensor>) -> Result<Tensor> {
        let head = self.weights.head.detach().set_requires_grad(true);
        let hidden = self.hidden.detach().set_requires_grad(true);
        let weights = OutputWeights { norm: self.weights.norm.shallow_clone(), head };
        let scalars = tch::with_grad(|| scores(&weights, &hidden));
        let grad_scalars = self.on_device(&grad_outputs.values);
        let [grad_hidden, grad_head] = backpropagate(&scalars, &grad_scalars, [&hidden, &weights.head])?;
        if let Some(mut grad_matrix) = grad_matrix {
            let _ = grad_matrix.g_add_(&grad_head);
        }
        Ok(grad_hidden)
    }

    /// From the gradient in the normed hidden states to that in the last block's output.
    fn norm_backward(
        &self,
        context: HeadContext<'_>,
        grad_hidden: &Tensor,
        sums: Option<&HeadSums>,
    ) -> Result<Tensor> {
        let HeadContext { config, microbatch } = context;
        let selected = self.selected.detach().set_requires_grad(true);
        let norm = self.weights.norm.detach().set_requires_grad(true);
        let weights = OutputWeights { norm, head: self.weights.head.shallow_clone() };
        let hidden = tch::with_grad(|| model::final_norm(config, &weights, &selected));
        let [grad_selected, grad_norm] = backpropagate(&hidden, grad_hidden, [&selected, &weights.norm])?;
        if let Some(sums) = sums.filter(|sums| sums.has_norm) {
            let width = config.hidden_size;
            let mut sum = sums.output.narrow(0, sums.output.size()[0] - width, width);
            let _ = sum.g_add_(&grad_norm);
        }
        let total = microbatch.packed.total();
        let options = (grad_selected.kind(), grad_selected.device());
        let mut grad_x = grad_selected.new_zeros([total, config.hidden_size], options);
        let _ = grad_x.index_copy_(0, &microbatch.rows, &grad_selected);
        Ok(grad_x)
    }

    /// Where the gradient in the head matrix is added: a view of its shape.
    fn matrix_sum(&self, sums: &HeadSums) -> Tensor {
        let matrix = &self.weights.head;
        match &sums.tied {
            Some(tied) => tied.view_as(matrix),
            None => sums.output.narrow(0, 0, matrix.numel() as i64).view_as(matrix),
        }
    }

    fn on_device(&self, numbers: &[f32]) -> Tensor {
        Tensor::from_slice(numbers).to_device(self.hidden.device())
    }
}

fn token_outputs(found: &TokenLogprobs) -> Result<HeadOutputs> {
    let entropies = found.entropy.as_ref().map(to_floats).transpose()?;
    Ok(HeadOutputs { values: to_floats(&found.logprobs)?, entropies })
}

fn to_floats(tensor: &Tensor) -> Result<Vec<f32>> {
    host::numbers(tensor)
}
