//! A frozen network and its numbers: reference log-probs of a policy, scores of a reward model.
//!
//! A network's numbers are those that transformers computes. Everything here runs on the one thread that owns
//! torch.

use std::path::{Path, PathBuf};

use model::{Device, Head, LoadOptions, LogprobOptions, Model, ModelConfig, Network, Packed};
use serde::Deserialize;
use tch::Tensor;
use types::DType;

use crate::config::torch_kind;
use crate::temperature::Temperature;

/// Why a network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its folder cannot be read.
    #[error(transparent)]
    Folder(#[from] model::folder::Error),
    /// It is a network of the other kind.
    #[error("{path} is {found}, which has no {wanted}; name {advice}")]
    Head {
        /// The folder.
        path: PathBuf,
        /// The class of its network.
        found: &'static str,
        /// What was asked of it.
        wanted: &'static str,
        /// What to name instead.
        advice: &'static str,
    },
    /// The stored statistics make no sense.
    #[error(
        "{path}/config.json: reward mean {mean} and deviation {std} are no statistics; train the model again"
    )]
    Statistics {
        /// The folder.
        path: PathBuf,
        /// The stored mean.
        mean: f64,
        /// The stored standard deviation.
        std: f64,
    },
}

/// Where and how networks are loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placement {
    /// The device that holds them.
    pub device: Device,
    /// Element type in memory; that of the file where not given.
    pub dtype: Option<DType>,
}

/// What a network computes.
#[derive(Debug)]
enum Purpose {
    /// Log-probs of given tokens at this temperature.
    Logprobs { temperature: Temperature },
    /// `(score - mean) / std` at the last token.
    Scores { mean: f64, std: f64 },
}

/// One sequence to compute on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// Its tokens, at least one, all inside the vocabulary.
    pub(crate) tokens: &'a [u32],
    /// Log-probs are wanted from this token on, at least 1; a score is always that of the whole sequence.
    pub(crate) from: usize,
}

impl AsRef<[u32]> for Sequence<'_> {
    fn as_ref(&self) -> &[u32] {
        self.tokens
    }
}

/// What a network's head says of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum HeadOutputs {
    /// `[tokens - from]` log-probs.
    Logprobs(Vec<f32>),
    /// The score.
    Score(f32),
}

/// A frozen network.
#[derive(Debug)]
pub(crate) struct FrozenNetwork {
    config: ModelConfig,
    network: Network,
    device: tch::Device,
    purpose: Purpose,
}

impl FrozenNetwork {
    /// A policy, for log-probs at `temperature`.
    pub(crate) fn policy(dir: &Path, placement: Placement, temperature: Temperature) -> Result<Self, Error> {
        Self::load(dir, placement, Purpose::Logprobs { temperature })
    }

    /// A reward model; with `normalise` by the statistics that its folder stores, if it does.
    pub(crate) fn reward_model(dir: &Path, placement: Placement, normalise: bool) -> Result<Self, Error> {
        let statistics = if normalise { stored_statistics(dir)? } else { None };
        let (mean, std) = statistics.unwrap_or((0.0, 1.0));
        Self::load(dir, placement, Purpose::Scores { mean, std })
    }

    fn load(dir: &Path, placement: Placement, purpose: Purpose) -> Result<Self, Error> {
        let config = model::folder::load_config(dir)?;
        let (head, wanted, advice) = match purpose {
            Purpose::Logprobs { .. } => (Head::Causal, "log-probs", "a *ForCausalLM folder"),
            Purpose::Scores { .. } => {
                (Head::Scalar, "score", "a *ForSequenceClassification folder with one label")
            }
        };
        if config.head != head {
            let found = config.architecture.class(config.head);
            return Err(Error::Head { path: dir.to_owned(), found, wanted, advice });
        }
        let device = placement.device.to_torch();
        let options = LoadOptions { kind: placement.dtype.map(torch_kind), device, ..LoadOptions::default() };
        let Model { config, weights, .. } = model::folder::load(dir, &options)?;
        // The network's tensors are views that keep the weights' storage.
        let network = weights.network(&config);
        Ok(Self { config, network, device, purpose })
    }

    /// What it computes, as a label.
    pub(crate) fn label(&self) -> &'static str {
        match self.purpose {
            Purpose::Logprobs { .. } => "reference",
            Purpose::Scores { .. } => "reward-model",
        }
    }

    /// The first token outside the vocabulary, if there is one, with the vocabulary's size.
    pub(crate) fn foreign_token(&self, tokens: &[u32]) -> Option<(u32, i64)> {
        let foreign = tokens.iter().find(|token| i64::from(**token) >= self.config.vocab_size);
        foreign.map(|token| (*token, self.config.vocab_size))
    }

    /// The head's outputs for each sequence, computed in one packed batch.
    ///
    /// # Errors
    /// Where a sequence is empty or holds a token outside the vocabulary.
    pub(crate) fn outputs(&self, batch: &[Sequence]) -> Result<Vec<HeadOutputs>, model::packed::Error> {
        let _guard = tch::no_grad_guard();
        let packed = Packed::new(batch, self.config.vocab_size, self.device)?;
        let hidden = model::forward(&self.config, &self.network, &packed);
        Ok(match &self.purpose {
            Purpose::Logprobs { temperature } => self.logprobs(batch, &packed, &hidden, temperature.get()),
            Purpose::Scores { mean, std } => {
                let scores =
                    model::scores(&self.network.output, &hidden.index_select(0, &packed.last_rows()));
                let scores = floats(&scores).into_iter();
                scores.map(|score| HeadOutputs::Score(((f64::from(score) - mean) / std) as f32)).collect()
            }
        })
    }

    /// Log-probs of the wanted tokens; only the rows before them go through the head.
    fn logprobs(
        &self,
        batch: &[Sequence],
        packed: &Packed,
        hidden: &Tensor,
        temperature: f64,
    ) -> Vec<HeadOutputs> {
        let mut start = 0;
        let mut rows: Vec<i64> = Vec::new();
        for sequence in batch {
            let (from, end) = (sequence.from as i64, sequence.tokens.len() as i64);
            rows.extend(start + from - 1..start + end - 1);
            start += end;
        }
        let rows = Tensor::from_slice(&rows).to_device(self.device);
        let targets = packed.tokens().index_select(0, &(&rows + 1));
        let options = LogprobOptions { temperature, entropy: false };
        let found =
            model::logprobs(&hidden.index_select(0, &rows), &self.network.output.head, &targets, options);
        let found = floats(&found.logprobs);
        let mut rest = found.as_slice();
        let mut outputs = Vec::with_capacity(batch.len());
        for sequence in batch {
            let (logprobs, others) = rest.split_at(sequence.tokens.len() - sequence.from);
            outputs.push(HeadOutputs::Logprobs(logprobs.to_vec()));
            rest = others;
        }
        outputs
    }
}

/// The values of a one-dimensional f32 tensor.
fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).expect("a one-dimensional tensor of f32 becomes a vector")
}

/// The keys of `config.json` under which training stores the mean and deviation of its scores.
#[derive(Debug, Deserialize)]
struct Stored {
    sluice_reward_mean: Option<f64>,
    sluice_reward_std: Option<f64>,
}

/// The mean and standard deviation that a reward model's folder stores; none where it stores none.
fn stored_statistics(dir: &Path) -> Result<Option<(f64, f64)>, Error> {
    let path = dir.join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| model::folder::Error::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    // What is wrong with the file as a whole, loading the network says.
    let Ok(stored) = serde_json::from_slice::<Stored>(&bytes) else { return Ok(None) };
    let (Some(mean), Some(std)) = (stored.sluice_reward_mean, stored.sluice_reward_std) else {
        return Ok(None);
    };
    if mean.is_finite() && std.is_finite() && std > 0.0 {
        Ok(Some((mean, std)))
    } else {
        Err(Error::Statistics { path: dir.to_owned(), mean, std })
    }
}
