//! What is past its deadline: it is given up, and members that are silent are lost.

use types::{FailReason, Timestamp};

use super::State;
use super::durable::Durable;
use super::effect::Applied;
use super::fact::Fact;
use super::members::Watched;
use super::notice::Notice;
use super::phase::Drain;
use super::role::Role;

impl State {
    /// Gives up what is past its deadline.
    pub(super) fn expire(&mut self, now: Timestamp, out: &mut Applied) {
        self.lose_silent_members(now, out);
        let Durable { plan, batches, .. } = &self.durable;
        if batches.waits_until(plan).is_some_and(|until| until <= now) {
            let (batch, timeout) = (batches.formed().next(), plan.straggler_timeout);
            out.notice(Notice::WaitEnded { batch, timeout });
            self.record(now, Fact::WaitEnded(batch), out);
        }
        if let Some(drain) = &mut self.drain {
            drain.expire(now);
        }
        while let Some(lease) = self.durable.work.leases.first_expired(now) {
            let ids = self.durable.work.awaited_under(lease);
            debug_assert!(!ids.is_empty(), "a lease ends with its last attempt");
            if ids.is_empty() {
                break;
            }
            if let Some(member) = self.durable.work.leases.holder(lease).cloned() {
                let attempts = ids.len() as u64;
                out.notice(Notice::LeaseExpired { lease, member, attempts });
            }
            self.record(now, Fact::Lapsed { ids, reason: FailReason::LeaseExpired }, out);
        }
        let timeout = self.durable.plan.broadcast_timeout;
        let expired = self.weights.expire(now, &self.durable.plan);
        if let Some((group, absent)) = expired.unformed {
            out.notice(Notice::BroadcastGroupUnformed { group, absent, timeout });
        }
        if let Some((version, silent)) = expired.unconfirmed {
            out.notice(Notice::BroadcastUnconfirmed { version, silent, timeout });
        }
    }

    fn lose_silent_members(&mut self, now: Timestamp, out: &mut Applied) {
        let timeout = self.durable.plan.heartbeat_timeout;
        let reason = format!("silent for {timeout:?}");
        loop {
            let leases = &self.durable.work.leases;
            match self.members.next_silent(now, timeout, |member| leases.has_any(member)) {
                None => break,
                Some(Watched::Actor(member)) => {
                    out.notice(Notice::ActorLost { member: member.clone(), timeout });
                    self.members.disconnect_actor(&member);
                    self.weights.actor_left(now, &member);
                    self.lapse_work_of(now, &member, &[], out);
                    self.refresh_room(&member);
                    out.disconnect(Role::Actor, member, &reason);
                }
                Some(Watched::Reward(member)) => {
                    self.members.disconnect_reward_server(&member);
                    self.reward_servers_changed = true;
                    out.disconnect(Role::RewardServer, member, &reason);
                }
                Some(Watched::Learner) => {
                    let member = self.members.learner().map(|learner| learner.member.clone());
                    self.learner_disconnected(now);
                    if let Some(member) = member {
                        out.disconnect(Role::Learner, member, &reason);
                    }
                }
            }
        }
    }

    /// The next moment at which [`State::settle`] can change something; none while nothing is awaited.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let Durable { plan, work, batches, .. } = &self.durable;
        let deadlines = [
            batches.waits_until(plan),
            work.leases.next_deadline(),
            self.weights.next_deadline(plan, &self.members),
            self.members.next_silence(),
            self.drain.and_then(Drain::deadline),
            self.progress.next_check(),
        ];
        deadlines.into_iter().flatten().min()
    }
}
