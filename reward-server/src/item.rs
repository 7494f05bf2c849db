//! What the scorers see of a response.

use std::sync::Arc;

use model::Tokenizer;
use serde_json::{Map, Value};
use types::{FinishReason, Rollout};

use crate::fault::Fault;

/// A response with its prompt.
#[derive(Debug)]
pub(crate) struct Item {
    /// `[prompt + response]` token ids.
    pub(crate) tokens: Arc<[u32]>,
    /// Where the response begins in `tokens`; at least one token precedes it.
    pub(crate) response_start: usize,
    /// The prompt as text; empty where no scorer reads text.
    pub(crate) prompt: String,
    /// The response as text, special tokens left out; empty where no scorer reads text.
    pub(crate) response: String,
    /// The data set's line.
    pub(crate) fields: Map<String, Value>,
    /// The response was cut off.
    pub(crate) truncated: bool,
}

impl Item {
    /// A rollout, with texts if there is a tokenizer to make them.
    pub(crate) fn of_rollout(rollout: &Rollout, tokenizer: Option<&Tokenizer>) -> Result<Self, Fault> {
        let fields = parse_fields(&rollout.fields)?;
        let decode = |tokens: &[u32], skip_special: bool| match tokenizer {
            Some(tokenizer) => {
                tokenizer.decode(tokens, skip_special).map_err(|error| Fault::error(error.to_string()))
            }
            None => Ok(String::new()),
        };
        let prompt = match fields.get("prompt") {
            Some(Value::String(prompt)) => prompt.clone(),
            // A chat or bare tokens: the text that the policy saw, markers of the template included.
            _ => decode(&rollout.prompt_tokens, false)?,
        };
        Ok(Self {
            tokens: rollout.prompt_tokens.iter().chain(&rollout.response_tokens).copied().collect(),
            response_start: rollout.prompt_tokens.len(),
            prompt,
            response: decode(&rollout.response_tokens, true)?,
            fields,
            truncated: rollout.finish_reason == FinishReason::Length,
        })
    }

    /// The response's token ids.
    pub(crate) fn response_tokens(&self) -> &[u32] {
        &self.tokens[self.response_start..]
    }
}

fn parse_fields(text: &str) -> Result<Map<String, Value>, Fault> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    let parsed = serde_json::from_str(text);
    parsed.map_err(|error| Fault::error(format!("the prompt's fields are no JSON object: {error}")))
}
