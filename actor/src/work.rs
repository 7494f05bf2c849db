//! What a lease asks for, response by response.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use types::RolloutId;
use types::link::actor::{Lease, LeasedPrompt};

/// No lease is taken to last longer.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A lease that waits for the engine.
#[derive(Debug)]
pub(crate) struct HeldLease {
    pub(crate) prompts: Vec<LeasedPrompt>,
    /// When the coordinator gives it to somebody else. By our own clock, and later than by the coordinator's by the way of
    /// the message.
    pub(crate) until: Instant,
}

impl From<Lease> for HeldLease {
    fn from(lease: Lease) -> Self {
        Self { prompts: lease.prompts, until: Instant::now() + lease.time_limit.min(LONGEST_LEASE) }
    }
}

impl HeldLease {
    /// The attempts that it asks for.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = RolloutId> {
        self.prompts.iter().flat_map(|prompt| &prompt.wanted).copied()
    }
}

/// A response that the engine works on.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) id: RolloutId,
    pub(crate) prompt_tokens: Arc<[u32]>,
    pub(crate) fields: Arc<str>,
    /// When its lease runs out.
    pub(crate) until: Instant,
    /// Generated only to keep the batch composition (design D7): the coordinator has it already.
    pub(crate) unwanted: bool,
}

/// The responses to generate for a leased prompt: those wanted, or in deterministic mode the whole group.
pub(crate) fn group_work(
    leased: &LeasedPrompt,
    until: Instant,
    prompt_tokens: &Arc<[u32]>,
    whole_group: bool,
) -> Vec<Work> {
    let work = |id: RolloutId, unwanted: bool| Work {
        id,
        prompt_tokens: Arc::clone(prompt_tokens),
        fields: Arc::clone(&leased.prompt.fields),
        until,
        unwanted,
    };
    if !whole_group {
        return leased.wanted.iter().map(|id| work(*id, false)).collect();
    }
    let sibling = |sibling: u16| {
        let wanted = leased.wanted.iter().find(|id| id.sibling == sibling);
        let stand_in = RolloutId { prompt: leased.prompt.id, sibling, attempt: 0 };
        work(*wanted.unwrap_or(&stand_in), wanted.is_none())
    };
    (0..leased.group_size).map(sibling).collect()
}
