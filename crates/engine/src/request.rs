//! What is asked of an engine, and what it answers.

use std::sync::Arc;

use types::{FinishReason, Sampling, Span};

use super::grammar::Grammar;

/// Most alternatives that are reported beside a drawn token.
pub const MAX_TOP_LOGPROBS: usize = 64;

/// A prompt and the responses wanted to it. The responses are siblings: they share the computation of the
/// prompt.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt, at least one token.
    pub prompt_tokens: Arc<[u32]>,
    /// The responses wanted, at least one.
    pub samples: Vec<SampleRequest>,
    /// How tokens are drawn.
    pub sampling: Arc<Sampling>,
    /// The tokens that end a response, unless `sampling.ignore_eos`. `sampling.stop_token_ids` come on top.
    pub eos_token_ids: Arc<[u32]>,
    /// Fewest tokens of a response, 0 to `sampling.max_new_tokens`. Before, no token that ends it can be
    /// drawn and no stop text counts.
    pub min_tokens: usize,
    /// What each response has to look like, if anything. `min_tokens` is 0 then.
    pub grammar: Option<Grammar>,
    /// How many of the most probable tokens are reported beside each drawn one, 0 to [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: usize,
    /// Whether each token is reported as it is drawn ([`Event::Token`]), or only the whole response.
    pub stream: bool,
}

/// One response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleRequest {
    /// Names the response in events. Two responses that are under way never have the same.
    pub id: u64,
    /// Seed of the response's random stream: token `i` is drawn with the stream's number `i`, whatever else
    /// is generated.
    pub seed: u64,
}

/// Why a request was not taken. Nothing of it was taken then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The prompt has no token.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// No response is wanted.
    #[error("the request asks for no response")]
    NoSample,
    /// The prompt has a token that the model has no embedding for.
    #[error("prompt token {token} at position {position} is outside the vocabulary of {vocab_size}")]
    Token {
        /// Index in the prompt.
        position: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The prompt leaves no room for a response.
    #[error("the prompt has {tokens} tokens, the context is {context}; a response needs at least one")]
    Context {
        /// Tokens of the prompt.
        tokens: usize,
        /// Longest prompt and response together.
        context: usize,
    },
    /// The prompt with its longest response would not fit into the whole cache.
    #[error(
        "the prompt and a response of up to {response_tokens} tokens need {needed_blocks} cache blocks, the pool has {pool_blocks}; \
         lower max_new_tokens or raise kv_cache_bytes"
    )]
    Pool {
        /// Longest response.
        response_tokens: usize,
        /// Blocks they would take.
        needed_blocks: usize,
        /// Blocks of the pool.
        pool_blocks: usize,
    },
    /// A sampling parameter is out of range, or there are too many top log-probs.
    #[error("{0}")]
    Sampling(String),
    /// The request has stop texts, but the engine was made without a tokenizer.
    #[error("stop texts need a tokenizer, which this model folder has not; use stop_token_ids")]
    NoTokenizer,
    /// A response of this id is under way.
    #[error("response {0} is already under way")]
    DuplicateId(u64),
    /// Too many responses are waiting. Ask again later.
    #[error("{waiting} responses wait already, at most {most} may")]
    Busy {
        /// Responses that wait.
        waiting: usize,
        /// Most that may.
        most: usize,
    },
    /// Whoever submits it has not read what came of earlier requests.
    #[error("the request may have {events} events, but there is room for {room} until earlier ones are read")]
    Unread {
        /// Most events that the request will have.
        events: usize,
        /// Free places in the client's queue.
        room: usize,
    },
}

/// Something that happened in a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token was drawn for a response whose request asked to be told.
    Token(Token),
    /// A response is complete.
    Finished(Box<Finished>),
    /// A response cannot be completed, and is given up.
    Failed {
        /// The response.
        id: u64,
        /// Tokens it had.
        response_tokens: usize,
        /// What happened.
        problem: String,
    },
}

impl Event {
    /// The response it is about.
    pub fn id(&self) -> u64 {
        match self {
            Self::Token(token) => token.id,
            Self::Finished(finished) => finished.id,
            Self::Failed { id, .. } => *id,
        }
    }
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The response it belongs to.
    pub id: u64,
    /// Its index in the response.
    pub index: usize,
    /// The token.
    pub token: u32,
    /// See [`Finished::rollout_logprobs`].
    pub logprob: f32,
    /// The most probable tokens, as many as the request asked for.
    pub top: Vec<TokenLogprob>,
}

/// A token and its log-probability under the distribution of [`Finished::rollout_logprobs`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// A complete response.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Which response.
    pub id: u64,
    /// The drawn tokens, at least one; the token that ended the response is the last of them.
    pub response_tokens: Vec<u32>,
    /// `[response]` log-probabilities of the drawn tokens under the untruncated distribution at the sampling
    /// temperature (1 when it is 0), after the repetition penalty if there is one.
    pub rollout_logprobs: Vec<f32>,
    /// `[response]` probability mass of the tokens that could be drawn, if top-p, top-k or min-p truncated,
    /// or some tokens could not be drawn.
    pub surviving_mass: Option<Vec<f32>>,
    /// The most probable tokens at each position, if the request asked for them.
    pub top_logprobs: Vec<Vec<TokenLogprob>>,
    /// The policy versions that drew the tokens.
    pub spans: Vec<Span>,
    /// The policy versions that wrote the cached keys and values of prompt and response (without the last
    /// token, which is never fed back). One span unless weights were swapped meanwhile and the cache was
    /// kept.
    pub cache_spans: Vec<Span>,
    /// Why the response ended.
    pub finish_reason: FinishReason,
    /// The stop text that ended it, if one did.
    pub stop_text: Option<StopText>,
}

/// Where a stop text was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopText {
    /// The stop text.
    pub text: String,
    /// Bytes of the response's text (behind the prompt, without special tokens) in front of it: what a reader
    /// is shown. The response's tokens are complete nevertheless, as training needs them.
    pub at: usize,
}

impl StopText {
    /// What a reader is shown of a response's whole text.
    pub fn shown<'a>(&self, text: &'a str) -> &'a str {
        &text[..text.floor_char_boundary(self.at)]
    }
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Responses that are generated.
    pub running: usize,
    /// Responses that wait.
    pub waiting: usize,
    /// Responses that could be taken up at once, as far as their number goes.
    pub free_sequences: usize,
    /// Cache blocks that no response holds.
    pub free_blocks: usize,
    /// Those of them that still hold what a request to come may begin with.
    pub kept_blocks: usize,
    /// Cache blocks in all.
    pub total_blocks: usize,
}

/// What an engine has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Steps.
    pub steps: u64,
    /// Steps of them that a GPU replayed from a CUDA graph.
    pub replayed_steps: u64,
    /// Tokens drawn.
    pub response_tokens: u64,
    /// Tokens whose keys and values were computed, drawn ones and repetitions included.
    pub computed_tokens: u64,
    /// Tokens of them that were not drawn in the step before: prompts, and what was computed again.
    pub prefill_tokens: u64,
    /// Prompt tokens that did not have to be computed, because a sibling had done it.
    pub shared_tokens: u64,
    /// Tokens that did not have to be computed, because the cache still held them of another request.
    pub reused_tokens: u64,
    /// Cache blocks that still held something for requests to come, and were given up for responses under
    /// way.
    pub evicted_blocks: u64,
    /// Responses that had to give their cache blocks back to another and were computed again later.
    pub preemptions: u64,
    /// Responses that ended by themselves.
    pub finished: u64,
    /// Responses that were cancelled.
    pub cancelled: u64,
    /// Responses that failed.
    pub failed: u64,
}
