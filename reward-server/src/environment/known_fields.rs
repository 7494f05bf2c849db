//! What an environment is told of prompts where no coordinator knows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Fields of prompts by the prompts' numbers: what an environment's `reset` is told.
#[derive(Debug, Clone, Default)]
pub struct KnownFields(Arc<Mutex<HashMap<u64, Arc<str>>>>);

impl KnownFields {
    /// A prompt has these fields, a JSON object.
    pub fn put(&self, prompt: u64, fields: Arc<str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(prompt, fields);
    }

    /// No episode of a prompt begins any more.
    pub fn forget(&self, prompt: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&prompt);
    }

    /// Those of a prompt; none where nobody has said them.
    pub(super) fn of(&self, prompt: u64) -> Arc<str> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&prompt).cloned().unwrap_or_else(|| "{}".into())
    }
}
