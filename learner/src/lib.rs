//! The learner: PPO, sharding, checkpoints, weight publication, supervised objectives.

mod adapter;
pub mod checkpoint;
mod config;
mod error;
mod lines;
mod metrics;
mod microbatch;
mod ppo;
mod ranks;
mod replay;
pub mod ring;
mod stopwatch;
mod supervised;
mod threads;
mod trainee;

pub use checkpoint::Checkpoints;
pub use config::{
    Bound, DecayOn, ExecutionConfig, KlIn, LoraConfig, LoraTarget, OptimizerConfig, Overlong, PpoConfig,
    Precision, RolloutSupport, SamplesOn, Whiten, ZeroStage,
};
pub use error::{Error, Result};
pub use model::Device;
pub use ppo::{CriticSource, Trainer, TrainerConfig};
pub use ranks::Ranks;
pub use replay::{ReplayOptions, read_batch, replay};
pub use ring::{Config, build};
pub use supervised::{
    Evaluation, InitConfig, PreferenceConfig, PreferenceLoss, Progress, REWARD_MEAN_KEY, REWARD_STD_KEY,
    Report, RewardModelConfig, ScoreStatistics, SftConfig, TrainingConfig, dpo, sft, train_rm,
};
pub use threads::on_ranks;
