//! Prompts as the coordinator leases them: not yet token ids, because only roles with a tokenizer make those.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Invalid, PromptId};

/// Most bytes of JSON that a prompt's fields may have (hidden tests, labels).
pub const MAX_FIELDS_BYTES: usize = 4 << 20;

/// What the policy is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptContent {
    /// Text, tokenized as it stands.
    Text(String),
    /// Token ids, used as they stand.
    Tokens(Vec<u32>),
    /// Chat messages as a JSON list, rendered by the policy's chat template with the generation prompt added.
    Messages(String),
}

/// One prompt of the data set, with what the scorers need to know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    id: PromptId,
    content: PromptContent,
    fields: Arc<str>,
}

impl Prompt {
    /// A prompt whose content is not empty and whose fields, a JSON object, are of bounded size.
    ///
    /// # Errors
    /// When the content is empty or the fields exceed [`MAX_FIELDS_BYTES`].
    pub fn new(id: PromptId, content: PromptContent, fields: Arc<str>) -> Result<Self, Invalid> {
        let empty = match &content {
            PromptContent::Text(text) | PromptContent::Messages(text) => text.is_empty(),
            PromptContent::Tokens(tokens) => tokens.is_empty(),
        };
        let problem = if empty { Some("is empty".to_owned()) } else { fields_problem(&fields) };
        match problem {
            Some(problem) => Err(Invalid::new(format!("prompt {id}"), problem)),
            None => Ok(Self { id, content, fields }),
        }
    }

    /// Which prompt of which epoch.
    pub fn id(&self) -> PromptId {
        self.id
    }

    /// What the policy is given.
    pub fn content(&self) -> &PromptContent {
        &self.content
    }

    /// The data set's line as JSON: scorers find their fields here (`test`, `cases`, `label`, ...). It stays
    /// with the coordinator and the reward servers, which ask for it; with an actor it is empty.
    pub fn fields(&self) -> &Arc<str> {
        &self.fields
    }

    /// What the policy is given, by value.
    pub fn into_content(self) -> PromptContent {
        self.content
    }
}

/// What is wrong with the fields of a prompt, if anything is.
pub(crate) fn fields_problem(fields: &str) -> Option<String> {
    let bytes = fields.len();
    (bytes > MAX_FIELDS_BYTES)
        .then(|| format!("its fields have {bytes} bytes, at most {MAX_FIELDS_BYTES} travel"))
}
