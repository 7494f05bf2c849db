//! The learner: PPO, sharding, checkpoints, weight publication, supervised objectives.
//!
//! The service is [`build`]. Without a ring, the same step trains on recorded samples, and the same machinery
//! on examples:
//!
//! ```no_run,standalone_crate
//! use learner::{PpoConfig, ReplayOptions, SftConfig};
//! use service::jsonl::WrongLines;
//!
//! // A policy from nothing but a tokenizer and examples.
//! let sft: SftConfig = serde_json::from_str(
//!     r#"{
//!         "init": {"tokenizer": "tokenizer", "hidden_size": 128, "layers": 4},
//!         "data": "examples.jsonl",
//!         "output": "policy"
//!     }"#,
//! )?;
//! let report = learner::sft(&sft, &mut |progress| {
//!     println!("{progress}");
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! println!("{report}");
//!
//! // One PPO step of that policy on recorded samples; writes step/policy, step/critic and step/metrics.json.
//! let options = ReplayOptions {
//!     policy: "policy".into(),
//!     critic: None,
//!     batch: "samples.jsonl".into(),
//!     config: PpoConfig { policy_lr: 1e-5, ..PpoConfig::default() },
//!     output: "step".into(),
//!     ranks: 1,
//!     device: learner::Device::Cpu,
//!     temperature: 1.0,
//!     max_new_tokens: None,
//! };
//! // The first line that is wrong ends it.
//! let metrics = learner::replay(&options, &WrongLines::default())?;
//! println!("approximate KL of the step: {:?}", metrics.approx_kl);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
pub mod checkpoint;
mod config;
mod disk;
mod error;
mod host;
mod lines;
mod metrics;
mod microbatch;
mod microbatch_split;
mod model_folder;
mod phase_timer;
mod ppo;
mod ranks;
mod recorded_batch;
mod replay;
pub mod ring;
mod supervised;
mod threads;
mod trainable_model;

pub use checkpoint::{Checkpoints, Writer};
pub use config::{
    Bound, Credit, DecayOn, ExecutionConfig, KlIn, LoraConfig, LoraTarget, OptimizerConfig, Overlong,
    PpoConfig, Precision, RolloutSupport, SamplesOn, Truncated, Whiten, ZeroStage,
};
pub use disk::FileError;
pub use error::{Error, Result};
pub use host::{host_readings, host_waits};
pub use metrics::METRICS;
pub use model::Device;
pub use ppo::{CriticSource, Trainer, TrainerConfig};
pub use ranks::Ranks;
pub use recorded_batch::read_batch;
pub use replay::{ReplayOptions, replay};
pub use ring::{Config, build};
pub use supervised::{
    AssistantTurns, Evaluation, InitConfig, MixedData, PreferenceConfig, PreferenceLoss, Progress,
    REWARD_MEAN_KEY, REWARD_STD_KEY, RewardModelConfig, ScoreStatistics, SftConfig, TrainingConfig,
    TrainingReport, dpo, sft, train_rm,
};
pub use threads::on_ranks;
