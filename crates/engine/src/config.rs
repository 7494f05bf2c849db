//! What an engine may use, and how.

use std::path::PathBuf;
use std::time::Duration;

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
    /// Element type of weights and cache; f32 on the CPU and bf16 on a GPU where it is not given.
    pub dtype: Option<DType>,
    /// Which code runs the network.
    pub backend: Backend,
    /// Threads of the network on the CPU; 0 is one for each core. With the ATen backend these are torch's
    /// own, of the whole process.
    pub threads: usize,
    /// Most responses that are generated at a time; 64 on the CPU and 256 on a GPU where it is not given.
    pub max_sequences: Option<usize>,
    /// Most responses that wait beside them. A request that would exceed it is refused.
    pub max_waiting: usize,
    /// Size of the cache of keys and values in bytes. It is one pool that never grows. Where it is not given
    /// it is 1 GiB on the CPU; on a GPU what is free once the weights are there and the largest step was
    /// computed, less a twentieth of the memory and room for the next weights.
    pub kv_cache_bytes: Option<u64>,
    /// Size of that pool in blocks instead, if given.
    pub kv_cache_blocks: Option<usize>,
    /// Tokens of a block, the unit in which the pool is handed out: a multiple of 16.
    pub block_tokens: usize,
    /// Most prompt tokens that one step works on beside the responses' own, so that a long prompt does not
    /// stall them; 512 on the CPU and 8192 on a GPU where it is not given.
    pub prefill_chunk_tokens: Option<usize>,
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
    /// Whether the weights are never exchanged, so that the next ones need no room.
    #[serde(skip)]
    pub weights_are_fixed: bool,
    /// Where an external engine answers, as `http://HOST:PORT`; with `backend` `vllm` or `sglang` only.
    pub url: String,
    /// How weights reach an external engine.
    pub weight_transfer: WeightTransfer,
    /// A folder that actor and external engine see under the same path. Each version is written there as a
    /// model folder of its own; the two newest of an actor are kept.
    pub weights_folder: Option<PathBuf>,
    /// Longest wait for one answer of an external engine: a response, or an exchange of weights.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub request_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: None,
            backend: Backend::Auto,
            threads: 0,
            max_sequences: None,
            max_waiting: 16_384,
            kv_cache_bytes: None,
            kv_cache_blocks: None,
            block_tokens: TILE_TOKENS,
            prefill_chunk_tokens: None,
            on_swap: CacheOnSwap::Keep,
            prefix_cache: true,
            context_tokens: None,
            cuda_graphs: true,
            weights_are_fixed: false,
            url: String::new(),
            weight_transfer: WeightTransfer::Disk,
            weights_folder: None,
            request_timeout: Duration::from_secs(600),
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
            in_range(self.max_sequences(), 1 << 16),
            format!("max_sequences is {}, must be 1 to 65536", self.max_sequences()),
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
            in_range(self.prefill_chunk_tokens(), 1 << 20),
            format!("prefill_chunk_tokens is {}, must be 1 to 2^20", self.prefill_chunk_tokens()),
        );
        check(self.context_tokens != Some(0), "context_tokens is 0, must be at least 1".to_owned());
        check(
            !(self.backend == Backend::Native && self.device != Device::Cpu),
            format!("backend is native, which runs on the CPU only, but device is {}", self.device),
        );
        problems.extend(self.external_problems());
        problems
    }

    /// The same of what concerns external engines.
    fn external_problems(&self) -> Vec<String> {
        let Some(name) = self.backend.external() else {
            let unused = (!self.url.is_empty()).then(|| {
                format!(
                    "url is {:?}, which only an external engine has: set backend to vllm or sglang",
                    self.url
                )
            });
            return unused.into_iter().collect();
        };
        let checks = [
            (
                self.url.strip_prefix("http://").is_none_or(str::is_empty),
                format!("url is {:?}, must be http://HOST:PORT of the {name} server", self.url),
            ),
            (
                self.weights_folder.as_ref().is_none_or(|folder| !folder.is_absolute()),
                format!("weights_folder must be an absolute path that the {name} server sees, too"),
            ),
            (
                self.weight_transfer == WeightTransfer::Nccl,
                "weight_transfer is nccl, which the learner does not speak with an external engine; take disk"
                    .to_owned(),
            ),
            (
                self.backend == Backend::Vllm && self.on_swap == CacheOnSwap::Keep,
                "on_swap is keep, but vllm does not say which version drew which token after reload_weights; \
                 take recompute"
                    .to_owned(),
            ),
            (
                self.device != Device::Cpu,
                format!("device is {}, but with {name} the actor computes nothing; leave it at cpu", self.device),
            ),
            (self.request_timeout.is_zero(), "request_timeout is 0s, must be longer".to_owned()),
        ];
        checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, problem)| problem).collect()
    }

    /// Element type and device as torch names them.
    pub(crate) fn place(&self) -> (tch::Kind, tch::Device) {
        let kind = match self.dtype() {
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
    /// A vLLM server at `url`, which an actor asks for tokens (docs/external-engines.md).
    Vllm,
    /// An SGLang server at `url`, in the same way.
    Sglang,
}

impl Backend {
    /// The name of the server, where another program runs the network.
    pub fn external(self) -> Option<&'static str> {
        match self {
            Self::Auto | Self::Native | Self::Aten => None,
            Self::Vllm => Some("vllm"),
            Self::Sglang => Some("sglang"),
        }
    }
}

/// How weights reach an external engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightTransfer {
    /// The actor receives them as any actor does, writes them to `weights_folder` and has the engine read
    /// them.
    Disk,
    /// From the learner's GPUs to the engine's. Refused: it was never tried.
    Nccl,
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
    fn an_external_engine_needs_an_address_and_a_folder() {
        let sound = EngineConfig {
            backend: Backend::Sglang,
            url: "http://10.0.0.5:30000".to_owned(),
            weights_folder: Some("/dev/shm/policy".into()),
            ..EngineConfig::default()
        };
        assert_eq!(sound.problems(), Vec::<String>::new());
        let vllm = EngineConfig { backend: Backend::Vllm, ..sound.clone() };
        assert_eq!(vllm.problems().len(), 1, "keeping the cache: {:?}", vllm.problems());
        let wrong = EngineConfig {
            url: "https://10.0.0.5".to_owned(),
            weights_folder: Some("policy".into()),
            weight_transfer: WeightTransfer::Nccl,
            device: Device::Cuda(0),
            request_timeout: Duration::ZERO,
            ..vllm
        };
        let problems = wrong.problems();
        let keys = ["url", "weights_folder", "weight_transfer", "on_swap", "device", "request_timeout"];
        assert!(problems.iter().zip(keys).all(|(said, key)| said.starts_with(key)), "{problems:?}");
        assert_eq!(problems.len(), keys.len());
        let unused = EngineConfig { backend: Backend::Auto, ..sound };
        assert!(unused.problems()[0].starts_with("url is"), "{:?}", unused.problems());
    }

    #[test]
    fn every_problem_is_listed() {
        let config = EngineConfig {
            max_sequences: Some(0),
            block_tokens: 24,
            prefill_chunk_tokens: Some(0),
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
