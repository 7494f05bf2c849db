//! The two protocols: what is sent, and how answers are read. Shapes are those of vLLM 0.32 (`entrypoints/`)
//! and SGLang 0.5 (`srt/managers/io_struct.py`, docs/advanced_features/sglang_for_rl.md).

mod sglang;
mod vllm;

use std::path::Path;

use engine::Backend;
use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use types::Sampling;

use super::http::{Call, CallError};

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Vllm,
    Sglang,
}

/// A response to draw.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw<'a> {
    /// The request's name at the server.
    pub(crate) name: &'a str,
    /// Everything in front of the next token.
    pub(crate) tokens: &'a [u32],
    pub(crate) sampling: &'a Sampling,
    pub(crate) max_tokens: u32,
    pub(crate) seed: u64,
    /// The tokens that end it.
    pub(crate) endings: &'a [u32],
    /// How many alternatives of each token are reported.
    pub(crate) alternatives: u32,
}

/// Why a server has ended a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Stop,
    Length,
    /// For an exchange of weights, or because somebody told it to.
    Aborted,
}

/// What a server drew.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<f32>,
    /// The most probable tokens in the place of the first, with their log-probs; empty where not asked for.
    pub(crate) first_alternatives: Vec<(u32, f32)>,
    pub(crate) ending: Ending,
    /// Which weights drew which tokens, where the server says so.
    pub(crate) weights: Option<Vec<DrawnBy>>,
    /// The weights that the server had when it answered, where it says so.
    pub(crate) last_weights: Option<String>,
}

/// Tokens `start..end` of a response were drawn by these weights.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct DrawnBy {
    pub(crate) version: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// What becomes of responses under way in an exchange of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// They end with what they have, and go on as new requests.
    Abort,
    /// They wait, and go on with the cache that they have.
    Keep,
}

impl Protocol {
    /// That of a backend; none of one of our own.
    pub(crate) fn of(backend: Backend) -> Option<Self> {
        match backend {
            Backend::Vllm => Some(Self::Vllm),
            Backend::Sglang => Some(Self::Sglang),
            Backend::Auto | Backend::Native | Backend::Aten => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
        }
    }

    /// Whether the server is there. Both answer 200 as long as their engine runs.
    pub(crate) fn health(self) -> Call {
        Call { method: Method::GET, path: "/health".to_owned(), body: Vec::new() }
    }

    pub(crate) fn draw(self, draw: &Draw<'_>) -> Call {
        match self {
            Self::Vllm => vllm::draw(draw),
            Self::Sglang => sglang::draw(draw),
        }
    }

    /// What to do where a page of the server is not there.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Vllm => "start vllm with --tokens-only and VLLM_SERVER_DEV_MODE=1 in its environment",
            Self::Sglang => "is this an sglang server of 0.5 or newer?",
        }
    }

    /// Reads the answer to a [`Draw`].
    ///
    /// # Errors
    /// When it is not what the protocol says.
    pub(crate) fn answer(self, call: &Call, body: &[u8]) -> Result<Answer, CallError> {
        let answer = match self {
            Self::Vllm => vllm::answer(body),
            Self::Sglang => sglang::answer(body),
        };
        answer.and_then(sound).map_err(|problem| CallError::Answer { path: call.path.clone(), problem })
    }

    /// Nothing is computed from now on.
    pub(crate) fn pause(self, pause: Pause) -> Call {
        match self {
            Self::Vllm => vllm::pause(pause),
            Self::Sglang => sglang::pause(pause),
        }
    }

    /// The weights of a folder are taken up under a name.
    pub(crate) fn load(self, folder: &Path, version: &str, pause: Pause) -> Call {
        match self {
            Self::Vllm => vllm::load(folder),
            Self::Sglang => sglang::load(folder, version, pause),
        }
    }

    /// Whether they were.
    ///
    /// # Errors
    /// When the server says that they were not.
    pub(crate) fn loaded(self, call: &Call, body: &[u8]) -> Result<(), CallError> {
        match self {
            // An error is a status of its own.
            Self::Vllm => Ok(()),
            Self::Sglang => {
                sglang::loaded(body).map_err(|problem| CallError::Answer { path: call.path.clone(), problem })
            }
        }
    }

    /// Computing goes on.
    pub(crate) fn resume(self) -> Call {
        match self {
            Self::Vllm => vllm::resume(),
            Self::Sglang => sglang::resume(),
        }
    }
}

fn post(path: &str, body: &Value) -> Call {
    Call { method: Method::POST, path: path.to_owned(), body: body.to_string().into_bytes() }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("the answer is not what the protocol says: {error}"))
}

/// What no server may say.
fn sound(answer: Answer) -> Result<Answer, String> {
    let (tokens, logprobs) = (answer.tokens.len(), answer.logprobs.len());
    if tokens != logprobs {
        return Err(format!("the answer has {tokens} tokens and {logprobs} log-probs"));
    }
    if tokens == 0 && answer.ending != Ending::Aborted {
        return Err("the answer has no token".to_owned());
    }
    if let Some(at) = answer.logprobs.iter().position(|logprob| !logprob.is_finite() || *logprob > 1e-3) {
        return Err(format!("the log-prob of token {at} is {}, must be at most 0", answer.logprobs[at]));
    }
    if let Some(spans) = &answer.weights {
        let mut at = 0;
        for span in spans {
            if span.start != at || span.end < span.start {
                return Err(format!(
                    "weight_versions do not cover the tokens one after the other: {spans:?}"
                ));
            }
            at = span.end;
        }
        if at != tokens {
            return Err(format!("weight_versions cover {at} of {tokens} tokens"));
        }
    }
    Ok(answer)
}
