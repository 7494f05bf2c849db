//! Who may join the run, and what follows when somebody comes or goes.

use std::sync::Arc;

use types::link::actor::{ActorCommand, ActorHello};
use types::link::learner::{LearnerCommand, LearnerHello};
use types::link::reward::{RewardCommand, RewardHello};
use types::{MemberId, Timestamp};

use super::State;
use super::durable::Durable;
use super::effect::{Applied, Effect};
use super::event::{ActorEvent, Event, LearnerEvent, RewardEvent};
use super::fact::{Fact, LearnerFacts};
use super::members::{Joining, Recognised};
use super::notice::Notice;
use super::phase::Phase;
use super::plan::RunPlan;
use super::progress::Progress;
use super::refusal::{Refusal, RefusalCause};
use super::role::Role;
use super::vocabularies::Stated;

impl State {
    /// Whether the member of this event may join.
    ///
    /// # Errors
    /// Says why it may not, and what to do.
    pub fn check_joining(&self, now: Timestamp, event: &Event) -> Result<(), Refusal> {
        let plan = &self.durable.plan;
        let at = Joining { now, timeout: plan.heartbeat_timeout };
        let (run, name) = match event {
            Event::Actor { event: ActorEvent::Joined(hello), .. } => {
                (&hello.run, self.members.check_actor(at, hello))
            }
            Event::Reward { event: RewardEvent::Joined(hello), .. } => {
                (&hello.run, self.members.check_reward_server(at, hello))
            }
            Event::Learner(LearnerEvent::Joined(hello)) => {
                (&hello.run, self.members.check_learner(at, hello, self.durable.learner()))
            }
            _ => return Ok(()),
        };
        plan.check_run(run.as_ref()).map_err(|error| Refusal::new(RefusalCause::Run, error))?;
        name.map_err(|error| Refusal::new(RefusalCause::Name, error))?;
        if let Event::Learner(LearnerEvent::Joined(hello)) = event {
            let trained = self.durable.batches.check_learner(hello.trained);
            trained.map_err(|error| Refusal::new(RefusalCause::Weights, error))?;
        }
        self.stated(event).map_or(Ok(()), |stated| self.vocabularies.check(&stated))
    }

    /// What the member of this event says of its tokenizer.
    fn stated(&self, event: &Event) -> Option<Stated> {
        let (role, member, address, vocabulary) = match event {
            Event::Actor { event: ActorEvent::Joined(hello), .. } => {
                (Role::Actor, &hello.member, hello.source.clone(), &hello.vocabulary)
            }
            Event::Reward { event: RewardEvent::Joined(hello), .. } => {
                (Role::RewardServer, &hello.member, Some(hello.address.clone()), &hello.vocabulary)
            }
            Event::Learner(LearnerEvent::Joined(hello)) => {
                (Role::Learner, &hello.member, Some(hello.weights.clone()), &hello.vocabulary)
            }
            _ => return None,
        };
        let vocabulary = self.vocabularies.shared(vocabulary.as_ref()?);
        Some(Stated { role, member: member.clone(), address, vocabulary })
    }

    /// Takes in what a member that has joined says of its tokenizer. Who reads other tokens than the policy
    /// is sent away when that comes out; what it works on is done by others.
    fn learn_vocabulary(&mut self, now: Timestamp, stated: Option<Stated>, out: &mut Applied) {
        if !stated.is_some_and(|stated| self.vocabularies.learn(stated)) {
            return;
        }
        for (role, member, refusal) in self.vocabularies.strangers(&self.members) {
            match role {
                Role::Actor => self.actor_disconnected(now, &member),
                Role::RewardServer => {
                    self.members.disconnect_reward_server(&member);
                    self.reward_servers_changed = true;
                }
                Role::Learner => {}
            }
            out.refuse(role, member, refusal);
        }
    }

    /// A member of an older release does not say which tokenizer it has.
    fn vocabulary_unsaid(&mut self, role: Role, member: &MemberId, out: &mut Applied) {
        if self.vocabularies.is_first_unsaid(role) {
            out.notice(Notice::VocabularyUnsaid { role, member: member.clone() });
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
        if let Err(refusal) = self.check_joining(now, &event) {
            return out.refuse(Role::Actor, member, refusal);
        }
        let stated = self.stated(&event);
        // Before its first weights it has no tokenizer.
        if hello.vocabulary.is_none() && hello.weights.is_some() {
            self.vocabulary_unsaid(Role::Actor, &member, out);
        }
        let weights = hello.weights.filter(|(version, hash)| self.durable.knows(*version, *hash));
        self.weights.actor_left(now, &member);
        let vocabulary = stated.as_ref().map(|stated| Arc::clone(&stated.vocabulary));
        let timeout = self.durable.plan.heartbeat_timeout;
        self.members.join_actor(now, timeout, &hello, Recognised { weights, vocabulary });
        self.lapse_work_of(now, &member, &hello.holding, out);
        self.actor_changed(now, &member);
        out.tell_actor(member.clone(), ActorCommand::Welcome(self.durable.plan.actor_welcome()));
        out.tell_actor(member.clone(), ActorCommand::RewardServers(self.members.reward_addresses()));
        if self.phase != Phase::Running {
            out.tell_actor(member, ActorCommand::Drain);
        }
        self.learn_vocabulary(now, stated, out);
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
        if let Err(refusal) = self.check_joining(now, &event) {
            return out.refuse(Role::RewardServer, member, refusal);
        }
        if hello.vocabulary.is_none() {
            self.vocabulary_unsaid(Role::RewardServer, &member, out);
        }
        let RunPlan { run, sampling, .. } = &self.durable.plan;
        let command = RewardCommand::Welcome { run: run.clone(), sampling: Some(sampling.clone()) };
        out.effects.push(Effect::Reward { member, command });
        self.members.join_reward_server(now, self.durable.plan.heartbeat_timeout, hello);
        self.reward_servers_changed = true;
    }

    pub(super) fn learner_joined(&mut self, now: Timestamp, hello: LearnerHello, out: &mut Applied) {
        let event = Event::Learner(LearnerEvent::Joined(hello.clone()));
        if let Err(refusal) = self.check_joining(now, &event) {
            return out.refuse(Role::Learner, hello.member, refusal);
        }
        let stated = self.stated(&event);
        if stated.is_none() {
            self.vocabulary_unsaid(Role::Learner, &hello.member, out);
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
        self.learn_vocabulary(now, stated, out);
    }

    pub(super) fn learner_disconnected(&mut self, now: Timestamp) {
        self.members.disconnect_learner();
        self.weights.forget_groups(now);
    }
}
