//! What reward servers are told of a lot's results once it is durable.

use std::collections::BTreeMap;

use types::link::reward::RewardCommand;
use types::{MemberId, RolloutId};

/// Answers to the results of one lot.
#[derive(Debug, Default)]
pub(crate) struct Acknowledgements {
    /// One command for each reward server, however many of its results the lot has.
    recorded: BTreeMap<MemberId, Vec<RolloutId>>,
    rejected: Vec<(MemberId, RewardCommand)>,
}

impl Acknowledgements {
    /// A reward server's result is in the lot, or it cannot be accepted for this reason.
    pub(crate) fn add(&mut self, member: MemberId, id: RolloutId, rejected: Option<String>) {
        match rejected {
            Some(reason) => self.rejected.push((member, RewardCommand::Rejected { id, reason })),
            None => self.recorded.entry(member).or_default().push(id),
        }
    }

    /// The commands, now that the lot is durable.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = (MemberId, RewardCommand)> + use<> {
        let Self { recorded, rejected } = std::mem::take(self);
        let recorded = recorded.into_iter().map(|(member, ids)| (member, RewardCommand::Recorded(ids)));
        rejected.into_iter().chain(recorded)
    }
}
