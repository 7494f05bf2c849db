//! What the scorers see of a response.

use std::borrow::Cow;
use std::sync::Arc;

use model::Tokenizer;
use serde_json::{Map, Value};
use types::{FinishReason, Rollout};

use crate::score_error::ScoreError;

/// A response with its prompt.
#[derive(Debug)]
pub(crate) struct ScorerInput {
    /// `[prompt + response]` token ids.
    pub(crate) tokens: Arc<[u32]>,
    /// Where the response begins in `tokens`; at least one token precedes it.
    pub(crate) response_start: usize,
    /// The prompt as text; empty where no scorer reads text.
    pub(crate) prompt: String,
    /// The response as text, special tokens left out; empty where no scorer reads text.
    pub(crate) response: String,
    /// The text of the prompt's last tokens, special ones included; empty where no scorer reads text.
    pub(crate) prompt_end: String,
    /// The data set's line.
    pub(crate) fields: Map<String, Value>,
    /// The response was cut off.
    pub(crate) truncated: bool,
}

impl ScorerInput {
    /// A rollout, with texts if there is a tokenizer to make them.
    ///
    /// # Errors
    /// Where the rollout's fields are no JSON object, or its tokens are none of the tokenizer's.
    pub(crate) fn of_rollout(rollout: &Rollout, tokenizer: Option<&Tokenizer>) -> Result<Self, ScoreError> {
        let fields = parse_fields(rollout.fields())?;
        let prompt = match fields.get("prompt") {
            Some(Value::String(prompt)) => prompt.clone(),
            // A chat or bare tokens: the text that the policy saw, markers of the template included.
            _ => prompt_text(tokenizer, rollout.prompt_tokens())?,
        };
        let prompt_tokens = rollout.prompt_tokens();
        let end = &prompt_tokens[prompt_tokens.len().saturating_sub(extraction::THOUGHTS_TOKENS)..];
        Ok(Self {
            prompt_end: prompt_text(tokenizer, end)?,
            tokens: rollout.prompt_tokens().iter().chain(rollout.response_tokens()).copied().collect(),
            response_start: rollout.prompt_tokens().len(),
            prompt,
            response: response_text(tokenizer, rollout.prompt_tokens(), rollout.response_tokens())?,
            fields,
            truncated: rollout.finish_reason() == FinishReason::Length,
        })
    }

    /// The response with the mark that begins its thoughts, wherever that stands: what an answer is taken
    /// from.
    pub(crate) fn marked_response(&self) -> Cow<'_, str> {
        extraction::marked(&self.prompt_end, &self.response)
    }

    /// The response's token ids.
    pub(crate) fn response_tokens(&self) -> &[u32] {
        &self.tokens[self.response_start..]
    }
}

/// The text of a prompt with its special tokens; empty without a tokenizer.
fn prompt_text(tokenizer: Option<&Tokenizer>, prompt: &[u32]) -> Result<String, ScoreError> {
    let Some(tokenizer) = tokenizer else { return Ok(String::new()) };
    tokenizer.decode(prompt, false).map_err(undecodable)
}

/// The text of a response behind its prompt, without special tokens; empty without a tokenizer.
fn response_text(
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    response: &[u32],
) -> Result<String, ScoreError> {
    let Some(tokenizer) = tokenizer else { return Ok(String::new()) };
    tokenizer.response_text(prompt, response, true).map_err(undecodable)
}

fn undecodable(error: model::tokenizer::Error) -> ScoreError {
    ScoreError::error(error.to_string())
}

fn parse_fields(text: &str) -> Result<Map<String, Value>, ScoreError> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    let parsed = serde_json::from_str(text);
    parsed.map_err(|error| ScoreError::error(format!("the prompt's fields are no JSON object: {error}")))
}
