//! Who may join the run, and what follows when somebody comes or goes.

use types::link::actor::{ActorCommand, ActorHello};
use types::link::learner::{LearnerCommand, LearnerHello};
use types::link::reward::{RewardCommand, RewardHello};
use types::{MemberId, Timestamp};

use super::State;
use super::durable::Durable;
use super::effect::{Applied, Effect};
use super::event::{ActorEvent, Event, LearnerEvent, RewardEvent};
use super::fact::{Fact, LearnerFacts};
use super::members::Joining;
use super::phase::Phase;
use super::plan::RunPlan;
use super::progress::Progress;
use super::role::Role;

impl State {
    /// Whether the member of this event may join.
    ///
    /// # Errors
    /// Says why it may not, and what to do.
    pub fn check_joining(&self, now: Timestamp, event: &Event) -> Result<(), String> {
        let plan = &self.durable.plan;
        let at = Joining { now, timeout: plan.heartbeat_timeout };
        match event {
            Event::Actor { event: ActorEvent::Joined(hello), .. } => {
                plan.check_run(hello.run.as_ref()).map_err(|error| error.to_string())?;
                self.members.check_actor(at, hello).map_err(|error| error.to_string())
            }
            Event::Reward { event: RewardEvent::Joined(hello), .. } => {
                plan.check_run(hello.run.as_ref()).map_err(|error| error.to_string())?;
                self.members.check_reward_server(at, hello).map_err(|error| error.to_string())
            }
            Event::Learner(LearnerEvent::Joined(hello)) => {
                plan.check_run(hello.run.as_ref()).map_err(|error| error.to_string())?;
                self.members
                    .check_learner(at, hello, self.durable.learner())
                    .map_err(|error| error.to_string())?;
                self.durable.batches.check_learner(hello.trained).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        }
    }

    /// The coordinator's process has started over its journal: every stream is broken, nothing else has
    /// changed.
    pub(super) fn started(&mut self, now: Timestamp, plan: RunPlan, out: &mut Applied) {
        let timeout = plan.heartbeat_timeout;
        self.record(now, Fact::Started(Box::new(plan)), out);
        let short_of_room = self.short_of_room.take();
        *self = Self { short_of_room, ..Self::over(self.durable.clone()) };
        self.progress = Progress::from(now, &self.durable.plan);
        self.members.listen_from(now);
        for holder in self.durable.work.leases.holders() {
            self.members.expect_actor(now, timeout, holder);
        }
    }

    pub(super) fn actor_joined(&mut self, now: Timestamp, hello: ActorHello, out: &mut Applied) {
        let member = hello.member.clone();
        let event = Event::Actor { member: member.clone(), event: ActorEvent::Joined(hello.clone()) };
        if let Err(reason) = self.check_joining(now, &event) {
            return out.refuse(Role::Actor, member, reason);
        }
        let weights = hello.weights.filter(|(version, hash)| self.durable.knows(*version, *hash));
        self.weights.actor_left(now, &member);
        self.members.join_actor(now, self.durable.plan.heartbeat_timeout, &hello, weights);
        self.lapse_work_of(now, &member, &hello.holding, out);
        self.actor_changed(now, &member);
        out.tell_actor(member.clone(), ActorCommand::Welcome(self.durable.plan.actor_welcome()));
        out.tell_actor(member.clone(), ActorCommand::RewardServers(self.members.reward_addresses()));
        if self.phase != Phase::Running {
            out.tell_actor(member, ActorCommand::Drain);
        }
    }

    pub(super) fn actor_disconnected(&mut self, now: Timestamp, member: &MemberId) {
        self.members.hear_actor(now, member);
        self.members.disconnect_actor(member);
        self.weights.actor_left(now, member);
        self.refresh_room(member);
    }

    pub(super) fn reward_server_joined(&mut self, now: Timestamp, hello: RewardHello, out: &mut Applied) {
        let member = hello.member.clone();
        let event = Event::Reward { member: member.clone(), event: RewardEvent::Joined(hello.clone()) };
        if let Err(reason) = self.check_joining(now, &event) {
            return out.refuse(Role::RewardServer, member, reason);
        }
        let command = RewardCommand::Welcome { run: self.durable.plan.run.clone() };
        out.effects.push(Effect::Reward { member, command });
        self.members.join_reward_server(now, self.durable.plan.heartbeat_timeout, hello);
        self.reward_servers_changed = true;
    }

    pub(super) fn learner_joined(&mut self, now: Timestamp, hello: LearnerHello, out: &mut Applied) {
        if let Err(reason) = self.check_joining(now, &Event::Learner(LearnerEvent::Joined(hello.clone()))) {
            return out.refuse(Role::Learner, hello.member, reason);
        }
        let facts = LearnerFacts {
            member: hello.member.clone(),
            incarnation: hello.incarnation,
            trained: hello.trained,
            checkpointed: hello.checkpointed,
            weights: (hello.manifest.version(), hello.manifest.hash()),
            steps: hello.steps.clone(),
        };
        self.record(now, Fact::LearnerJoined(Box::new(facts)), out);
        self.progress.moved(now);
        self.weights.learner_joined(now, hello.manifest.clone(), &self.members);
        self.members.join_learner(now, self.durable.plan.heartbeat_timeout, hello);
        let Durable { plan, learner_term, began, .. } = &self.durable;
        out.tell_learner(plan.learner_welcome(*learner_term, *began));
        if let Some(best) = self.durable.work.evaluations.best() {
            out.tell_learner(LearnerCommand::KeepBest(best));
        }
        if self.phase != Phase::Running {
            out.tell_learner(LearnerCommand::Checkpoint);
        }
    }

    pub(super) fn learner_disconnected(&mut self, now: Timestamp) {
        self.members.disconnect_learner();
        self.weights.forget_groups(now);
    }
}
