//! The fields of a line of examples.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The fields that a line may have, whatever the objective; each takes those it needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ExampleLine {
    pub(super) prompt: Option<Content>,
    #[serde(alias = "completion")]
    pub(super) response: Option<Content>,
    pub(super) messages: Option<Vec<Value>>,
    pub(super) tools: Option<Vec<Value>>,
    pub(super) prompt_tokens: Option<Vec<u32>>,
    pub(super) response_tokens: Option<Vec<u32>>,
    pub(super) chosen: Option<Content>,
    pub(super) rejected: Option<Content>,
    pub(super) chosen_tokens: Option<Vec<u32>>,
    pub(super) rejected_tokens: Option<Vec<u32>>,
    pub(super) margin: Option<f32>,
    /// True or false where an objective reads it; prompts may have another one for scorers.
    pub(super) label: Option<Value>,
}

/// What somebody said: text as it stands, or messages for the chat template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    Text(String),
    Messages(Vec<Value>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(messages) if messages.iter().all(Value::is_object) => Ok(Self::Messages(messages)),
            _ => Err(D::Error::custom(
                "prompt, response, chosen and rejected are text or a list of messages ({\"role\", \"content\"})",
            )),
        }
    }
}
