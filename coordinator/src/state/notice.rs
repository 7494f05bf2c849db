//! What a person who watches the run wants to know of what the state decided.

use std::time::Duration;

use algo::filtration::Strategy;
use types::{BatchId, BroadcastGroupId, FailReason, LeaseId, MemberId, PolicyVersion, PromptId};

use super::detectors::Alarm;
use super::progress::Cause;
use super::role::Role;

/// Something that the run has recovered from, and what it cost.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// An actor was silent for longer than it may: what it worked on is issued anew.
    ActorLost {
        /// The actor.
        member: MemberId,
        /// The silence that is allowed.
        timeout: Duration,
    },
    /// A lease ran out: what it still awaited is issued anew.
    LeaseExpired {
        /// The lease.
        lease: LeaseId,
        /// Its holder.
        member: MemberId,
        /// Attempts that it still awaited.
        attempts: u64,
    },
    /// An actor did not get a version.
    WeightsFailed {
        /// The actor.
        member: MemberId,
        /// The version.
        version: PolicyVersion,
        /// What it says about it.
        detail: String,
    },
    /// A member says that its end of a broadcast group is dead.
    BroadcastGroupFailed {
        /// The group.
        group: BroadcastGroupId,
        /// The member.
        member: MemberId,
        /// What it says about it.
        detail: String,
    },
    /// A broadcast group ends because a member did not receive what was broadcast.
    BroadcastGroupEnded {
        /// The group.
        group: BroadcastGroupId,
        /// The member.
        member: MemberId,
    },
    /// A broadcast group goes through the hosts' memory although some of its members have GPUs.
    BroadcastThroughHosts {
        /// The group.
        group: BroadcastGroupId,
        /// Why.
        reason: String,
    },
    /// A broadcast group did not form in time.
    BroadcastGroupUnformed {
        /// The group.
        group: BroadcastGroupId,
        /// Its members that are not connected.
        absent: Vec<MemberId>,
        /// The time that was allowed.
        timeout: Duration,
    },
    /// The learner says that a broadcast failed.
    BroadcastFailed {
        /// The version.
        version: PolicyVersion,
        /// What it says about it.
        detail: String,
    },
    /// A broadcast did not end in time.
    BroadcastUnconfirmed {
        /// The version.
        version: PolicyVersion,
        /// Members that did not say how it ended for them.
        silent: Vec<MemberId>,
        /// The time that was allowed.
        timeout: Duration,
    },
    /// A group that was ready is too old for its batch.
    GroupStale {
        /// The prompt.
        prompt: PromptId,
        /// The oldest version that drew a token of it.
        oldest: PolicyVersion,
        /// The batch.
        batch: BatchId,
    },
    /// The run goes on under another plan.
    PlanChanged {
        /// What has changed.
        changes: Vec<String>,
    },
    /// A batch does not wait any longer for groups that will be too old for the next one.
    WaitEnded {
        /// The batch.
        batch: BatchId,
        /// How long it has waited.
        timeout: Duration,
    },
    /// As many groups were generated in vain for a batch as are allowed.
    RefillLimit {
        /// The batch.
        batch: BatchId,
        /// Groups that it has all the same.
        groups: u64,
        /// Groups of a whole batch.
        of: u64,
        /// Groups of which nothing trains.
        in_vain: u64,
    },
    /// Groups that are complete from now on are filtered by another strategy.
    StrategyChosen {
        /// The strategy before.
        before: Strategy,
        /// The strategy.
        strategy: Strategy,
        /// Why.
        reason: String,
    },
    /// A member does not say which tokens it reads; said of the first of its role.
    VocabularyUnsaid {
        /// What it is.
        role: Role,
        /// The member.
        member: MemberId,
    },
    /// The first failure of a role for its reason.
    FirstFailure {
        /// The reason.
        reason: FailReason,
        /// What reports it.
        role: Role,
        /// Who reports it.
        member: MemberId,
        /// What it says about it.
        detail: String,
    },
    /// More failures of a role for a reason that is known.
    MoreFailures {
        /// The reason.
        reason: FailReason,
        /// What reports them.
        role: Role,
        /// How many since it was said last.
        count: u64,
        /// The time since then.
        within: Duration,
    },
    /// The reward looks as if it were gamed, or no longer does.
    Alarm(Alarm),
    /// The run cannot go on as it is.
    Hopeless {
        /// Why.
        cause: Cause,
        /// How long that may hold.
        timeout: Duration,
    },
    /// The run ends, because it cannot go on.
    GivenUp {
        /// Why.
        cause: Cause,
    },
}
