//! Decoder networks, tokenizers and Hugging Face folders.
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
pub use config::{Architecture, Dimensions, Head, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
pub use device::Device;
pub use folder::{LoadOptions, Model, SaveOptions};
pub use groups::Groups;
pub use heap::{give_back_freed_memory, keep_freed_memory};
pub use layout::{GroupKind, GroupLayout, Layout, ParameterSpec};
pub use logprobs::{
    Kept, LogprobOptions, TokenGradients, TokenLogprobs, logprobs, logprobs_backward, logprobs_kept,
};
pub use network::{
    BlockWeights, Network, OutputWeights, block, embed, final_norm, forward, logits, rms_norm, scores,
};
pub use packed::{NextTokens, Packed};
pub use raw::{copy_bytes, hash_tensor, tensor_bytes};
pub use rope::{Rope, RopeRows};
pub use tokenizer::{IncrementalDecoder, SpecialTokens, Tokenizer};
pub use weights::{Parameter, ScalarInit, Weights};
