//! What a lease asks for, response by response.

use std::sync::Arc;

use types::RolloutId;
use types::link::actor::LeasedPrompt;

/// A response that the engine works on.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) id: RolloutId,
    pub(crate) prompt_tokens: Arc<[u32]>,
    pub(crate) fields: Arc<str>,
    /// Generated only to keep the batch composition (design D7): the coordinator has it already.
    pub(crate) unwanted: bool,
}

/// The responses to generate for a leased prompt: those wanted, or in deterministic mode the whole group.
pub(crate) fn group_work(leased: &LeasedPrompt, prompt_tokens: &Arc<[u32]>, whole_group: bool) -> Vec<Work> {
    let work = |id: RolloutId, unwanted: bool| Work {
        id,
        prompt_tokens: Arc::clone(prompt_tokens),
        fields: Arc::clone(&leased.prompt.fields),
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
