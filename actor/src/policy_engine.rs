//! What draws the policy's tokens: an engine of the actor's own, or one behind a URL.

use engine::{EngineClient, EngineHandle, Error, Event, Refusal, Request, Totals};
use types::PolicyVersion;

use crate::external::ExternalEngine;

/// The engine in use.
#[derive(Debug)]
pub(crate) enum PolicyEngine {
    /// On a thread of this process.
    Own {
        handle: EngineHandle,
        /// The rollout loop's way to it.
        client: EngineClient,
    },
    /// A server of its own.
    External(Box<ExternalEngine>),
}

impl PolicyEngine {
    /// Queues requests; for each whether it was taken.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub(crate) async fn submit(&mut self, requests: Vec<Request>) -> Result<Vec<Result<(), Refusal>>, Error> {
        match self {
            Self::Own { client, .. } => client.submit(requests).await,
            Self::External(external) => Ok(external.submit(requests)),
        }
    }

    /// Gives up a response; false when none of this id is under way.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub(crate) async fn cancel(&mut self, id: u64) -> Result<bool, Error> {
        match self {
            Self::Own { client, .. } => client.cancel(id).await,
            Self::External(external) => Ok(external.cancel(id)),
        }
    }

    /// The next event. The future may be dropped at any time.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub(crate) async fn next_event(&mut self) -> Result<Event, Error> {
        match self {
            Self::Own { client, .. } => client.next_event().await,
            Self::External(external) => Ok(external.next_event().await),
        }
    }

    /// Gives the weights in use the number of another version whose weights they are, too.
    ///
    /// # Errors
    /// When the version is older, or the engine has stopped.
    pub(crate) async fn renumber(&self, version: PolicyVersion) -> Result<(), Error> {
        match self {
            Self::Own { handle, .. } => handle.renumber(version).await,
            Self::External(external) => {
                external.remote().renumber(version);
                Ok(())
            }
        }
    }

    /// Longest prompt and response together, in tokens.
    pub(crate) fn context_tokens(&self) -> usize {
        match self {
            Self::Own { handle, .. } => handle.context_tokens(),
            Self::External(external) => external.context_tokens(),
        }
    }

    /// What was done by the end of the last step; of an external engine nothing is known.
    pub(crate) fn totals_so_far(&self) -> Option<Totals> {
        match self {
            Self::Own { handle, .. } => Some(handle.totals_so_far()),
            Self::External(_) => None,
        }
    }

    /// Whether it can be given no work for now.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Own { .. } => false,
            Self::External(external) => external.is_lost(),
        }
    }
}
