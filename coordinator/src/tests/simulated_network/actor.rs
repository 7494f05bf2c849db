//! An actor: it generates what it is leased, whether or not the coordinator can be reached, and keeps each
//! response until its fate is durable.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use service::LinkEvent;
use tokio::time::{Instant, MissedTickBehavior, interval};
use types::link::actor::{ActorCommand, ActorHello, ActorLoad, ActorReport, Lease};
use types::{Incarnation, LeaseId, MemberId, PolicyVersion, RolloutId, WeightHash};

use super::{Offer, World, wire};

/// Responses that an actor works on at a time.
const SLOTS: u32 = 24;
/// What is not acknowledged by then is sent again.
const RESEND_DELAY: Duration = Duration::from_secs(4);
/// Between two responses.
const WORK_INTERVAL: Duration = Duration::from_millis(40);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

struct Actor {
    member: MemberId,
    incarnation: Incarnation,
    weights: Option<(PolicyVersion, WeightHash)>,
    /// Attempts it works on, with the version that draws them, and until when somebody wants them.
    work: Vec<(RolloutId, PolicyVersion, Instant)>,
    finished: BTreeMap<RolloutId, Finished>,
    last_lease: LeaseId,
    reward_servers: Vec<MemberId>,
    is_over: bool,
}

/// A response that nobody has acknowledged.
struct Finished {
    version: PolicyVersion,
    wanted_until: Instant,
    sent: Option<Instant>,
}

pub(super) async fn run(world: World, member: MemberId, incarnation: Incarnation, mut rng: ChaCha8Rng) {
    let mut link = wire::link::<pb::ActorReport, pb::ActorCommand>(|channel, request| {
        Box::pin(async move { CoordinatorClient::new(channel).act(request).await })
    });
    let mut actor = Actor {
        member,
        incarnation,
        weights: None,
        work: Vec::new(),
        finished: BTreeMap::new(),
        last_lease: LeaseId(0),
        reward_servers: Vec::new(),
        is_over: false,
    };
    let (mut beats, mut work) = (interval(HEARTBEAT_INTERVAL), interval(WORK_INTERVAL));
    work.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !actor.is_over {
        let report = tokio::select! {
            event = link.next() => match event {
                LinkEvent::Due => {
                    link.connect::<()>(actor.hello().into()).await;
                    None
                }
                LinkEvent::Command(command) => actor.obey(command.try_into().unwrap()),
                LinkEvent::Lost(_) => {
                    world.with(|outside| outside.broken += 1);
                    None
                }
                LinkEvent::Refused(reason) | LinkEvent::GaveUp(reason) => panic!("{reason}"),
            },
            _ = beats.tick() => Some(ActorReport::Load(actor.load())),
            _ = work.tick() => {
                actor.work(&world, &mut rng);
                None
            }
        };
        if let Some(report) = report {
            link.report(report.into()).await;
        }
    }
}

impl Actor {
    fn hello(&self) -> ActorHello {
        let working = self.work.iter().map(|(id, ..)| *id);
        ActorHello {
            member: self.member.clone(),
            incarnation: self.incarnation,
            run: None,
            holding: working.chain(self.finished.keys().copied()).collect(),
            weights: self.weights,
            source: None,
            vocabulary: None,
            gpu: None,
        }
    }

    fn load(&self) -> ActorLoad {
        let running = u32::try_from(self.work.len()).unwrap();
        ActorLoad {
            free_slots: SLOTS.saturating_sub(running),
            last_lease: self.last_lease,
            running,
            unacknowledged: u32::try_from(self.finished.len()).unwrap(),
            ..ActorLoad::default()
        }
    }

    /// Does what it is told; what it answers.
    fn obey(&mut self, command: ActorCommand) -> Option<ActorReport> {
        match command {
            ActorCommand::PullWeights { version, hash, .. } => Some(self.receive(version, hash)),
            ActorCommand::ReceiveWeights { manifest, .. } => {
                Some(self.receive(manifest.version(), manifest.hash()))
            }
            ActorCommand::JoinBroadcastGroup(group) => Some(ActorReport::BroadcastGroupReady(group.id)),
            ActorCommand::Lease(lease) => self.begin(lease),
            ActorCommand::RewardServers(servers) => {
                self.reward_servers = servers.into_iter().map(|server| server.member).collect();
                None
            }
            ActorCommand::Finish => {
                self.is_over = true;
                None
            }
            ActorCommand::Drain => panic!("nobody asked for it"),
            ActorCommand::Welcome(_) | ActorCommand::LeaveBroadcastGroup(_) => None,
        }
    }

    /// Weights come. An actor that holds newer ones keeps those.
    fn receive(&mut self, version: PolicyVersion, hash: WeightHash) -> ActorReport {
        if self.weights.is_some_and(|(held, _)| held > version) {
            return ActorReport::WeightsFailed { version, detail: "holds newer ones".into() };
        }
        self.weights = Some((version, hash));
        ActorReport::WeightsConfirmed { version, hash }
    }

    fn begin(&mut self, lease: Lease) -> Option<ActorReport> {
        let (version, _) = self.weights.expect("no lease without weights");
        let wanted_until = Instant::now() + lease.timeout;
        self.last_lease = lease.id;
        let wanted = lease.prompts.into_iter().flat_map(|prompt| prompt.wanted);
        self.work.extend(wanted.map(|id| (id, version, wanted_until)));
        Some(ActorReport::Load(self.load()))
    }

    /// Ends a response, if it works on one, and sends what was not sent, or long ago.
    fn work(&mut self, world: &World, rng: &mut ChaCha8Rng) {
        let now = Instant::now();
        let recorded = world.with(|outside| outside.recorded.remove(&self.member).unwrap_or_default());
        for id in recorded {
            self.finished.remove(&id);
        }
        self.work.retain(|(.., wanted_until)| *wanted_until > now);
        self.finished.retain(|_, finished| finished.wanted_until > now);
        if !self.work.is_empty() {
            let place = rng.random_range(0..self.work.len());
            let (id, version, wanted_until) = self.work.swap_remove(place);
            self.finished.insert(id, Finished { version, wanted_until, sent: None });
        }
        if self.reward_servers.is_empty() {
            return;
        }
        for (id, finished) in &mut self.finished {
            if finished.sent.is_none_or(|at| at.elapsed() > RESEND_DELAY) {
                let server = self.reward_servers[rng.random_range(0..self.reward_servers.len())].clone();
                let offer = Offer { id: *id, version: finished.version, actor: self.member.clone() };
                world.with(|outside| outside.offered.entry(server).or_default().push_back(offer));
                finished.sent = Some(now);
            }
        }
    }
}
