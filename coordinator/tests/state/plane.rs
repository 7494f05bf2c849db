//! The weight plane: who pulls from whom, and what a member that stops costs the others.

use std::collections::BTreeMap;
use std::time::Duration;

use coordinator::state::{ActorEvent, Effect, Event, LearnerEvent, Notice, RunPlan, State};
use types::link::actor::{ActorCommand, ActorHello, ActorLoad, ActorReport, GroupBackend};
use types::link::learner::{LearnerCommand, LearnerHello, LearnerPhase, LearnerReport};
use types::{
    BroadcastGroupId, DType, Manifest, MemberId, PolicyVersion, TensorEntry, TensorLayout, Timestamp,
    WeightHash,
};

use crate::small_run::{LEARNER_WEIGHTS as LEARNER, actor_hello, learner_hello, manifest, plan};

/// A run of which only the weight plane is looked at. Nobody answers by itself.
struct Plane {
    state: State,
    now: Timestamp,
    /// Orders to pull that were not answered, as (who, from whom).
    pulls: Vec<(MemberId, String)>,
    groups: Vec<BroadcastGroupId>,
    /// What carries each.
    backends: Vec<GroupBackend>,
    /// Why some go through the hosts.
    through_hosts: Vec<String>,
    receiving: Vec<MemberId>,
    /// Groups that were to be left, with who was told.
    left: Vec<(BroadcastGroupId, String)>,
}

impl Plane {
    fn new(actors: usize, shares: bool) -> Self {
        Self::of_plan(plan(), actors, shares)
    }

    fn of_plan(plan: RunPlan, actors: usize, shares: bool) -> Self {
        let mut plane = Self {
            state: State::new(plan.clone()),
            now: Timestamp(1_000_000),
            pulls: Vec::new(),
            groups: Vec::new(),
            backends: Vec::new(),
            through_hosts: Vec::new(),
            receiving: Vec::new(),
            left: Vec::new(),
        };
        plane.deliver(Event::Started(Box::new(plan)));
        plane.deliver(Event::Learner(LearnerEvent::Joined(learner_hello(1, manifest(0, 0)))));
        for number in 0..actors {
            let member = name(number);
            let source = shares.then(|| address(&member));
            let hello = ActorHello { source, ..actor_hello(member.clone()) };
            plane.deliver(Event::Actor { member, event: ActorEvent::Joined(hello) });
        }
        plane
    }

    fn deliver(&mut self, event: Event) {
        let mut effects = self.state.apply(self.now, event).effects;
        effects.extend(self.state.settle(self.now).effects);
        self.take(effects);
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        let effects = self.state.settle(self.now).effects;
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Actor { member, command } => match *command {
                    ActorCommand::PullWeights { source, .. } => self.pulls.push((member, source)),
                    ActorCommand::ReceiveWeights { .. } => self.receiving.push(member),
                    ActorCommand::LeaveBroadcastGroup(group) => self.left.push((group, member.to_string())),
                    _ => {}
                },
                Effect::Learner(LearnerCommand::JoinBroadcastGroup(group)) => {
                    self.groups.push(group.id);
                    self.backends.push(group.backend);
                }
                Effect::Notice(Notice::BroadcastThroughHosts { reason, .. }) => {
                    self.through_hosts.push(reason)
                }
                Effect::Learner(LearnerCommand::LeaveBroadcastGroup(group)) => {
                    self.left.push((group, "learner".into()));
                }
                _ => {}
            }
        }
    }

    fn report(&mut self, member: &MemberId, report: ActorReport) {
        self.deliver(Event::Actor { member: member.clone(), event: ActorEvent::Report(report) });
    }

    fn confirm(&mut self, member: &MemberId, weights: &Manifest) {
        let (version, hash) = (weights.version(), weights.hash());
        self.report(member, ActorReport::WeightsConfirmed { version, hash });
    }

    fn heartbeat(&mut self, member: &MemberId, pulled_bytes: u64) {
        self.report(member, ActorReport::Load(ActorLoad { pulled_bytes, ..ActorLoad::default() }));
    }

    /// Forms the group that was ordered last, of these actors and the learner.
    fn form(&mut self, actors: &[MemberId]) -> BroadcastGroupId {
        let group = *self.groups.last().expect("a group was to be formed");
        for actor in actors {
            self.report(actor, ActorReport::BroadcastGroupReady(group));
        }
        let ready = LearnerReport::BroadcastGroupReady(group);
        self.deliver(Event::Learner(LearnerEvent::Report(ready)));
        group
    }

    /// The learner is heard of.
    fn alive(&mut self) {
        let alive = LearnerReport::Alive(LearnerPhase::Waiting);
        self.deliver(Event::Learner(LearnerEvent::Report(alive)));
    }
}

fn name(number: usize) -> MemberId {
    format!("actor-{number:02}").parse().unwrap()
}

/// What an actor says that comes with these weights, and receives others on this GPU.
fn on_gpu(plane: &mut Plane, number: usize, gpu: Option<&str>) -> MemberId {
    let (member, held) = (name(number), manifest(0, 0));
    let weights = Some((held.version(), held.hash()));
    let hello = ActorHello { weights, gpu: gpu.map(str::to_owned), ..actor_hello(member.clone()) };
    plane.deliver(Event::Actor { member: member.clone(), event: ActorEvent::Joined(hello) });
    plane.wait(plan().heartbeat_timeout / 10);
    plane.wait(plan().heartbeat_timeout / 10);
    member
}

#[test]
fn a_group_is_on_gpus_only_where_each_member_has_one_of_its_own() {
    let mut plane = Plane::of_plan(RunPlan { broadcast_members: 8, ..plan() }, 0, false);
    let hello = LearnerHello { gpu: Some("GPU-0".to_owned()), ..learner_hello(2, manifest(0, 0)) };
    plane.deliver(Event::Learner(LearnerEvent::Joined(hello)));
    let mut actors = vec![on_gpu(&mut plane, 0, Some("GPU-1"))];
    plane.form(&actors);
    assert_eq!(plane.backends, [GroupBackend::Nccl]);
    // One on the learner's GPU: everybody goes through the hosts, and the log says why, once.
    actors.push(on_gpu(&mut plane, 1, Some("GPU-0")));
    plane.form(&actors);
    actors.push(on_gpu(&mut plane, 2, Some("GPU-2")));
    plane.form(&actors);
    assert_eq!(plane.backends[1..], [GroupBackend::Gloo; 2]);
    assert_eq!(plane.through_hosts, ["learner and actor-01 share a GPU"]);
    // A group with one on the CPU has another reason.
    on_gpu(&mut plane, 3, None);
    assert_eq!(plane.backends[3..], [GroupBackend::Gloo]);
    assert_eq!(plane.through_hosts[1..], ["actor-03 has no GPU, and others have"]);
}

fn address(member: &MemberId) -> String {
    format!("{member}.example:1")
}

#[test]
fn weights_spread_as_a_tree() {
    let mut plane = Plane::new(32, true);
    let mut from_learner = 0;
    let mut rounds = 0;
    while !plane.pulls.is_empty() {
        let mut busy: BTreeMap<String, usize> = BTreeMap::new();
        for (_, source) in &plane.pulls {
            *busy.entry(source.clone()).or_default() += 1;
        }
        assert!(busy.values().all(|pulls| *pulls <= 4), "{busy:?}");
        from_learner += busy.get(LEARNER).copied().unwrap_or(0);
        // Everybody who pulls now has the weights at the end of the round.
        for (member, _) in std::mem::take(&mut plane.pulls) {
            plane.confirm(&member, &manifest(0, 0));
        }
        rounds += 1;
    }
    let served = (0..32)
        .filter(|number| plane.state.members().actors().get(&name(*number)).unwrap().weights.is_some());
    assert_eq!(served.count(), 32);
    assert!(from_learner < 16, "the learner served {from_learner} of 32");
    assert!(rounds <= 4, "{rounds} rounds");
}

#[test]
fn without_sharing_the_learner_serves_a_few_at_a_time() {
    let mut plane = Plane::new(10, false);
    let mut served = 0;
    while !plane.pulls.is_empty() {
        assert!(plane.pulls.len() <= 4 && plane.pulls.iter().all(|(_, source)| source == LEARNER));
        let (member, _) = plane.pulls.remove(0);
        plane.confirm(&member, &manifest(0, 0));
        served += 1;
    }
    assert_eq!(served, 10);
}

#[test]
fn a_pull_that_comes_further_is_left_alone_and_one_that_does_not_is_ordered_anew() {
    let mut plane = Plane::new(1, false);
    let actor = name(0);
    assert_eq!(plane.pulls.len(), 1);
    // Ten times the timeout, as on a slow link.
    let timeout = plan().broadcast_timeout;
    for step in 1..=20 {
        plane.wait(timeout / 2);
        plane.heartbeat(&actor, step);
        plane.alive();
    }
    assert_eq!(plane.pulls.len(), 1, "one order is enough");
    for _ in 0..3 {
        plane.wait(timeout / 2);
        plane.heartbeat(&actor, 20);
        plane.alive();
    }
    assert!(plane.pulls.len() > 1, "nobody noticed that nothing comes");
}

#[test]
fn an_actor_that_sends_a_byte_now_and_then_is_given_up_for_the_learner() {
    let mut plane = Plane::new(5, true);
    let first = std::mem::take(&mut plane.pulls);
    plane.confirm(&first[0].0, &manifest(0, 0));
    let (member, source) = plane.pulls.remove(0);
    assert_eq!(source, address(&first[0].0));
    let timeout = plan().broadcast_timeout;
    for step in 1..=6 {
        plane.wait(timeout / 4);
        plane.heartbeat(&member, step);
        plane.heartbeat(&first[0].0, 0);
        plane.alive();
    }
    assert_eq!(plane.pulls.iter().find(|(who, _)| *who == member), Some(&(member, LEARNER.to_owned())));
}

#[test]
fn who_pulled_from_an_actor_that_stops_pulls_from_another() {
    let mut plane = Plane::new(8, true);
    let first = std::mem::take(&mut plane.pulls);
    plane.confirm(&first[0].0, &manifest(0, 0));
    let source = address(&first[0].0);
    let stranded: Vec<MemberId> =
        plane.pulls.iter().filter(|(_, from)| *from == source).map(|(who, _)| who.clone()).collect();
    assert!(!stranded.is_empty(), "{:?}", plane.pulls);
    plane.pulls.clear();
    plane.deliver(Event::Actor { member: first[0].0.clone(), event: ActorEvent::Disconnected });
    for (member, _) in &first[1..] {
        plane.confirm(member, &manifest(0, 0));
    }
    for member in stranded {
        let anew = plane.pulls.iter().find(|(who, _)| *who == member);
        assert!(anew.is_some_and(|(_, from)| *from != source), "{member}: {:?}", plane.pulls);
    }
}

#[test]
fn a_pull_that_failed_goes_to_the_learner() {
    let mut plane = Plane::new(5, true);
    let first = std::mem::take(&mut plane.pulls);
    for (member, _) in &first {
        plane.confirm(member, &manifest(0, 0));
    }
    let (member, source) = plane.pulls.pop().unwrap();
    assert_ne!(source, LEARNER, "whoever shares is asked first");
    plane
        .report(&member, ActorReport::WeightsFailed { version: PolicyVersion(0), detail: "no route".into() });
    plane.wait(plan().heartbeat_timeout / 10);
    assert_eq!(plane.pulls, [(member, LEARNER.to_owned())]);
}

#[test]
fn a_stopped_member_ends_its_broadcast_for_everybody_when_it_is_noticed() {
    let patient = RunPlan { broadcast_timeout: Duration::from_secs(600), ..plan() };
    let mut plane = Plane::of_plan(patient, 2, false);
    let actors = [name(0), name(1)];
    for actor in &actors {
        plane.confirm(actor, &manifest(0, 0));
    }
    plane.wait(plan().heartbeat_timeout / 100);
    plane.form(&actors);
    // Another learner comes, which has other weights.
    let newer = manifest(0, 7);
    plane.deliver(Event::Learner(LearnerEvent::Joined(learner_hello(2, newer.clone()))));
    plane.pulls.clear();
    plane.wait(plan().heartbeat_timeout / 100);
    let group = plane.form(&actors);
    plane.receiving.clear();
    plane.left.clear();
    // Both were to pull while there was no group. When that failed they receive in the group.
    for actor in &actors {
        plane.report(
            actor,
            ActorReport::WeightsFailed { version: newer.version(), detail: "for the test".into() },
        );
    }
    plane.wait(Duration::from_millis(1));
    assert_eq!(plane.receiving, actors, "a broadcast is under way");
    // One stops. The other and the learner go on saying that they are alive.
    let timeout = plan().heartbeat_timeout;
    for _ in 0..3 {
        plane.wait(timeout / 4);
        plane.heartbeat(&actors[0], 0);
        plane.alive();
    }
    assert!(plane.left.is_empty(), "{:?}", plane.left);
    plane.wait(timeout / 2);
    plane.left.sort();
    assert_eq!(plane.left, [(group, actors[0].to_string()), (group, "learner".to_owned())]);
}

/// Two actors with weights, whose group is ordered.
fn grouped() -> (Plane, [MemberId; 2]) {
    let mut plane = Plane::new(2, false);
    let actors = [name(0), name(1)];
    for actor in &actors {
        plane.confirm(actor, &manifest(0, 0));
    }
    plane.wait(Duration::from_secs(1));
    assert_eq!(plane.groups.len(), 1);
    (plane, actors)
}

#[test]
fn a_group_that_fails_again_and_again_is_tried_ever_less_often() {
    let (mut plane, actors) = grouped();
    let hour = plane.now + Duration::from_secs(3600);
    let mut tried = Vec::new();
    while plane.now < hour {
        if plane.groups.len() > tried.len() {
            let (group, detail) = (*plane.groups.last().unwrap(), "one of two backends".to_owned());
            plane.report(&actors[1], ActorReport::BroadcastGroupFailed { group, detail });
            tried.push(plane.now);
        }
        plane.wait(Duration::from_millis(500));
        actors.iter().for_each(|actor| plane.heartbeat(actor, 0));
        plane.alive();
    }
    let pauses: Vec<u64> = tried.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses[0] < 2_500 && pauses.is_sorted(), "{pauses:?}");
    // From then on as long as a group may take to form.
    let longest = u64::try_from(plan().broadcast_timeout.as_millis()).unwrap();
    assert!(pauses.last().is_some_and(|pause| (longest..longest + 1_000).contains(pause)), "{pauses:?}");
    assert!(tried.len() < 730, "{} times in an hour", tried.len());
    // Another member is another group, which is tried at once.
    plane.wait(Duration::from_secs(1));
    let before = plane.groups.len();
    let third = name(2);
    plane.deliver(Event::Actor {
        member: third.clone(),
        event: ActorEvent::Joined(actor_hello(third.clone())),
    });
    plane.confirm(&third, &manifest(0, 0));
    plane.wait(Duration::from_secs(5));
    plane.wait(Duration::from_secs(1));
    assert!(plane.groups.len() > before);
}

#[test]
fn a_large_version_is_given_the_time_that_its_bytes_take() {
    for (megabytes, outlasts) in [(1_u64, false), (65_000, true)] {
        let (mut plane, actors) = grouped();
        plane.form(&actors);
        let layout =
            TensorLayout { name: "w".to_owned(), shape: vec![megabytes * 250_000], dtype: DType::F32 };
        let tensors = vec![TensorEntry::new(layout, WeightHash([9; 32])).unwrap()];
        // Another learner comes, which has other weights. They are pulled while there is no group; when that
        // failed they are broadcast.
        let large = Manifest::new(PolicyVersion(0), tensors).unwrap();
        plane.deliver(Event::Learner(LearnerEvent::Joined(learner_hello(2, large))));
        plane.wait(Duration::from_secs(1));
        plane.form(&actors);
        for actor in &actors {
            let (version, detail) = (PolicyVersion(0), "for the test".into());
            plane.report(actor, ActorReport::WeightsFailed { version, detail });
        }
        plane.wait(Duration::from_millis(1));
        assert_eq!(plane.receiving, actors, "{megabytes} MB are broadcast");
        plane.left.clear();
        for _ in 0..61 {
            plane.wait(Duration::from_secs(1));
            actors.iter().for_each(|actor| plane.heartbeat(actor, 0));
            plane.alive();
        }
        let is_given_up = plane.left.iter().any(|(_, member)| member == "learner");
        assert_eq!(is_given_up, !outlasts, "{megabytes} MB");
    }
}
