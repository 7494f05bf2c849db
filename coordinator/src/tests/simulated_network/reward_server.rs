//! A reward server: it holds what it was given until the coordinator has made its fate durable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use service::LinkEvent;
use tokio::time::{MissedTickBehavior, interval};
use types::link::reward::{RewardCommand, RewardHello};
use types::{Incarnation, MemberId, RolloutId, Vocabulary};

use super::{Offer, World, wire};

const WORK_INTERVAL: Duration = Duration::from_millis(30);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
const RESPONSE_TOKENS: u32 = 9;

struct RewardServer {
    member: MemberId,
    /// Results that nobody has acknowledged.
    results: BTreeMap<RolloutId, pb::RewardReport>,
    /// Who wants to know what became of a rollout.
    senders: BTreeMap<RolloutId, BTreeSet<MemberId>>,
    is_over: bool,
}

pub(super) async fn run(world: World, member: MemberId, incarnation: Incarnation, mut rng: ChaCha8Rng) {
    let mut link = wire::link::<pb::RewardReport, pb::RewardCommand>(|channel, request| {
        Box::pin(async move { CoordinatorClient::new(channel).reward(request).await })
    });
    // What was sent to the process before is lost with it.
    world.with(|outside| outside.offered.remove(&member));
    let mut server =
        RewardServer { member, results: BTreeMap::new(), senders: BTreeMap::new(), is_over: false };
    let (mut beats, mut work) = (interval(HEARTBEAT_INTERVAL), interval(WORK_INTERVAL));
    work.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !server.is_over {
        let reports = tokio::select! {
            event = link.next() => match event {
                LinkEvent::Due => {
                    let hello = RewardHello {
                        member: server.member.clone(),
                        incarnation,
                        run: None,
                        address: format!("{}:1", server.member),
                        vocabulary: Some(Vocabulary::none()),
                    };
                    link.connect::<()>(hello.into()).await;
                    server.results.values().cloned().collect()
                }
                LinkEvent::Command(command) => {
                    server.obey(&world, command.try_into().unwrap());
                    Vec::new()
                }
                LinkEvent::Lost(_) => {
                    world.with(|outside| outside.broken += 1);
                    Vec::new()
                }
                LinkEvent::Refused(reason) | LinkEvent::GaveUp(reason) => panic!("{reason}"),
            },
            _ = beats.tick() => {
                let queued = u32::try_from(server.results.len()).unwrap();
                vec![pb::RewardReport { report: Some(pb::reward_report::Report::Load(pb::RewardLoad { queued })) }]
            }
            _ = work.tick() => {
                let offer = world.with(|outside| outside.offered.get_mut(&server.member)?.pop_front());
                let scored = offer.and_then(|offer| server.score(offer));
                // Now and then the network layer of a real one says a thing twice.
                let twice = rng.random_range(0..20) == 0;
                scored.iter().chain(scored.iter().filter(|_| twice)).cloned().collect()
            }
        };
        for report in reports {
            link.report(report).await;
        }
    }
}

impl RewardServer {
    /// The score depends on the response alone, as a deterministic scorer's does.
    fn score(&mut self, Offer { id, version, actor }: Offer) -> Option<pb::RewardReport> {
        self.senders.entry(id).or_default().insert(actor);
        if self.results.contains_key(&id) {
            return None;
        }
        let spread = id.prompt.ordinal * 31 + u64::from(id.prompt.epoch) * 17 + u64::from(id.sibling) * 41;
        let tokens = usize::try_from(RESPONSE_TOKENS).unwrap();
        let rollout = pb::Rollout {
            id: Some(id.into()),
            prompt_tokens: vec![1; 4],
            response_tokens: vec![2; tokens],
            rollout_logprobs: vec![-0.5; tokens],
            spans: vec![pb::Span { version: version.0, tokens: RESPONSE_TOKENS }],
            finish_reason: pb::FinishReason::Stop.into(),
            ..pb::Rollout::default()
        };
        let score = (spread % 100) as f32 / 100.0;
        let scored = pb::ScoredRollout { rollout: Some(rollout), score, ..pb::ScoredRollout::default() };
        let report = pb::RewardReport { report: Some(pb::reward_report::Report::Scored(scored)) };
        self.results.insert(id, report.clone());
        Some(report)
    }

    fn obey(&mut self, world: &World, command: RewardCommand) {
        match command {
            RewardCommand::Recorded(ids) => ids.into_iter().for_each(|id| self.forget(world, id)),
            RewardCommand::Rejected { id, reason } => panic!("{id} is rejected: {reason}"),
            RewardCommand::Finish => self.is_over = true,
            RewardCommand::Welcome { .. } => {}
        }
    }

    fn forget(&mut self, world: &World, id: RolloutId) {
        self.results.remove(&id);
        for actor in self.senders.remove(&id).unwrap_or_default() {
            world.with(|outside| outside.recorded.entry(actor).or_default().push_back(id));
        }
    }
}
