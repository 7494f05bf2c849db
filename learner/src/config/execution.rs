//! How a network is trained, whatever the objective: precision, memory, ranks.

use std::path::PathBuf;

use model::Device;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tch::Kind;

use super::problems::Problems;

/// Element type of weights and activations. Optimizer state and gradient sums are f32 in either case; with
/// `bf16` the optimizer keeps f32 master weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats, for weights and optimizer alike.
    #[default]
    F32,
    /// Brain floats; the optimizer keeps f32 masters.
    Bf16,
}

impl Precision {
    /// What a device is quick in, where nothing else is said (docs/decisions.md, D23).
    pub(crate) fn of_device(device: Device) -> Self {
        match device {
            Device::Cpu => Self::F32,
            Device::Cuda(_) => Self::Bf16,
        }
    }

    /// Torch's name for it.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// What the ranks divide among themselves (Rajbhandari et al., ZeRO, arXiv 1910.02054). Each stage includes
/// those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(into = "u8")]
pub enum ZeroStage {
    /// Nothing: every rank holds everything.
    #[default]
    Off,
    /// Optimizer state and master weights.
    Optimizer,
    /// Gradients: a rank keeps the sum of its shard only.
    Gradients,
    /// Weights: a block's are gathered while it is computed. Blocks are recomputed in the backward pass,
    /// because what a graph keeps would keep the gathered weights too.
    Weights,
}

impl<'de> Deserialize<'de> for ZeroStage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Self::Off),
            1 => Ok(Self::Optimizer),
            2 => Ok(Self::Gradients),
            3 => Ok(Self::Weights),
            stage => Err(D::Error::custom(format_args!("zero_stage is {stage}, must be 0, 1, 2 or 3"))),
        }
    }
}

impl From<ZeroStage> for u8 {
    fn from(stage: ZeroStage) -> Self {
        match stage {
            ZeroStage::Off => 0,
            ZeroStage::Optimizer => 1,
            ZeroStage::Gradients => 2,
            ZeroStage::Weights => 3,
        }
    }
}

/// A projection that LoRA can adapt, by its name in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Projection to queries.
    QProj,
    /// Projection to keys.
    KProj,
    /// Projection to values.
    VProj,
    /// Projection of the attention's output.
    OProj,
    /// Gate of the feed-forward layer.
    GateProj,
    /// Up projection of the feed-forward layer.
    UpProj,
    /// Down projection of the feed-forward layer.
    DownProj,
}

impl LoraTarget {
    /// Its name, the last part of a parameter's name but one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// Low-rank adaptation (Hu et al., arXiv 2106.09685): the weights stay, and `W + alpha / rank * B A` is used,
/// with `A` `[rank, in]` and `B` `[out, rank]` trained. The scalar head of a critic or a reward model trains
/// whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of the update.
    pub rank: usize,
    /// Scale of the update, times the rank.
    pub alpha: f64,
    /// The projections that are adapted.
    pub targets: Vec<LoraTarget>,
    /// A folder of adapters, as PEFT and Sluice write them, to start from; new ones where absent.
    pub start: Option<PathBuf>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        use LoraTarget::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let targets = vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj];
        Self { rank: 16, alpha: 32.0, targets, start: None }
    }
}

impl LoraConfig {
    /// Everything that makes the values unusable.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        problems.positive("rank", self.rank);
        problems.check(self.alpha.is_finite() && self.alpha > 0.0, || {
            format!("alpha is {}, must be a positive number", self.alpha)
        });
        problems.check(!self.targets.is_empty(), || "targets is empty, must name a projection".to_owned());
        problems.into_list()
    }
}

/// How a supervised objective is run, `[execution]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExecutionConfig {
    /// Element type of weights and activations; f32 on the CPU and bf16 on a GPU where it is not given.
    pub dtype: Option<Precision>,
    /// Where. With several ranks on GPUs, rank `r` takes the `r`-th GPU after this one.
    pub device: Device,
    /// Ranks: threads of this process, each with its part of every minibatch.
    pub ranks: usize,
    /// Threads of torch for each rank; the machine's processors divided by the ranks where absent.
    pub threads: Option<usize>,
    /// Most tokens of a micro-batch; a longer sequence is one of its own.
    pub microbatch_tokens: usize,
    /// Whether a block's activations are computed again in the backward pass instead of kept.
    pub recompute: bool,
    /// What the ranks divide among themselves.
    #[schemars(with = "u8", range(max = 3))]
    pub zero_stage: ZeroStage,
    /// Whether optimizer state lives in the host's memory.
    pub offload_optimizer: bool,
    /// Low-rank adaptation instead of training all weights.
    pub lora: Option<LoraConfig>,
}

impl Default for ExecutionConfig {
    fn default() -> Self {
        Self {
            dtype: None,
            device: Device::Cpu,
            ranks: 1,
            threads: None,
            microbatch_tokens: 16384,
            recompute: false,
            zero_stage: ZeroStage::Off,
            offload_optimizer: false,
            lora: None,
        }
    }
}

impl ExecutionConfig {
    /// Fills in what the device decides where the configuration does not: two that mean the same are equal
    /// then.
    pub fn fill_in_decided(&mut self) {
        self.dtype = Some(self.dtype());
    }

    /// Element type of weights and activations.
    pub(crate) fn dtype(&self) -> Precision {
        self.dtype.unwrap_or(Precision::of_device(self.device))
    }

    /// Everything that makes the values unusable.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Problems::default();
        problems
            .check((1..=256).contains(&self.ranks), || format!("ranks is {}, must be 1 to 256", self.ranks));
        problems.check(self.threads != Some(0), || "threads is 0, must be at least 1".to_owned());
        problems.positive("microbatch_tokens", self.microbatch_tokens);
        if let Some(lora) = &self.lora {
            problems.section("lora", lora.problems());
        }
        if let Some(problem) = self.device.problem(self.ranks) {
            problems.add(problem);
        }
        problems.into_list()
    }
}
