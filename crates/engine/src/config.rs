//! What an engine may use, and how.

use model::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::DType;

use crate::error::Error;

/// Tokens of one tile of the native cache; a block is a multiple of it.
pub(crate) const TILE_TOKENS: usize = 16;

/// The configuration of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Where the network runs: `cpu`, `cuda` or `cuda:N`. GPUs need a build with the feature `cuda`.
    pub device: Device,
    /// Element type of weights and cache.
    pub dtype: DType,
    /// Which code runs the network.
    pub backend: Backend,
    /// Threads of the network on the CPU; 0 is one for each core. With the ATen backend these are torch's
    /// own, of the whole process.
    pub threads: usize,
    /// Most responses that are generated at a time.
    pub max_sequences: usize,
    /// Most responses that wait beside them. A request that would exceed it is refused.
    pub max_waiting: usize,
    /// Size of the cache of keys and values in bytes. It is one pool that never grows.
    pub kv_cache_bytes: u64,
    /// Size of that pool in blocks instead, if given.
    pub kv_cache_blocks: Option<usize>,
    /// Tokens of a block, the unit in which the pool is handed out: a multiple of 16.
    pub block_tokens: usize,
    /// Most prompt tokens that one step works on beside the responses' own, so that a long prompt does not
    /// stall them.
    pub prefill_chunk_tokens: usize,
    /// What happens to the cache when weights are swapped.
    pub on_swap: CacheOnSwap,
    /// Whether the cache keeps what responses that have ended leave behind, as long as nobody needs its
    /// memory. A request that begins with the same tokens, such as the next turn of an episode, goes on from
    /// there. A swap of weights drops it.
    pub prefix_cache: bool,
    /// Longest prompt and response together, in tokens; what the model was trained for when absent.
    pub context_tokens: Option<usize>,
    /// Whether a GPU replays decode steps from CUDA graphs, which half precision allows. Each size of batch
    /// is recorded anew after a swap of weights.
    pub cuda_graphs: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            backend: Backend::Auto,
            threads: 0,
            max_sequences: 64,
            max_waiting: 16_384,
            // Enough for 64 sequences of a small model. On a GPU give it what is left by the weights (twice,
            // while new ones arrive) and a step: some ten matrices of logits of 64 MiB, and what one layer
            // gathers; twice where steps are replayed.
            kv_cache_bytes: 1 << 30,
            kv_cache_blocks: None,
            block_tokens: TILE_TOKENS,
            prefill_chunk_tokens: 512,
            on_swap: CacheOnSwap::Keep,
            prefix_cache: true,
            context_tokens: None,
            cuda_graphs: true,
        }
    }
}

impl EngineConfig {
    /// Everything that makes the values unusable, each as one sentence that names the key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |sound: bool, problem: String| {
            if !sound {
                problems.push(problem);
            }
        };
        let in_range = |value: usize, most: usize| (1..=most).contains(&value);
        check(self.threads <= 1024, format!("threads is {}, must be at most 1024", self.threads));
        check(
            in_range(self.max_sequences, 1 << 16),
            format!("max_sequences is {}, must be 1 to 65536", self.max_sequences),
        );
        check(self.max_waiting >= 1, "max_waiting is 0, must be at least 1".to_owned());
        check(
            self.kv_cache_blocks.is_none_or(|blocks| in_range(blocks, 1 << 30)),
            format!("kv_cache_blocks is {:?}, must be 1 to 2^30", self.kv_cache_blocks),
        );
        check(
            in_range(self.block_tokens, 1 << 12) && self.block_tokens.is_multiple_of(TILE_TOKENS),
            format!("block_tokens is {}, must be a multiple of {TILE_TOKENS} up to 4096", self.block_tokens),
        );
        check(
            in_range(self.prefill_chunk_tokens, 1 << 20),
            format!("prefill_chunk_tokens is {}, must be 1 to 2^20", self.prefill_chunk_tokens),
        );
        check(self.context_tokens != Some(0), "context_tokens is 0, must be at least 1".to_owned());
        check(
            !(self.backend == Backend::Native && self.device != Device::Cpu),
            format!("backend is native, which runs on the CPU only, but device is {}", self.device),
        );
        problems
    }

    /// Element type and device as torch names them.
    pub(crate) fn place(&self) -> (tch::Kind, tch::Device) {
        let kind = match self.dtype {
            DType::F32 => tch::Kind::Float,
            DType::Bf16 => tch::Kind::BFloat16,
            DType::F16 => tch::Kind::Half,
        };
        (kind, self.device.to_torch())
    }

    /// Whether the device is there.
    ///
    /// # Errors
    /// When it is a GPU that torch does not see on this machine, or in this build.
    pub fn check_device(&self) -> Result<(), Error> {
        self.device.problem(1).map_or(Ok(()), |problem| Err(Error::Config(vec![problem])))
    }
}

/// The code that runs the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Native on the CPU for the networks that it can run, ATen elsewhere.
    Auto,
    /// The engine's own code for the CPU: the numbers of a response do not depend on what else is generated.
    Native,
    /// Torch's operators, on any device: the network that the learner runs, with its rounding of each element
    /// type. The last bits of a response's numbers depend on what else is generated.
    Aten,
}

/// What happens to cached keys and values when the weights that made them are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheOnSwap {
    /// Responses that are under way go on with the cache they have. Their `cache_spans` say which version
    /// wrote it.
    Keep,
    /// The cache is computed again with the new weights, so that each token is drawn by one version alone.
    Recompute,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_survives_json() {
        let config = EngineConfig::default();
        assert_eq!(config.problems(), Vec::<String>::new());
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""device":"cpu""#), "{text}");
        assert_eq!(serde_json::from_str::<EngineConfig>(&text).unwrap(), config);
    }

    #[test]
    fn every_problem_is_listed() {
        let config = EngineConfig {
            max_sequences: 0,
            block_tokens: 24,
            prefill_chunk_tokens: 0,
            device: Device::Cuda(1),
            backend: Backend::Native,
            ..EngineConfig::default()
        };
        let problems = config.problems();
        for key in ["max_sequences", "block_tokens", "prefill_chunk_tokens", "backend"] {
            assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key} in {problems:?}");
        }
        assert_eq!(problems.len(), 4);
    }
}
