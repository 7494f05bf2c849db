//! Decoder networks, tokenizers and Hugging Face folders.
//!
//! The log-probability of every token of a sequence but the first, under a small network with random weights:
//!
//! ```
//! use model::{Architecture, Dimensions, LogprobOptions, ModelConfig, Packed, Weights};
//! use tch::{Device, Kind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dimensions = Dimensions {
//!     vocab_size: 50,
//!     hidden_size: 16,
//!     intermediate_size: 32,
//!     layers: 2,
//!     heads: 4,
//!     kv_heads: 2,
//!     max_positions: 64,
//! };
//! let config = ModelConfig::new(Architecture::Llama, dimensions)?;
//! // `model::folder::load(dir, &LoadOptions::default())` gives both for a folder of the hub.
//! let weights = Weights::random(&config, 7, Kind::Float, Device::Cpu);
//!
//! let network = weights.network(&config);
//! let packed = Packed::new(&[vec![1, 5, 9, 2]], config.vocab_size, Device::Cpu)?;
//! let hidden = model::forward(&config, &network, &packed);
//! let next = packed.next_tokens();
//! let rows = hidden.index_select(0, &next.rows);
//! let found = model::logprobs(&rows, &network.output.head, &next.targets, LogprobOptions::default());
//! assert_eq!(found.logprobs.size(), [3]);
//! assert!(found.logprobs.max().double_value(&[]) < 0.0);
//! # Ok(())
//! # }
//! ```
//!
//! A folder gives a [`ModelConfig`] and [`Weights`]; [`forward`] and [`block`] are the network over them,
//! with attention as an argument; [`logprobs`] and [`scores`] are its two heads. [`Tokenizer`] and
//! [`ChatTemplate`] turn text and messages into tokens. Numbers, names and texts are those of the
//! transformers library.
//!
//! This crate knows no other crate of Sluice and does no logging. Unsafe code stands in `raw` (memory of
//! tensors and mapped files), in `heap` (calls of the allocator) and, with the feature `cuda`, in `cuda`
//! (calls of C++).

mod attention;
pub mod buffer;
pub mod chat;
pub mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
pub mod driver;
mod feed_forward;
pub mod folder;
pub mod graph;
mod groups;
mod heap;
mod init;
mod layout;
mod logprobs;
mod network;
pub mod packed;
pub mod raw;
mod rope;
pub mod tokenizer;
pub mod weights;

pub use attention::packed_attention;
pub use chat::{ChatRequest, ChatTemplate};
pub use config::{
    Architecture, Dimensions, Experts, Head, ModelConfig, RopeConfig, RopeScaling, SlidingWindow, Yarn,
};
pub use device::{Device, UnknownDevice};
pub use feed_forward::{ExpertWeights, FeedForward, GatedWeights};
pub use folder::{LoadOptions, Model, SaveOptions};
pub use groups::Groups;
pub use heap::{give_back_freed_memory, keep_freed_memory};
pub use layout::{GroupKind, GroupLayout, Layout, ParameterSpec};
pub use logprobs::{
    Kept, LogprobInputs, LogprobOptions, TokenGradients, TokenLogprobs, logprobs, logprobs_backward,
    logprobs_kept,
};
pub use network::{
    BlockPasses, BlockWeights, HeadNorms, Network, OutputWeights, ProjectionPass, block, block_passes, embed,
    final_norm, forward, logits, scores,
};
pub use packed::{NextTokens, Packed};
pub use raw::{copy_bytes, hash_tensor, tensor_bytes};
pub use rope::{Rope, RopeRows};
pub use tokenizer::{IncrementalDecoder, SpecialTokens, Tokenizer};
pub use weights::{Parameter, ScalarInit, Weights, scalar_output};
