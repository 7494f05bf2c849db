//! A call in an agent's episode, from its beginning to its end.

use std::sync::{Arc, Mutex, PoisonError};

use engine::Finished;
use model::Tokenizer;
use model::tokenizer::Error;
use tokio::time::Instant;
use types::Sampling;

use super::Agents;
use super::record::{Joined, Record};
use crate::chat::Reply;

/// Keeps what is drawn in a call. One that is dropped before keeps nothing: the agent did not hear of it.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(super) agents: Agents,
    pub(super) session: String,
    /// Tokens that the call may draw.
    pub(super) reserved: u32,
    pub(super) record: Arc<Mutex<Record>>,
    pub(super) sampling: Sampling,
    pub(super) joined: Option<Joined>,
}

impl Recorder {
    /// Keeps what was drawn, unless the episode is over.
    ///
    /// # Errors
    /// When the tokens have no text.
    pub(crate) fn record(
        mut self,
        tokenizer: &Tokenizer,
        finished: &Finished,
        reply: Reply,
    ) -> Result<(), Error> {
        let Some(joined) = self.joined.take() else { return Ok(()) };
        let drawn = u32::try_from(finished.response_tokens.len()).unwrap_or(u32::MAX);
        if !self.agents.change(|table| table.drew(&self.session, drawn)) {
            return Ok(());
        }
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.keep(tokenizer, (joined, reply), (finished, &self.sampling))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.agents.change(|table| table.call_over(&self.session, self.reserved, Instant::now()));
    }
}
