//! Many members at once: what is soft costs nothing, who has gone is forgotten, and an event costs the same
//! with ten actors and with thousands.

use std::collections::BTreeMap;
use std::time::Duration;

use coordinator::journal::{Entries, Journal};
use coordinator::state::{
    ActorEvent, Applied, Effect, Event, Fact, LearnerEvent, Notice, Phase, RewardEvent, RunPlan,
    ScoreSummary, State,
};
use tokio::time::Instant;
use types::link::actor::{ActorCommand, ActorHello, ActorLoad, ActorReport};
use types::link::learner::{LearnerCommand, LearnerReport};
use types::link::reward::RewardHello;
use types::{
    BatchId, FailReason, Incarnation, MemberId, PolicyVersion, RolloutFailure, RolloutId, Timestamp,
    Vocabulary,
};

use crate::small_run::{actor_hello, learner_hello, manifest, plan};

/// A run with a learner and many actors that have its weights, without failures.
pub(crate) struct Crowd {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    facts: usize,
    /// The facts with their times.
    journal: Vec<(Timestamp, Fact)>,
    groups_formed: usize,
    /// Members of the largest broadcast group, the learner included.
    largest_group: usize,
    pub(crate) leased: Vec<(MemberId, RolloutId)>,
    actors: Vec<MemberId>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) finished: Option<Phase>,
}

impl Crowd {
    pub(crate) fn new(plan: RunPlan, actors: usize) -> Self {
        let actors = (0..actors).map(|n| format!("actor-{n}").parse().unwrap()).collect();
        let (state, now) = (State::new(plan), Timestamp(1_000_000));
        let mut crowd = Self {
            state,
            now,
            facts: 0,
            journal: Vec::new(),
            groups_formed: 0,
            largest_group: 0,
            leased: Vec::new(),
            actors,
            notices: Vec::new(),
            finished: None,
        };
        crowd.deliver(Event::Started(Box::new(crowd.state.plan().clone())));
        crowd.deliver(Event::Learner(LearnerEvent::Joined(learner_hello(1, manifest(0, 0)))));
        crowd
    }

    pub(crate) fn join(&mut self, index: usize) {
        let member = self.actors[index].clone();
        let event = ActorEvent::Joined(actor_hello(member.clone()));
        self.deliver(Event::Actor { member, event });
    }

    fn report(&mut self, index: usize, report: ActorReport) {
        let event = Event::Actor { member: self.actors[index].clone(), event: ActorEvent::Report(report) };
        self.deliver(event);
    }

    pub(crate) fn heartbeat(&mut self, index: usize, free_slots: u32) {
        self.report(index, ActorReport::Load(ActorLoad { free_slots, ..ActorLoad::default() }));
    }

    pub(crate) fn score(&mut self, id: RolloutId) {
        self.score_with(id, (id.seed(5) % 1000) as f32 / 1000.0);
    }

    pub(crate) fn score_with(&mut self, id: RolloutId, score: f32) {
        let oldest = PolicyVersion(0);
        let scored = ScoreSummary {
            id,
            score,
            outcome: None,
            tokens: 9,
            oldest,
            truncated: false,
            turns: 1,
            numbers: BTreeMap::new(),
            contributions: BTreeMap::new(),
            digest: Some(id.seed(7)),
        };
        let event = RewardEvent::Scored(scored);
        self.deliver(Event::Reward { member: "reward".parse().unwrap(), event });
    }

    pub(crate) fn fail(&mut self, id: RolloutId, reason: FailReason, detail: &str) {
        let failure = RolloutFailure { id, reason, detail: detail.into(), response_tokens: 0 };
        let event = RewardEvent::Failed(failure);
        self.deliver(Event::Reward { member: "reward".parse().unwrap(), event });
    }

    pub(crate) fn deliver(&mut self, event: Event) {
        let applied = self.state.apply(self.now, event);
        self.take(applied);
        let settled = self.state.settle(self.now);
        self.take(settled);
    }

    fn take(&mut self, Applied { facts, effects, .. }: Applied) {
        self.facts += facts.len();
        let now = self.now;
        self.journal.extend(facts.into_iter().map(|fact| (now, fact)));
        let mut confirmed = Vec::new();
        for effect in effects {
            match effect {
                Effect::Actor { member, command } => {
                    let command = *command;
                    if let ActorCommand::PullWeights { version, hash, .. } = command {
                        let report = ActorReport::WeightsConfirmed { version, hash };
                        confirmed.push(Event::Actor { member, event: ActorEvent::Report(report) });
                    } else if let ActorCommand::JoinBroadcastGroup(group) = command {
                        let report = ActorReport::BroadcastGroupReady(group.id);
                        confirmed.push(Event::Actor { member, event: ActorEvent::Report(report) });
                    }
                }
                Effect::Learner(LearnerCommand::JoinBroadcastGroup(group)) => {
                    self.groups_formed += 1;
                    self.largest_group = self.largest_group.max(group.members.len());
                    let report = LearnerReport::BroadcastGroupReady(group.id);
                    confirmed.push(Event::Learner(LearnerEvent::Report(report)));
                }
                Effect::Lease { member, grant } => {
                    let wanted = grant.groups.iter().flat_map(|group| &group.wanted);
                    self.leased.extend(wanted.map(|id| (member.clone(), *id)));
                }
                Effect::Notice(notice) => self.notices.push(notice),
                Effect::Finish(phase) => self.finished = Some(phase),
                _ => {}
            }
        }
        for event in confirmed {
            self.deliver(event);
        }
    }
}

pub(crate) fn big_plan() -> RunPlan {
    RunPlan {
        prompts: 1 << 20,
        batches: 1000,
        batch_prompts: 1 << 20,
        max_prompts_in_flight: 1 << 20,
        broadcast_members: 32,
        ..plan()
    }
}

#[test]
fn what_is_soft_is_no_fact() {
    let mut crowd = Crowd::new(big_plan(), 50);
    for index in 0..50 {
        crowd.join(index);
        crowd.heartbeat(index, 0);
    }
    let before = crowd.facts;
    for round in 0..100 {
        crowd.now = crowd.now + Duration::from_millis(200);
        for index in 0..50 {
            crowd.heartbeat(index, round % 3);
        }
        crowd.deliver(Event::Learner(LearnerEvent::Report(LearnerReport::Alive(
            types::link::learner::LearnerPhase::Training,
        ))));
    }
    assert_eq!(crowd.facts, before, "a heartbeat is not journaled");
}

#[test]
fn many_joins_form_few_groups_of_bounded_size() {
    let mut crowd = Crowd::new(big_plan(), 400);
    for index in 0..400 {
        crowd.now = crowd.now + Duration::from_millis(5);
        crowd.join(index);
    }
    crowd.now = crowd.now + Duration::from_secs(1);
    crowd.heartbeat(0, 0);
    assert!((1..=20).contains(&crowd.groups_formed), "{} groups for 400 joins", crowd.groups_formed);
    let bound = crowd.state.plan().broadcast_members;
    assert_eq!(crowd.largest_group, bound + 1, "as many as may be, and the learner");
}

#[test]
fn members_that_have_gone_are_forgotten_and_counted() {
    let mut crowd = Crowd::new(big_plan(), 300);
    for index in 0..300 {
        crowd.join(index);
        let member = crowd.actors[index].clone();
        crowd.deliver(Event::Actor { member, event: ActorEvent::Disconnected });
    }
    assert_eq!(crowd.state.members().actors().len(), 300);
    while let Some(deadline) = crowd.state.next_deadline() {
        crowd.now = deadline;
        let settled = crowd.state.settle(deadline);
        crowd.take(settled);
    }
    assert_eq!(crowd.state.members().actors().len(), 0);
    assert_eq!(crowd.state.members().gone(), 300);
}

#[test]
fn actors_are_told_once_of_all_reward_servers_that_come_together() {
    let mut crowd = Crowd::new(big_plan(), 50);
    (0..50).for_each(|index| crowd.join(index));
    let told = |applied: &Applied| {
        let of_servers = |effect: &&Effect| match effect {
            Effect::Actor { command, .. } => matches!(**command, ActorCommand::RewardServers(_)),
            _ => false,
        };
        applied.effects.iter().filter(of_servers).count()
    };
    let server = |n: usize| -> MemberId { format!("server-{n}").parse().unwrap() };
    for n in 0..20 {
        let hello = RewardHello {
            member: server(n),
            incarnation: Incarnation(1),
            run: None,
            address: format!("127.0.0.1:{}", 1000 + n),
            vocabulary: Some(Vocabulary::none()),
        };
        let event = Event::Reward { member: server(n), event: RewardEvent::Joined(hello) };
        assert_eq!(told(&crowd.state.apply(crowd.now, event)), 0);
    }
    assert_eq!(told(&crowd.state.settle(crowd.now)), 50);
    assert_eq!(told(&crowd.state.settle(crowd.now)), 0, "nothing has changed since");
    let event = Event::Reward { member: server(3), event: RewardEvent::Disconnected };
    let _ = crowd.state.apply(crowd.now, event);
    assert_eq!(told(&crowd.state.settle(crowd.now)), 50);
}

#[test]
fn nobody_is_lost_by_the_silence_of_a_coordinator_that_was_away() {
    let mut crowd = Crowd::new(big_plan(), 5);
    for index in 0..5 {
        crowd.join(index);
        crowd.heartbeat(index, 8);
    }
    assert!(!crowd.leased.is_empty());
    let timeout = crowd.state.plan().heartbeat_timeout;
    crowd.now = crowd.now + timeout * 3;
    crowd.deliver(Event::WasAway(timeout * 3));
    let connected = |crowd: &Crowd| crowd.state.members().actors().values().filter(|a| a.connected).count();
    assert_eq!(connected(&crowd), 5, "they could not be heard");
    crowd.heartbeat(0, 8);
    crowd.now = crowd.now + timeout;
    crowd.heartbeat(0, 8);
    assert_eq!(connected(&crowd), 1, "the others are silent by now");
}

#[test]
fn leases_outlive_a_restart_until_their_holder_has_had_time_to_come_back() {
    let mut crowd = Crowd::new(big_plan(), 1);
    crowd.join(0);
    crowd.heartbeat(0, 8);
    let (timeout, held) = (crowd.state.plan().heartbeat_timeout, crowd.state.in_flight());
    crowd.now = crowd.now + timeout * 5;
    crowd.deliver(Event::Started(Box::new(crowd.state.plan().clone())));
    let before = crowd.facts;
    crowd.now = crowd.now + timeout / 2;
    crowd.deliver(Event::DrainRequested);
    assert_eq!((crowd.facts, crowd.state.in_flight()), (before, held), "nothing is given up yet");
    crowd.now = crowd.now + timeout;
    crowd.deliver(Event::DrainRequested);
    assert!(crowd.facts > before, "it has not come back");
}

#[test]
fn leases_are_not_charged_for_the_coordinators_own_absence() {
    for restarted in [false, true] {
        let mut crowd = Crowd::new(big_plan(), 1);
        crowd.join(0);
        crowd.heartbeat(0, 4);
        let (timeout, held) = (crowd.state.plan().lease_timeout, crowd.state.in_flight());
        assert_eq!(held, 4);
        let live = |crowd: &mut Crowd, time: Duration| {
            let until = crowd.now + time;
            while crowd.now < until {
                crowd.now = crowd.now + Duration::from_secs(5);
                crowd.heartbeat(0, 0);
            }
        };
        live(&mut crowd, timeout / 2);
        crowd.now = crowd.now + timeout * 2;
        let left = if restarted {
            crowd.deliver(Event::Started(Box::new(crowd.state.plan().clone())));
            let member: MemberId = crowd.actors[0].clone();
            let holding = crowd.leased.iter().map(|(_, id)| *id).collect();
            let hello = ActorHello { holding, ..actor_hello(member.clone()) };
            crowd.deliver(Event::Actor { member, event: ActorEvent::Joined(hello) });
            // What is known of the process before is that it was there when it granted the lease.
            timeout
        } else {
            crowd.deliver(Event::WasAway(timeout * 2));
            timeout / 2
        };
        live(&mut crowd, left - Duration::from_secs(5));
        let lapsed = |crowd: &Crowd| {
            crowd.notices.iter().any(|notice| matches!(notice, Notice::LeaseExpired { attempts: 4, .. }))
        };
        assert!(!lapsed(&crowd), "it is given the time back (restarted: {restarted})");
        live(&mut crowd, Duration::from_secs(10));
        assert!(lapsed(&crowd), "and no more (restarted: {restarted})");
    }
}

#[test]
fn a_score_that_comes_after_its_lease_is_taken_while_its_group_is_open() {
    for issued_anew in [false, true] {
        let mut crowd = Crowd::new(RunPlan { batch_prompts: 1, ..big_plan() }, 2);
        crowd.join(0);
        crowd.heartbeat(0, 4);
        let first: Vec<RolloutId> = crowd.leased.iter().map(|(_, id)| *id).collect();
        assert_eq!(first.len(), 4);
        crowd.now = crowd.now + crowd.state.plan().heartbeat_timeout * 2;
        crowd.deliver(Event::Learner(LearnerEvent::Disconnected));
        if issued_anew {
            crowd.join(1);
            crowd.deliver(Event::Learner(LearnerEvent::Disconnected));
            crowd.join(0);
            crowd.heartbeat(0, 4);
        }
        for id in first {
            crowd.score(id);
        }
        assert_eq!(crowd.state.batches().formed(), BatchId(1), "the group is complete");
        assert_eq!(crowd.state.unaccounted(), 0);
    }
}

#[test]
fn a_machine_whose_clock_is_behind_can_take_the_place_of_one_that_is_gone() {
    let mut crowd = Crowd::new(big_plan(), 1);
    let timeout = crowd.state.plan().heartbeat_timeout;
    let hello = |incarnation| ActorHello {
        incarnation: Incarnation(incarnation),
        ..actor_hello("a".parse().unwrap())
    };
    let joining = |incarnation| Event::Actor {
        member: "a".parse().unwrap(),
        event: ActorEvent::Joined(hello(incarnation)),
    };
    crowd.deliver(joining(9));
    let refused = crowd.state.check_joining(crowd.now, &joining(8)).unwrap_err();
    assert!(refused.reason.contains("newer process (i9, this one is i8)"), "{refused}");
    crowd.deliver(Event::Actor { member: "a".parse().unwrap(), event: ActorEvent::Disconnected });
    assert!(crowd.state.check_joining(crowd.now, &joining(8)).is_err(), "the newer one may come back");
    crowd.now = crowd.now + timeout;
    crowd.state.check_joining(crowd.now, &joining(8)).unwrap();
    crowd.state.check_joining(crowd.now, &joining(10)).unwrap();
}

#[test]
fn nothing_new_is_begun_while_the_disk_is_short_of_room() {
    let mut crowd = Crowd::new(big_plan(), 1);
    crowd.join(0);
    let room = |short_of: Option<&str>| Event::Room { short_of: short_of.map(str::to_owned) };
    crowd.deliver(room(Some("room on the disk")));
    crowd.heartbeat(0, 8);
    assert_eq!(crowd.leased.len(), 0);
    assert_eq!(crowd.state.waiting_for(), "room on the disk");
    crowd.deliver(room(None));
    assert_eq!(crowd.leased.len(), 8, "it goes on when there is room");
    let before = crowd.facts;
    crowd.deliver(room(Some("room on the disk")));
    let first = crowd.leased[0].1;
    crowd.score(first);
    assert_eq!(crowd.facts, before + 1, "what is in flight is taken");
}

#[test]
fn a_restart_with_a_thousand_actors_takes_less_than_two_seconds() {
    // Facts alone as many as there may be, and a snapshot.
    for facts in [4_095, 4_096] {
        let mut crowd = Crowd::new(big_plan(), 1000);
        for index in 0..1000 {
            crowd.join(index);
            crowd.heartbeat(index, 8);
        }
        let leased = crowd.leased.clone();
        for (_, id) in leased.iter().step_by(2) {
            crowd.score(*id);
            if crowd.facts >= facts {
                break;
            }
        }
        let (folder, plan) = (tempfile::tempdir().unwrap(), crowd.state.plan().clone());
        let (mut journal, _) = Journal::open(folder.path(), &plan).unwrap();
        let entries = Entries { facts: std::mem::take(&mut crowd.journal), ..Entries::default() };
        assert_eq!(entries.facts.len(), facts);
        journal.commit(&entries).unwrap();
        drop(journal);

        let started = Instant::now();
        let (journal, durable) = Journal::open(folder.path(), &plan).unwrap();
        let (mut state, now) = (State::over(durable), journal.last_fact());
        let _ = state.apply(now, Event::Started(Box::new(plan)));
        let _ = state.settle(now);
        let took = started.elapsed();
        println!("{facts} facts and 1,000 actors: {took:?}");
        assert!(took < Duration::from_secs(2), "{facts} facts: {took:?}");
        assert_eq!((state.in_flight(), state.unaccounted()), (crowd.state.in_flight(), 0));
        assert_eq!(state.members().actors().len(), 1000, "each is given time to come back");
    }
}

/// An event of an actor; yields how many units of work it was.
type Work = fn(&mut Crowd, usize) -> usize;

/// A crowd of so many actors, all of which are idle.
fn idle_crowd(actors: usize) -> Crowd {
    let mut crowd = Crowd::new(big_plan(), actors);
    for index in 0..actors {
        crowd.join(index);
        crowd.heartbeat(index, 0);
    }
    crowd
}

/// Microseconds for each unit of work that `event` says it did, in a small and in a large crowd, by turns:
/// the least of some tries, so that what else the machine does has no say.
fn costs(crowds: &mut [Crowd; 2], event: Work) -> [f64; 2] {
    let mut least = [f64::INFINITY; 2];
    for round in 0..20 {
        for (crowd, least) in crowds.iter_mut().zip(&mut least) {
            let actors = crowd.actors.len();
            let started = Instant::now();
            let work: usize = (0..200).map(|step| event(crowd, (round * 200 + step) * 7 % actors)).sum();
            *least = least.min(started.elapsed().as_secs_f64() * 1e6 / work as f64);
        }
    }
    least
}

fn heartbeat(crowd: &mut Crowd, index: usize) -> usize {
    crowd.now = crowd.now + Duration::from_millis(1);
    crowd.heartbeat(index, 0);
    1
}

/// Every actor that has room is given a group; the groups that were given before are scored.
fn lease_and_score(crowd: &mut Crowd, index: usize) -> usize {
    crowd.heartbeat(index, 4);
    let leased = std::mem::take(&mut crowd.leased);
    leased.iter().for_each(|(_, id)| crowd.score(*id));
    1 + leased.len()
}

#[test]
fn an_event_costs_the_same_with_ten_actors_and_with_thousands() {
    let mut crowds = [10, 10_000].map(idle_crowd);
    let events: [(&str, Work); 2] = [("heartbeat", heartbeat), ("lease and score", lease_and_score)];
    for (name, event) in events {
        let [few, many] = costs(&mut crowds, event);
        let said = format!("{name}: {few:.2} us with 10 actors, {many:.2} us with 10,000");
        println!("{said}");
        // What is known of 10,000 is not in the cache.
        assert!(many < 2.0 * few + 1.0, "{said}");
    }
}
