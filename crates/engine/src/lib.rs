//! The generation engine: continuous batching over a paged cache of keys and values.
//!
//! An [`Engine`] belongs to one thread and does nothing by itself: [`Engine::submit`] queues requests,
//! [`Engine::step`] computes one step of the network for everything that runs and returns what happened,
//! [`Engine::swap_weights`] exchanges the policy between two steps. What comes out is a function of what was
//! submitted and between which steps. [`EngineHandle`] puts an engine on a thread of its own for async
//! callers, and [`generate::Generator`] runs one over the prompts of a list or a stream. An [`Episode`] is a
//! response of several turns.
//!
//! The scheduler decides (`scheduler`), a backend computes: `backend::native`, the engine's own code for the
//! CPU, or `backend::aten`, torch's operators for GPUs. With the native one a response depends on its prompt,
//! sampling, seed and weights only, to the bit; with torch's operators up to rounding.

mod backend;
mod batch;
mod blocks;
mod config;
mod defaults;
mod engine;
mod episode;
mod error;
mod folder;
pub mod generate;
mod grammar;
mod handle;
mod prefix;
mod profile;
mod prompts;
mod random;
mod request;
mod scheduler;
mod sequence;
mod stopping;
mod worker;

pub use backend::PolicyWeights;
pub use config::{Backend, CacheOnSwap, EngineConfig, WeightTransfer};
pub use engine::{Engine, EngineParts, context_tokens, repeats_itself};
pub use episode::{Episode, Opening, TurnRequest, TurnText};
pub use error::Error;
pub use folder::Folder;
pub use grammar::{Grammar, GrammarCompiler, GrammarError, GrammarSource};
pub use handle::{EngineClient, EngineHandle};
pub use model::Device;
pub use prompts::PromptEncoder;
pub use request::{
    Event, Finished, Load, MAX_TOP_LOGPROBS, Refusal, Request, SampleRequest, StopText, Token, TokenLogprob,
    Totals,
};
