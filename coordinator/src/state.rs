//! The decision-maker: a pure state machine (`docs/decisions.md`, D3 and D14).
//!
//! [`State::apply`] takes the time and an event, [`State::settle`] decides what all events of a lot have made
//! possible: leases, broadcasts, who is lost. Both return facts to be journaled and effects to be performed
//! once the facts are durable. Nothing here does I/O, reads a clock or draws a random number that is not
//! keyed by the plan's seed.
//!
//! What a run is ([`Durable`]) is changed by facts alone, so a journal of facts replays to the same run. All
//! else (who is there, how loaded, which weights are on their way) is soft: it costs no write, and after a
//! restart the members say it again. An event costs the same whatever the number of members: it is looked up,
//! not searched for.
//!
//! Invariants, checked after every event of `tests/state.rs`:
//!
//! 1. Every issued attempt is in flight or has exactly one ending: `issued = endings + in flight`.
//! 2. No response is part of two batches, and batches are trained in order without gaps.
//! 3. A response older than `max_staleness` allows is never part of a batch.
//! 4. Only an actor whose confirmed weights are a known version holds a new lease.
//!
//! One file per idea, each the owner of its data: `work` (what is generated, over `prompt_queue`, `leases`
//! and `groups`), `filter` (which responses of a group train), `evaluations` (what is asked and not learnt
//! from), `granting` (who gets what next), `batches` (what the learner trains), `account` (the identity),
//! `outcomes` and `auto_strategy` (which filtration), `sums`, `selection`, `detectors`, `group_end` and
//! `history` (what happened, for people), `members` (who is there), `vocabularies` (who reads
//! the policy's tokens), `room` (who takes work), `weights` (who
//! gets which version). They know nothing of effects and return what they decided; `durable` wires the first
//! ones, this file, `granting` and `joining` all of them.

mod account;
mod auto_strategy;
mod batches;
mod deadlines;
mod detectors;
mod durable;
mod effect;
mod evaluation_plan;
mod evaluations;
mod event;
mod expiry;
mod fact;
mod failures;
mod filter;
mod filtration_plan;
mod granting;
mod group_end;
mod groups;
mod history;
mod joining;
mod leases;
mod member_map;
mod members;
mod mixture;
mod moments;
mod notice;
mod outcomes;
mod pass_rates;
mod phase;
mod plan;
mod plan_change;
mod progress;
mod prompt_queue;
mod refusal;
mod role;
mod room;
mod schedule;
mod selection;
mod sums;
mod view;
mod vocabularies;
mod weights;
mod work;

use types::link::actor::{ActorCommand, ActorReport};
use types::link::learner::{LearnerCommand, LearnerReport};
use types::{Ending, FailReason, MemberId, RolloutId, Timestamp};

pub use account::Account;
pub use batches::{BatchPlan, Batches, Refill};
pub use detectors::{Alarm, Detector, Detectors, Evaluated, Finding, Reading};
pub use durable::Durable;
pub use effect::{Applied, Effect, StoreChanges};
pub use evaluation_plan::{BestBy, EvaluationPlan};
pub use evaluations::EvaluationRecord;
pub use event::{ActorEvent, Event, LearnerEvent, RewardEvent};
pub use fact::{Fact, LearnerFacts, LeaseBounds, ScoreSummary};
pub use failures::FailureView;
pub use filter::{PlannedGroup, PlannedSample};
pub use filtration_plan::{AutoPlan, FiltrationPlan, StrategyChoice};
pub use group_end::{EndedResponse, GroupEnd};
pub use groups::LeasedGroup;
pub use history::{History, PlanChange, StepRecord};
pub use leases::Grant;
pub use member_map::MemberMap;
pub use members::{Actor, Learner, Members, RewardServer};
pub use mixture::SetPlan;
pub use moments::{Moments, Spread};
pub use notice::Notice;
pub use outcomes::Reliability;
pub use phase::Phase;
pub use plan::RunPlan;
pub use progress::{Cause, Hopeless};
pub use refusal::{Refusal, RefusalCause};
pub use role::Role;
pub use schedule::{Order, Schedule};
pub use selection::{FiltrationFigures, Selection};
pub use sums::{GroupSums, SetFigures};

use failures::{FailureLog, Reporter};
use phase::Drain;
use progress::Progress;
use room::{Room, RoomIndex};
use vocabularies::Vocabularies;
use weights::WeightPlane;

/// All the coordinator knows about a run.
#[derive(Debug, Clone)]
pub struct State {
    durable: Durable,
    phase: Phase,
    /// While draining.
    drain: Option<Drain>,
    weights: WeightPlane,
    members: Members,
    vocabularies: Vocabularies,
    room: RoomIndex,
    progress: Progress,
    /// Why nothing new is begun, while there is too little room for it on the journal's disk.
    short_of_room: Option<String>,
    failures: FailureLog,
    /// Why the run was given up.
    given_up: Option<Cause>,
    /// Reward servers have come or gone, and actors are to be told.
    reward_servers_changed: bool,
}

impl State {
    /// A run that has not begun.
    pub fn new(plan: RunPlan) -> Self {
        Self::over(Durable::new(plan))
    }

    /// A run as its journal has it, before anybody has come.
    pub fn over(durable: Durable) -> Self {
        Self {
            weights: WeightPlane::of_term(durable.term()),
            durable,
            phase: Phase::Running,
            drain: None,
            members: Members::default(),
            vocabularies: Vocabularies::default(),
            room: RoomIndex::default(),
            progress: Progress::default(),
            short_of_room: None,
            failures: FailureLog::default(),
            given_up: None,
            reward_servers_changed: false,
        }
    }

    /// Takes an event. [`State::settle`] is due after it, or after others as well.
    pub fn apply(&mut self, now: Timestamp, event: Event) -> Applied {
        let mut out = Applied::default();
        match event {
            Event::Started(plan) => self.started(now, *plan, &mut out),
            Event::WasAway(away) => {
                self.members.listen_from(now);
                self.progress.was_away(now);
                if self.durable.is_waited_for() {
                    self.record(now, Fact::WasAway(away), &mut out);
                }
            }
            Event::Room { short_of } => self.short_of_room = short_of,
            Event::Actor { member, event } => match event {
                ActorEvent::Joined(hello) => self.actor_joined(now, hello, &mut out),
                ActorEvent::Disconnected => self.actor_disconnected(now, &member),
                ActorEvent::Report(report) => self.actor_report(now, member, report, &mut out),
            },
            Event::Reward { member, event } => self.reward_event(now, &member, event, &mut out),
            Event::Learner(event) => match event {
                LearnerEvent::Joined(hello) => self.learner_joined(now, hello, &mut out),
                LearnerEvent::Disconnected => self.learner_disconnected(now),
                LearnerEvent::Report(report) => self.learner_report(now, report, &mut out),
            },
            Event::DrainRequested => self.start_drain(now, &mut out),
        }
        out
    }

    /// Gives up what is past its deadline, and does what the events since the last time have made possible.
    pub fn settle(&mut self, now: Timestamp) -> Applied {
        let mut out = Applied::default();
        self.expire(now, &mut out);
        self.tell_reward_servers(&mut out);
        self.choose_strategy(now, &mut out);
        self.send_batches(&mut out);
        for command in self.weights.advance(now, &self.durable.plan, &self.members) {
            out.tell_about_weights(command);
        }
        self.grant_leases(now, &mut out);
        self.ask_for_last_checkpoint(&mut out);
        self.look_for_hopelessness(now, &mut out);
        self.end_phase(&mut out);
        debug_assert_eq!(self.unaccounted(), 0, "the accounting identity");
        out
    }

    /// Makes a fact so.
    fn record(&mut self, now: Timestamp, fact: Fact, out: &mut Applied) -> bool {
        out.facts.push(fact.clone());
        let outcome = self.durable.apply(now, fact, out);
        for member in &outcome.touched {
            self.refresh_room(member);
        }
        for (ending, trains) in outcome.groups {
            if trains {
                self.progress.group_kept();
            } else {
                self.progress.group_lost(matches!(ending, Ending::Filtered(_)));
            }
        }
        outcome.taken
    }

    /// How much room an actor has may have changed.
    fn refresh_room(&mut self, member: &MemberId) {
        let Durable { plan, work, .. } = &self.durable;
        let room = self.members.actors().get(member).and_then(|actor| {
            let version = actor.usable_version()?;
            Some(Room { groups: work.leases.room(plan, member, &actor.load), version })
        });
        self.room.place(member, room);
    }

    /// Whether an actor takes work, or with which weights, may have changed.
    fn actor_changed(&mut self, now: Timestamp, member: &MemberId) {
        if let Some(actor) = self.members.actors().get(member) {
            self.weights.actor_changed(now, member, actor);
        }
        self.refresh_room(member);
    }

    /// Issues anew what an actor was to generate, but for the attempts that it is `holding` still.
    fn lapse_work_of(&mut self, now: Timestamp, actor: &MemberId, holding: &[RolloutId], out: &mut Applied) {
        let ids = self.durable.work.awaited_of(actor, holding);
        if !ids.is_empty() {
            self.record(now, Fact::Lapsed { ids, reason: FailReason::ActorLost }, out);
        }
    }

    fn actor_report(&mut self, now: Timestamp, member: MemberId, report: ActorReport, out: &mut Applied) {
        let Some(actor) = self.members.hear_actor(now, &member) else {
            return out.disconnect(
                Role::Actor,
                member,
                "introduce yourself first: this coordinator does not know you",
            );
        };
        match report {
            ActorReport::Load(load) => {
                let before = std::mem::replace(&mut actor.load, load);
                if load.pulled_bytes > before.pulled_bytes {
                    let until = now + self.durable.plan.broadcast_timeout;
                    self.weights.came_further(&member, until);
                }
                // Most signs of life say nothing new, and cost one look at the member.
                if (load.free_slots, load.last_lease) != (before.free_slots, before.last_lease) {
                    self.refresh_room(&member);
                }
            }
            ActorReport::Draining => {
                actor.draining = true;
                self.actor_changed(now, &member);
            }
            ActorReport::WeightsConfirmed { version, hash } => {
                if !self.durable.knows(version, hash) {
                    let reason = format!("uses weights {hash} as {version}, which this run never had");
                    return out.disconnect(Role::Actor, member, reason);
                }
                actor.weights = Some((version, hash));
                self.weights.confirmed(&member);
                self.progress.moved(now);
                self.actor_changed(now, &member);
            }
            ActorReport::WeightsFailed { version, detail } => {
                let ended = self.weights.delivery_failed(now, &member, &self.durable.plan);
                out.notice(Notice::WeightsFailed { member: member.clone(), version, detail });
                if let Some(group) = ended {
                    out.notice(Notice::BroadcastGroupEnded { group, member });
                }
            }
            ActorReport::BroadcastGroupReady(group) => self.weights.group_ready(&member, group),
            ActorReport::BroadcastGroupFailed { group, detail } => {
                out.notice(Notice::BroadcastGroupFailed { group, member, detail });
                self.weights.group_failed(now, group, &self.durable.plan);
            }
            ActorReport::Failed(failure) => {
                self.attempt_failed(now, Reporter { role: Role::Actor, member }, failure, out);
            }
        }
    }

    fn reward_event(&mut self, now: Timestamp, member: &MemberId, event: RewardEvent, out: &mut Applied) {
        self.members.hear_reward_server(now, member);
        match event {
            RewardEvent::Joined(hello) => self.reward_server_joined(now, hello, out),
            RewardEvent::Disconnected => {
                self.members.disconnect_reward_server(member);
                self.reward_servers_changed = true;
            }
            RewardEvent::Load { queued } => {
                if let Some(server) = self.members.hear_reward_server(now, member) {
                    server.queued = queued;
                }
            }
            RewardEvent::Scored(summary) => {
                if self.record(now, Fact::Scored(summary), out) {
                    self.progress.scored(now);
                }
            }
            RewardEvent::Failed(failure) => {
                let reporter = Reporter { role: Role::RewardServer, member: member.clone() };
                self.attempt_failed(now, reporter, failure, out);
            }
        }
    }

    /// Tells every actor which reward servers there are, where that has changed: once, however many have come
    /// or gone.
    fn tell_reward_servers(&mut self, out: &mut Applied) {
        if !std::mem::take(&mut self.reward_servers_changed) {
            return;
        }
        let servers = self.members.reward_addresses();
        for (member, _) in self.members.connected_actors() {
            out.tell_actor(member.clone(), ActorCommand::RewardServers(servers.clone()));
        }
    }

    fn learner_report(&mut self, now: Timestamp, report: LearnerReport, out: &mut Applied) {
        let Some(learner) = self.members.hear_learner(now) else {
            return;
        };
        let member = learner.member.clone();
        match report {
            LearnerReport::Alive(phase) => learner.phase = phase,
            LearnerReport::Trained { batch, manifest, metrics } => {
                let expected = learner.trained.next();
                if batch != expected || batch > learner.sent {
                    let reason = format!("trained batch {batch}, but {expected} is next");
                    return out.disconnect(Role::Learner, member, reason);
                }
                learner.trained = batch;
                let weights = (manifest.version(), manifest.hash());
                self.record(now, Fact::Trained { batch, weights, metrics }, out);
                self.progress.trained(now);
                self.weights.offer(manifest, &self.members);
            }
            LearnerReport::Checkpointed(batch) => {
                if batch > learner.trained {
                    let trained = learner.trained;
                    let reason = format!("wrote a checkpoint of batch {batch}, but trained {trained}");
                    return out.disconnect(Role::Learner, member, reason);
                }
                self.record(now, Fact::Checkpointed(batch), out);
                self.progress.moved(now);
            }
            LearnerReport::Published { .. } => self.weights.broadcast_ended(&member),
            LearnerReport::PublishFailed { group, version, detail } => {
                out.notice(Notice::BroadcastFailed { version, detail });
                self.weights.group_failed(now, group, &self.durable.plan);
                self.weights.broadcast_ended(&member);
            }
            LearnerReport::BroadcastGroupReady(group) => self.weights.group_ready(&member, group),
            LearnerReport::BroadcastGroupFailed { group, detail } => {
                out.notice(Notice::BroadcastGroupFailed { group, member, detail });
                self.weights.group_failed(now, group, &self.durable.plan);
            }
        }
    }

    /// Makes it a fact that another filtration strategy is in force, where that is due.
    fn choose_strategy(&mut self, now: Timestamp, out: &mut Applied) {
        if let Some((strategy, reason)) = self.durable.auto.due() {
            self.record(now, Fact::StrategyChosen { strategy, reason }, out);
        }
    }

    fn start_drain(&mut self, now: Timestamp, out: &mut Applied) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Draining;
        self.progress.stop();
        self.drain = Some(Drain::WaitsUntil(now + self.durable.plan.drain_timeout));
        for (member, _) in self.members.connected_actors() {
            out.tell_actor(member.clone(), ActorCommand::Drain);
        }
        if self.members.connected_learner().is_some() {
            out.tell_learner(LearnerCommand::Checkpoint);
        }
    }

    /// Says when the run cannot go on, and stops it when that does not change.
    fn look_for_hopelessness(&mut self, now: Timestamp, out: &mut Applied) {
        if self.phase != Phase::Running || !self.progress.is_check_due(now, &self.durable.plan) {
            return;
        }
        let (no_room, waiting_for) = (self.no_room(), self.waiting_for());
        match self.progress.check(now, &self.durable.plan, no_room, waiting_for) {
            None => {}
            Some(progress::Finding::Found(cause)) => {
                out.notice(Notice::Hopeless { cause, timeout: self.durable.plan.hopeless_timeout });
            }
            Some(progress::Finding::GivenUp(cause)) => {
                out.notice(Notice::GivenUp { cause: cause.clone() });
                self.given_up = Some(cause);
                self.start_drain(now, out);
            }
        }
    }

    /// Moves to the phase that the state has reached.
    fn end_phase(&mut self, out: &mut Applied) {
        let ended = match self.phase {
            Phase::Running | Phase::Draining if self.durable.is_complete() => Phase::Finished,
            Phase::Draining if self.is_drained() => Phase::Stopped,
            _ => return,
        };
        self.phase = ended;
        self.drain = None;
        self.progress.stop();
        out.effects.push(Effect::Finish(ended));
    }

    /// Nobody works on a lease any more, and the learner has written what it trained.
    fn is_drained(&self) -> bool {
        let batches = &self.durable.batches;
        // What a learner has lost that came back from an older checkpoint is trained after the next start.
        let learner = self.members.connected_learner();
        let written = learner.is_none_or(|learner| batches.checkpointed() >= learner.trained);
        let given_up = self.drain == Some(Drain::GivenUp);
        let working = !self.durable.work.leases.is_empty() && self.members.connected_actor_count() > 0;
        written && (given_up || !working)
    }
}
