//! Training on given examples: supervised fine-tuning, reward models, and preferences without a reward model.
//!
//! ```text
//! lines of JSON -> tokens -> examples -> minibatches -> micro-batches on ranks -> one AdamW step a minibatch
//! ```
//!
//! The objectives differ in the gradient they take in the network's outputs ([`objective`]) and in what
//! surrounds the training; everything between is the machinery of the PPO step. The same seed gives the same
//! weights.

mod config;
mod dataset;
mod examples;
mod mixture;
mod new_model;
mod objective;
mod preferences;
mod progress;
mod report;
mod reward_model;
mod save;
mod sft;
mod text_encoder;
mod training;
mod training_state;
mod work_folder;

pub use config::{
    AssistantTurns, InitConfig, PreferenceConfig, PreferenceLoss, RewardModelConfig, SftConfig,
    TrainingConfig,
};
pub use mixture::MixedData;
pub use preferences::dpo;
pub use progress::Progress;
pub use report::{Evaluation, ScoreStatistics, TrainingReport};
pub use reward_model::{REWARD_MEAN_KEY, REWARD_STD_KEY, train_rm};
pub use sft::sft;
