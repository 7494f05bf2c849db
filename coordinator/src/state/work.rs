//! Work in flight: from a prompt of the queue, through the lease and the group that it is generated under, to
//! a complete group.

use serde::{Deserialize, Serialize};
use types::{BatchId, FailReason, LeaseId, MemberId, PolicyVersion, RolloutId, Timestamp};

use super::batches::Batches;
use super::event::ScoreSummary;
use super::groups::{CompleteGroup, EndedAttempt, Groups};
use super::leases::{Grant, Leases};
use super::members::Members;
use super::plan::RunPlan;
use super::prompt_queue::{LeaseBounds, PromptCounts, PromptQueue};

/// Prompts that are queued, leased, or have a response awaited.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Work {
    pub(super) leases: Leases,
    groups: Groups,
    queue: PromptQueue,
}

/// An actor that can take a lease.
struct ActorWithRoom<'m> {
    /// Groups that it has room for.
    room: u64,
    member: &'m MemberId,
    /// What it would generate with.
    version: PolicyVersion,
}

/// What the end of an attempt means.
pub(super) enum AttemptEnd {
    /// Nothing: it was not awaited, so it has ended before.
    Late,
    /// Other responses of its group are awaited.
    GroupOpen,
    /// It was the last that its group awaited.
    GroupComplete(CompleteGroup),
}

/// Attempts of a lease that failed together.
#[derive(Default)]
pub(super) struct FailedAttempts {
    /// How many there are.
    pub(super) count: u64,
    /// Groups that awaited nothing else.
    pub(super) complete: Vec<CompleteGroup>,
}

/// A lease that ran out.
pub(super) struct ExpiredLease {
    pub(super) id: LeaseId,
    pub(super) actor: MemberId,
    pub(super) failed: FailedAttempts,
}

impl Work {
    /// Prompts with a response awaited.
    pub(super) fn open_prompts(&self) -> u64 {
        self.groups.open_count()
    }

    /// Attempts issued and not ended, or scored in an open group.
    pub(super) fn in_flight(&self) -> u64 {
        self.groups.in_flight()
    }

    /// Leases the emptiest actor what it has room for, or the next one if there is nothing that it may begin.
    pub(super) fn grant(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        members: &Members,
        batches: &Batches,
    ) -> Option<(MemberId, Grant)> {
        let counts = PromptCounts {
            trained: batches.trained().0 * plan.batch_prompts,
            open: self.groups.open_count(),
            complete: batches.untrained_prompts(),
        };
        for ActorWithRoom { room, member, version } in self.actors_with_room(plan, members, batches.trained())
        {
            let bounds = LeaseBounds { room, capacity: counts.capacity(plan, version) };
            let next = self.queue.next_lease(plan, &self.groups, bounds);
            for prompt in next.opened {
                self.groups.open(prompt, plan.group_size);
            }
            if !next.prompts.is_empty() {
                let id = self.leases.next_id();
                let groups = self.groups.issue(&next.prompts, id);
                let grant = Grant { id, groups, timeout: plan.lease_timeout };
                self.leases.hold(now, member.clone(), &grant);
                return Some((member.clone(), grant));
            }
        }
        None
    }

    /// Actors that may be given a lease now; the emptiest first, then by name.
    fn actors_with_room<'m>(
        &self,
        plan: &RunPlan,
        members: &'m Members,
        trained: BatchId,
    ) -> Vec<ActorWithRoom<'m>> {
        let oldest = trained.0.saturating_sub(plan.max_staleness);
        let mut able = Vec::new();
        for (member, actor) in members.actors() {
            if let Some(version) = actor.usable_version().filter(|version| version.0 >= oldest) {
                let room = self.leases.room(plan, member, &actor.load);
                able.push(ActorWithRoom { room, member, version });
            }
        }
        able.retain(|actor| actor.room > 0);
        able.sort_by_key(|actor| std::cmp::Reverse(actor.room));
        able
    }

    /// A response came back scored.
    pub(super) fn score(&mut self, plan: &RunPlan, summary: ScoreSummary) -> AttemptEnd {
        let ended = self.groups.score(summary);
        self.end(plan, ended)
    }

    /// An attempt brought no scored response: its prompt waits for an actor again, unless it is given up.
    pub(super) fn fail(&mut self, plan: &RunPlan, id: RolloutId, reason: FailReason) -> AttemptEnd {
        let ended = self.groups.fail(id, reason, plan.max_attempts);
        if ended.is_some() {
            self.queue.put_back(plan, &self.groups, id.prompt);
        }
        self.end(plan, ended)
    }

    fn end(&mut self, plan: &RunPlan, ended: Option<EndedAttempt>) -> AttemptEnd {
        let Some(EndedAttempt { lease, complete }) = ended else {
            return AttemptEnd::Late;
        };
        if let Some(prompts) = self.leases.attempt_ended(lease) {
            self.queue.put_back_lease(plan, &self.groups, prompts);
        }
        complete.map_or(AttemptEnd::GroupOpen, AttemptEnd::GroupComplete)
    }

    /// Fails what a lost actor was to generate, but for the attempts that it is `holding` still.
    pub(super) fn fail_leases_of(
        &mut self,
        plan: &RunPlan,
        actor: &MemberId,
        holding: &[RolloutId],
    ) -> FailedAttempts {
        let mut failed = FailedAttempts::default();
        for lease in self.leases.of_actor(actor) {
            for id in self.awaited_under(lease) {
                if !holding.contains(&id) {
                    failed.add(self.fail(plan, id, FailReason::ActorLost));
                }
            }
        }
        failed
    }

    /// Fails what leases past their deadline still await.
    pub(super) fn expire_leases(&mut self, now: Timestamp, plan: &RunPlan) -> Vec<ExpiredLease> {
        let mut expired = Vec::new();
        for id in self.leases.expired(now) {
            let Some(actor) = self.leases.holder(id).cloned() else { continue };
            let mut failed = FailedAttempts::default();
            for attempt in self.awaited_under(id) {
                failed.add(self.fail(plan, attempt, FailReason::LeaseExpired));
            }
            expired.push(ExpiredLease { id, actor, failed });
        }
        expired
    }

    fn awaited_under(&self, lease: LeaseId) -> Vec<RolloutId> {
        let prompts = self.leases.prompts(lease).iter();
        prompts.flat_map(|prompt| self.groups.awaited_under(*prompt, lease)).collect()
    }

    /// Ends all work because the run is over; yields the attempts that were in flight.
    pub(super) fn stop(&mut self) -> Vec<RolloutId> {
        self.leases.clear();
        self.queue.clear();
        self.groups.close_all()
    }
}

impl FailedAttempts {
    /// Adds one, unless it had ended before.
    pub(super) fn add(&mut self, end: AttemptEnd) {
        match end {
            AttemptEnd::Late => {}
            AttemptEnd::GroupOpen => self.count += 1,
            AttemptEnd::GroupComplete(group) => {
                self.count += 1;
                self.complete.push(group);
            }
        }
    }
}
