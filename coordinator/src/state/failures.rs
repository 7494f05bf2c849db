//! Attempts that failed, as people are told of them: the first for its role and reason with what was said
//! about it, the others as a number once a minute.

use std::collections::BTreeMap;
use std::time::Duration;

use types::{FailReason, MemberId, RolloutFailure, Timestamp};

use super::State;
use super::effect::{Applied, Effect};
use super::fact::Fact;
use super::notice::Notice;
use super::role::Role;

/// Shortest time between two notices for one role and reason.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// Who reports a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reporter {
    pub(super) role: Role,
    pub(super) member: MemberId,
}

/// All failures since this coordinator started.
#[derive(Debug, Clone, Default)]
pub(super) struct FailureLog {
    kinds: BTreeMap<(Role, FailReason), Kind>,
}

/// Failures of one role for one reason.
#[derive(Debug, Clone)]
struct Kind {
    count: u64,
    /// What was said about the first one.
    detail: String,
    unsaid: u64,
    said_at: Timestamp,
}

/// Failures of one role for one reason, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureView<'a> {
    /// Who reports them.
    pub role: Role,
    /// Why.
    pub reason: FailReason,
    /// How many, since this coordinator started.
    pub count: u64,
    /// What was said about the first one.
    pub detail: &'a str,
}

impl FailureLog {
    /// An attempt has failed. Yields what people are to be told.
    pub(super) fn note(
        &mut self,
        now: Timestamp,
        reporter: Reporter,
        reason: FailReason,
        detail: &str,
    ) -> Option<Notice> {
        let Reporter { role, member } = reporter;
        let Some(kind) = self.kinds.get_mut(&(role, reason)) else {
            let detail = detail.to_owned();
            let kind = Kind { count: 1, detail: detail.clone(), unsaid: 0, said_at: now };
            self.kinds.insert((role, reason), kind);
            return Some(Notice::FirstFailure { reason, role, member, detail });
        };
        kind.count += 1;
        kind.unsaid += 1;
        let within = now.since(kind.said_at);
        if within < NOTICE_INTERVAL {
            return None;
        }
        kind.said_at = now;
        let count = std::mem::take(&mut kind.unsaid);
        Some(Notice::MoreFailures { reason, role, count, within })
    }

    /// Every kind.
    pub(super) fn kinds(&self) -> impl Iterator<Item = FailureView<'_>> {
        self.kinds.iter().map(|((role, reason), kind)| FailureView {
            role: *role,
            reason: *reason,
            count: kind.count,
            detail: &kind.detail,
        })
    }
}

impl State {
    /// An attempt has failed: it is recorded, and people are told.
    pub(super) fn attempt_failed(
        &mut self,
        now: Timestamp,
        reporter: Reporter,
        failure: RolloutFailure,
        out: &mut Applied,
    ) {
        let RolloutFailure { id, reason, detail, .. } = failure;
        let taken = self.record(now, Fact::Failed { id, reason }, out);
        // What only says something about the actor says nothing about the next attempt.
        let telling =
            !matches!(reason, FailReason::ActorLost | FailReason::Returned | FailReason::LeaseExpired);
        if taken && telling {
            self.progress.failed(reason, &detail);
            out.effects.extend(self.failures.note(now, reporter, reason, &detail).map(Effect::Notice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(log: &mut FailureLog, second: u64, role: Role, detail: &str) -> Option<Notice> {
        let reporter = Reporter { role, member: "one".parse().unwrap() };
        log.note(Timestamp(second * 1000), reporter, FailReason::Unsupported, detail)
    }

    #[test]
    fn the_first_of_a_role_and_reason_is_told_in_full_and_the_others_once_a_minute() {
        let mut log = FailureLog::default();
        let first = note(&mut log, 0, Role::RewardServer, "no field \"label\"");
        assert!(matches!(first, Some(Notice::FirstFailure { detail, .. }) if detail == "no field \"label\""));
        assert!(matches!(note(&mut log, 1, Role::Actor, "x"), Some(Notice::FirstFailure { .. })));
        for second in 1..60 {
            assert_eq!(note(&mut log, second, Role::RewardServer, "other"), None);
        }
        let more = note(&mut log, 61, Role::RewardServer, "other");
        assert!(matches!(more, Some(Notice::MoreFailures { count: 60, .. })), "{more:?}");
        let views: Vec<FailureView<'_>> = log.kinds().collect();
        assert_eq!((views[1].count, views[1].detail), (61, "no field \"label\""));
    }
}
