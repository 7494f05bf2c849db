//! Who is given what next: batches to the learner, leases to actors.

use types::link::learner::LearnerCommand;
use types::{PolicyVersion, Timestamp};

use super::State;
use super::durable::Durable;
use super::effect::{Applied, Effect};
use super::fact::{Fact, LeaseBounds};
use super::phase::Phase;
use super::room::Room;

impl State {
    /// Sends the learner what it is to train, so that it has enough to do. In deterministic mode nothing is
    /// trained beyond a version before its evaluation is over; a learner that has lost it gets there again.
    pub(super) fn send_batches(&mut self, out: &mut Applied) {
        let Durable { plan, work, batches, .. } = &self.durable;
        let last = work.evaluations.version_under_way().filter(|_| plan.deterministic);
        let Some(learner) = self.members.connected_learner_mut().filter(|_| self.phase == Phase::Running)
        else {
            return;
        };
        for batch in batches.unsent(learner.trained, learner.sent) {
            if last.is_some_and(|version| batch.id.0 > version.0) {
                break;
            }
            learner.sent = learner.sent.max(batch.id);
            out.effects.push(Effect::SendBatch(batch.clone()));
        }
    }

    /// Gives work to the actors that can take it, one lease at a time, to the emptiest first. Held-out
    /// prompts come first, so that they are asked of the version that they are to be asked of.
    pub(super) fn grant_leases(&mut self, now: Timestamp, out: &mut Applied) {
        let admits = self.phase == Phase::Running && self.short_of_room.is_none();
        while admits && !self.durable.is_complete() {
            let Some(lease) = self.held_out_lease().or_else(|| self.training_lease()) else { break };
            let granted = self.record(now, lease, out);
            debug_assert!(granted, "there was work for it");
            if !granted {
                break;
            }
        }
    }

    fn held_out_lease(&self) -> Option<Fact> {
        let version = self.durable.work.evaluations.wanted_version()?;
        let (member, Room { groups: room, .. }) = self.room.emptiest(version, |_| true)?;
        Some(Fact::Leased { member, bounds: LeaseBounds { room, capacity: 0, version, held_out: true } })
    }

    fn training_lease(&self) -> Option<Fact> {
        let Durable { plan, work, batches, .. } = &self.durable;
        if work.evaluations.is_over() {
            return None;
        }
        let oldest = PolicyVersion(batches.trained().0.saturating_sub(plan.max_staleness));
        let has_work = |version| work.has_work(plan, version, work.capacity(plan, batches, version));
        let emptiest = self.room.emptiest(oldest, has_work);
        let (member, Room { groups: room, version }) = emptiest?;
        let capacity = work.capacity(plan, batches, version);
        let bounds = LeaseBounds { room, capacity, version, held_out: false };
        Some(Fact::Leased { member, bounds })
    }

    /// A run that ends before its last planned batch ends with a checkpoint as well.
    pub(super) fn ask_for_last_checkpoint(&mut self, out: &mut Applied) {
        if !self.durable.batches.lacks_last_checkpoint() {
            return;
        }
        if let Some(learner) = self.members.connected_learner_mut().filter(|learner| !learner.is_asked_to_end)
        {
            learner.is_asked_to_end = true;
            out.tell_learner(LearnerCommand::Checkpoint);
        }
    }
}
