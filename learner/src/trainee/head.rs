//! What stands behind the last block: the final norm and the head, for the wanted rows only.

use model::{
    Kept, LogprobOptions, ModelConfig, OutputWeights, TokenGradients, logprobs, logprobs_backward,
    logprobs_kept, scores,
};
use tch::{Device, Kind, Tensor};

use super::blocks::gradients;
use crate::error::Result;
use crate::microbatch::Microbatch;

/// What is wanted of the head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Request {
    /// Log-probs of the targets at this temperature, with or without entropies.
    Logprobs(LogprobOptions),
    /// The scalar head's numbers.
    Scalars,
}

/// Numbers of the wanted rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Numbers {
    /// Log-probs or scalars, `[wanted]`.
    pub(crate) values: Vec<f32>,
    /// Entropies in nats, `[wanted]`, where asked for.
    pub(crate) entropies: Option<Vec<f32>>,
}

/// The gradient of a loss in [`Numbers`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct NumberGradients {
    /// In the values, `[wanted]`.
    pub(crate) values: Vec<f32>,
    /// In the entropies, `[wanted]`, where the loss has them.
    pub(crate) entropies: Option<Vec<f32>>,
}

/// Where the head's gradients are added, f32. Absent where the head is frozen.
#[derive(Debug)]
pub(crate) struct HeadSums {
    /// The output group's, `[numel]`.
    pub(crate) output: Tensor,
    /// The embedding's, `[vocab * hidden]`, where it is the head.
    pub(crate) tied: Option<Tensor>,
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
    /// `x` is the last block's output, `[total, hidden]`; `output` the buffer of the output group and `embedding` that of
    /// the embedding where it is the head.
    pub(crate) fn new(
        (config, microbatch): (&ModelConfig, &Microbatch),
        x: &Tensor,
        output: &Tensor,
        embedding: Option<&Tensor>,
    ) -> Self {
        let embedding = match embedding {
            Some(flat) => flat.view([config.vocab_size, config.hidden_size]),
            None => Tensor::new(),
        };
        let weights = OutputWeights::view(config, output, &embedding);
        let selected = x.index_select(0, &microbatch.rows);
        let hidden = model::final_norm(config, &weights, &selected);
        Self { weights, selected, hidden, kept: Kept::default() }
    }

    /// The numbers of the wanted rows; `keep` says that a backward pass follows.
    pub(crate) fn numbers(
        &mut self,
        microbatch: &Microbatch,
        request: Request,
        keep: bool,
    ) -> Result<Numbers> {
        match request {
            Request::Logprobs(options) => {
                let (hidden, head, targets) = (&self.hidden, &self.weights.head, &microbatch.targets);
                let result = if keep {
                    let (result, kept) = logprobs_kept(hidden, head, targets, options);
                    self.kept = kept;
                    result
                } else {
                    logprobs(hidden, head, targets, options)
                };
                let entropies = result.entropy.as_ref().map(floats).transpose()?;
                Ok(Numbers { values: floats(&result.logprobs)?, entropies })
            }
            Request::Scalars => {
                Ok(Numbers { values: floats(&scores(&self.weights, &self.hidden))?, entropies: None })
            }
        }
    }

    /// The gradient in the last block's output, `[total, hidden]`, from the one in the numbers.
    pub(crate) fn backward(
        mut self,
        (config, microbatch): (&ModelConfig, &Microbatch),
        request: Request,
        gradient: &NumberGradients,
        sums: Option<&HeadSums>,
    ) -> Result<Tensor> {
        let place = |numbers: &Vec<f32>| Tensor::from_slice(numbers).to_device(self.hidden.device());
        let values = place(&gradient.values);
        let entropy = gradient.entropies.as_ref().map(place);
        let matrix = self.weights.head.numel() as i64;
        let of_matrix = sums.map(|sums| match &sums.tied {
            Some(tied) => tied.view_as(&self.weights.head),
            None => sums.output.narrow(0, 0, matrix).view_as(&self.weights.head),
        });
        let of_hidden = match request {
            Request::Logprobs(options) => {
                let mut of_matrix = of_matrix.unwrap_or_else(|| self.scratch());
                let inputs = (&self.hidden, &self.weights.head, &microbatch.targets);
                let gradients = TokenGradients { logprobs: &values, entropy: entropy.as_ref() };
                let kept = std::mem::take(&mut self.kept);
                logprobs_backward(inputs, kept, options.temperature, &gradients, &mut of_matrix)
            }
            Request::Scalars => {
                let head = self.weights.head.detach().set_requires_grad(true);
                let hidden = self.hidden.detach().set_requires_grad(true);
                let weights = OutputWeights { norm: self.weights.norm.shallow_clone(), head };
                let numbers = tch::with_grad(|| scores(&weights, &hidden));
                let found = gradients(&numbers, &values, &[&hidden, &weights.head])?;
                if let Some(mut of_matrix) = of_matrix {
                    let _ = of_matrix.g_add_(&found[1]);
                }
                found[0].shallow_clone()
            }
        };
        self.norm_backward((config, microbatch), &of_hidden, sums)
    }

    fn norm_backward(
        &self,
        (config, microbatch): (&ModelConfig, &Microbatch),
        of_hidden: &Tensor,
        sums: Option<&HeadSums>,
    ) -> Result<Tensor> {
        let selected = self.selected.detach().set_requires_grad(true);
        let norm = self.weights.norm.detach().set_requires_grad(true);
        let weights = OutputWeights { norm, head: self.weights.head.shallow_clone() };
        let hidden = tch::with_grad(|| model::final_norm(config, &weights, &selected));
        let found = gradients(&hidden, of_hidden, &[&selected, &weights.norm])?;
        if let Some(sums) = sums {
            let width = config.hidden_size;
            let mut of_norm = sums.output.narrow(0, sums.output.size()[0] - width, width);
            let _ = of_norm.g_add_(&found[1]);
        }
        let total = microbatch.packed.total();
        let mut of_x = found[0].new_zeros([total, config.hidden_size], (found[0].kind(), found[0].device()));
        let _ = of_x.index_copy_(0, &microbatch.rows, &found[0]);
        Ok(of_x)
    }

    /// Where the gradient in a frozen head goes, which nobody reads.
    fn scratch(&self) -> Tensor {
        self.weights.head.zeros_like()
    }
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::try_from(tensor.to_device(Device::Cpu).to_kind(Kind::Float))?)
}
