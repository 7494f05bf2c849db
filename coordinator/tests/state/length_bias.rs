//! Long responses train as often as they are generated, however much longer than the others they take.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use algo::filtration::{Filtration, Strategy};
use coordinator::state::{
    ActorEvent, Event, Fact, FiltrationPlan, LearnerEvent, Notice, RewardEvent, RunPlan, ScoreSummary,
};
use types::link::actor::ActorReport;
use types::link::learner::{LearnerReport, StepMetrics};
use types::{BatchId, DropReason, Ending, MemberId, PolicyVersion, PromptId, RolloutId, Timestamp};

use crate::crowd::Crowd;
use crate::small_run::{manifest, plan};
use crate::world::World;

/// Responses that an actor generates at a time.
const SLOTS: u32 = 32;
const ACTORS: usize = 3;
const BATCHES: u64 = 250;
/// Longer than the longest response takes.
const WAIT: Duration = Duration::from_secs(6);
/// What a training step takes.
const STEP: Duration = Duration::from_millis(400);

/// Tokens of a response, a hundredth of a second each: one prompt of ten is eight times as long as the
/// others.
fn tokens(prompt: PromptId) -> u32 {
    let drawn = RolloutId { prompt, sibling: 0, attempt: 0 }.seed(1);
    let length = u32::try_from(20 + drawn % 40).unwrap();
    if drawn % 10 == 3 { 8 * length } else { length }
}

/// Something that is due: a response of an actor is done, or the learner's step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Response(RolloutId, PolicyVersion),
    Step(BatchId),
}

struct Run {
    crowd: Crowd,
    due: BinaryHeap<Reverse<(Timestamp, Due)>>,
    trained: BatchId,
    stepping: bool,
    /// Tokens of all groups that were begun, and of those that were part of a batch.
    begun: BTreeMap<PromptId, u32>,
    in_batches: BTreeMap<BatchId, Vec<u32>>,
}

impl Run {
    fn new(max_staleness: u64, straggler_timeout: Duration) -> Self {
        let filtration =
            FiltrationPlan::fixed(Filtration { strategy: Strategy::None, ..Filtration::default() });
        let plan = RunPlan {
            prompts: 1 << 20,
            batches: BATCHES,
            batch_prompts: 8,
            max_staleness,
            straggler_timeout,
            filtration,
            ..plan()
        };
        let mut run = Self {
            crowd: Crowd::new(plan, ACTORS),
            due: BinaryHeap::new(),
            trained: BatchId(0),
            stepping: false,
            begun: BTreeMap::new(),
            in_batches: BTreeMap::new(),
        };
        (0..ACTORS).for_each(|actor| run.crowd.join(actor));
        run
    }

    fn version(&self) -> PolicyVersion {
        PolicyVersion(self.trained.0)
    }

    /// Says how much room each actor has, and takes up what is leased.
    fn turn(&mut self) {
        for actor in 0..ACTORS {
            // It has said so before any lease: what it holds is taken off.
            self.crowd.heartbeat(actor, SLOTS);
            for (_, id) in std::mem::take(&mut self.crowd.leased) {
                self.begun.insert(id.prompt, tokens(id.prompt));
                let done = self.crowd.now + Duration::from_millis(u64::from(tokens(id.prompt)) * 10);
                self.due.push(Reverse((done, Due::Response(id, self.version()))));
            }
        }
        let next = self.crowd.state.batches().untrained().next();
        if let Some(batch) = next.filter(|_| !self.stepping) {
            let lengths = batch.groups.iter().map(|group| group.scores[0].tokens).collect();
            self.in_batches.insert(batch.id, lengths);
            self.stepping = true;
            self.due.push(Reverse((self.crowd.now + STEP, Due::Step(batch.id))));
        }
    }

    fn tell_of(&mut self, actor: usize, report: ActorReport) {
        let member: MemberId = format!("actor-{actor}").parse().unwrap();
        self.crowd.deliver(Event::Actor { member, event: ActorEvent::Report(report) });
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Response(id, oldest) => {
                let scored = ScoreSummary {
                    id,
                    score: 0.5,
                    outcome: None,
                    tokens: tokens(id.prompt),
                    oldest,
                    truncated: false,
                    turns: 1,
                    numbers: BTreeMap::new(),
                    contributions: BTreeMap::new(),
                    digest: None,
                };
                let event = RewardEvent::Scored(scored);
                self.crowd.deliver(Event::Reward { member: "reward".parse().unwrap(), event });
            }
            Due::Step(batch) => {
                (self.trained, self.stepping) = (batch, false);
                let manifest = manifest(batch.0 % 251, batch.0);
                let (version, hash) = (manifest.version(), manifest.hash());
                let metrics = Box::new(StepMetrics::default());
                let report = LearnerReport::Trained { batch, manifest, metrics };
                self.crowd.deliver(Event::Learner(LearnerEvent::Report(report)));
                for actor in 0..ACTORS {
                    self.tell_of(actor, ActorReport::WeightsConfirmed { version, hash });
                }
            }
        }
    }

    /// Runs to the end.
    fn lengths(mut self) -> Lengths {
        let began = self.crowd.now;
        while self.trained < BatchId(BATCHES) {
            self.turn();
            let Some(Reverse((at, due))) = self.due.pop() else { panic!("nothing is due: it hangs") };
            self.crowd.now = at;
            self.happens(due);
        }
        let stale = self.crowd.state.account().count(Ending::Dropped(DropReason::Stale));
        Lengths {
            generated: mean(self.begun.into_values()),
            trained: mean(self.in_batches.into_values().flatten()),
            stale: stale as f64 / self.crowd.state.account().issued() as f64,
            seconds: self.crowd.now.since(began).as_secs_f64(),
        }
    }
}

/// Mean tokens of the responses that were begun and of those in batches, the share that was too old, and how
/// long the run took.
#[derive(Debug, Clone, Copy)]
struct Lengths {
    generated: f64,
    trained: f64,
    stale: f64,
    seconds: f64,
}

fn mean(lengths: impl Iterator<Item = u32>) -> f64 {
    let lengths: Vec<f64> = lengths.map(f64::from).collect();
    lengths.iter().sum::<f64>() / lengths.len() as f64
}

#[test]
fn what_takes_long_trains_as_often_as_it_is_generated() {
    println!("| staleness | straggler_timeout | generated | trained | ratio | too old | batches/s |");
    for staleness in [1, 2, 4, 8] {
        let [without, with] =
            [0, 300].map(|seconds| Run::new(staleness, Duration::from_secs(seconds)).lengths());
        for (timeout, of) in [("0s", without), ("300s", with)] {
            let Lengths { generated, trained, stale, seconds } = of;
            println!(
                "| {staleness} | {timeout} | {generated:.1} | {trained:.1} | {:.3} | {:.1} % | {:.2} |",
                trained / generated,
                100.0 * stale,
                BATCHES as f64 / seconds
            );
        }
        assert!((with.trained / with.generated - 1.0).abs() < 0.03, "waiting leaves no bias: {with:?}");
        assert_eq!(with.stale, 0.0, "nothing is too old for its batch");
        if staleness == 1 {
            assert!(without.trained < 0.8 * without.generated, "without waiting there is one: {without:?}");
            assert!(without.stale > 0.0);
        }
    }
}

#[test]
fn a_group_that_never_comes_is_waited_for_once_and_no_longer_than_allowed() {
    let mut run = Run::new(1, WAIT);
    // The responses of one prompt never come.
    let mut lost = None;
    while run.trained < BatchId(12) {
        run.turn();
        let next = run.due.peek().map(|Reverse((at, _))| *at);
        let deadline = run.crowd.state.next_deadline().unwrap().max(run.crowd.now);
        if next.is_none_or(|next| run.crowd.now < deadline && deadline < next) {
            run.crowd.now = deadline;
            (0..ACTORS).for_each(|actor| run.crowd.heartbeat(actor, SLOTS));
            continue;
        }
        let Some(Reverse((at, due))) = run.due.pop() else { unreachable!("it was there") };
        run.crowd.now = at;
        match due {
            Due::Response(id, _) if *lost.get_or_insert(id.prompt) == id.prompt => {}
            due => run.happens(due),
        }
    }
    let ended = run.crowd.notices.iter().filter_map(|notice| match notice {
        Notice::WaitEnded { batch, timeout } => Some((*batch, *timeout)),
        _ => None,
    });
    // It was begun with version 0, which batch 2 is the last one to take.
    assert_eq!(ended.collect::<Vec<_>>(), [(BatchId(2), WAIT)]);
}

#[test]
fn a_synchronous_run_never_waits() {
    let mut world = World::new(plan(), 3);
    world.run_to_the_end(20_000);
    let waited = world.journal.iter().any(|(_, fact)| matches!(fact, Fact::WaitEnded(_)));
    assert!(!waited && world.state.account().count(Ending::Dropped(DropReason::Stale)) == 0);
}
