//! Detectors of a gamed reward on synthetic streams: each is raised by one, and none by honest ones.

use std::collections::BTreeMap;

use coordinator::state::{Alarm, Detector, Detectors, RunPlan, ScoreSummary};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use types::{BatchId, PolicyVersion, PromptId, RolloutId};

use crate::small_run::plan;
use crate::world::World;

const STEPS: u64 = 60;
const GROUPS_PER_STEP: u64 = 16;
const SIBLINGS: u16 = 8;

/// Where a stream is.
struct At<'a> {
    /// From 0 at its beginning to 1 at its end.
    progress: f64,
    /// From 0 for the easiest prompt to 1.
    difficulty: f64,
    rng: &'a mut ChaCha8Rng,
}

impl At<'_> {
    fn chance(&mut self, share: f64) -> bool {
        self.rng.random::<f64>() < share
    }

    /// About normal, with the standard deviation 1.
    fn noise(&mut self) -> f64 {
        (0..12).map(|_| self.rng.random::<f64>()).sum::<f64>() - 6.0
    }

    /// Passes its tests more often as the run goes on, and on easy prompts.
    fn passes(&mut self) -> f64 {
        let share = 0.2 + 0.5 * self.progress + 0.4 * (0.5 - self.difficulty);
        f64::from(u8::from(self.chance(share)))
    }
}

/// What a stream says of one response.
struct Said {
    score: f64,
    outcome: Option<f64>,
    tokens: u32,
    truncated: bool,
    digest: u64,
    added: Vec<(&'static str, f64)>,
}

impl Said {
    /// An honest response: as long as others, cut off now and then, unlike its siblings.
    fn honest(at: &mut At, score: f64, outcome: Option<f64>) -> Self {
        let tokens = at.rng.random_range(80..240);
        let (truncated, digest) = (at.chance(0.03), at.rng.random());
        Self { score, outcome, tokens, truncated, digest, added: Vec::new() }
    }
}

/// What came of a stream.
struct Came {
    detectors: Detectors,
    alarms: Vec<(u64, Alarm)>,
}

impl Came {
    /// How often each alarm was raised.
    fn raised(&self) -> BTreeMap<Detector, usize> {
        let mut raised = BTreeMap::new();
        for (_, alarm) in self.alarms.iter().filter(|(_, alarm)| alarm.raised) {
            *raised.entry(alarm.detector).or_default() += 1;
        }
        raised
    }
}

fn stream(siblings: u16, mut say: impl FnMut(&mut At) -> Said) -> Came {
    stream_of(STEPS, siblings, &mut say)
}

fn stream_of(steps: u64, siblings: u16, say: &mut impl FnMut(&mut At) -> Said) -> Came {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut came = Came { detectors: Detectors::default(), alarms: Vec::new() };
    for step in 0..steps {
        for group in 0..GROUPS_PER_STEP {
            let difficulty = rng.random();
            let prompt = PromptId { epoch: 0, ordinal: step * GROUPS_PER_STEP + group };
            let mut scored = Vec::new();
            for sibling in 0..siblings {
                let progress = step as f64 / steps as f64;
                let said = say(&mut At { progress, difficulty, rng: &mut rng });
                scored.push(summary(RolloutId { prompt, sibling, attempt: 0 }, &said));
            }
            came.detectors.observe(&scored);
        }
        let evaluated = came.detectors.step(BatchId(step + 1));
        came.alarms.extend(evaluated.alarms.into_iter().map(|alarm| (step + 1, alarm)));
    }
    came
}

fn summary(id: RolloutId, said: &Said) -> ScoreSummary {
    let contributions = said.added.iter().map(|(scorer, value)| ((*scorer).to_owned(), *value)).collect();
    ScoreSummary {
        id,
        score: said.score as f32,
        outcome: said.outcome.map(|outcome| outcome as f32),
        tokens: said.tokens,
        oldest: PolicyVersion(0),
        truncated: said.truncated,
        turns: 1,
        numbers: BTreeMap::new(),
        digest: Some(said.digest),
        contributions,
    }
}

/// What a stream says next.
type Say = fn(&mut At) -> Said;

/// A policy that learns under a graded score that follows the tests.
fn learns(at: &mut At) -> Said {
    let passed = at.passes();
    let score = 0.7 * passed + 0.3 * at.noise();
    Said::honest(at, score, Some(passed))
}

/// Tests and a format, each for a part of the score; the format is learnt first.
fn learns_two(at: &mut At) -> Said {
    let passed = at.passes();
    let formatted = 0.2 * f64::from(u8::from(at.chance(0.6 + 0.39 * at.progress)));
    let mut said = Said::honest(at, passed + formatted, None);
    said.added = vec![("unit-tests", passed), ("format", formatted)];
    said
}

#[test]
fn honest_streams_raise_nothing() {
    let zero_or_one: Say = |at| {
        let passed = at.passes();
        Said::honest(at, passed, Some(passed))
    };
    let without_outcome: Say = |at| {
        let said = learns(at);
        Said { outcome: None, ..said }
    };
    let zero_or_one_alone: Say = |at| {
        let passed = at.passes();
        Said::honest(at, passed, None)
    };
    let stands: Say = |at| {
        let score = at.noise();
        Said::honest(at, score, None)
    };
    let fails_all: Say = |at| Said::honest(at, 0.0, Some(0.0));
    let passes_all: Say = |at| Said::honest(at, 1.0, Some(1.0));
    let streams: [(&str, Say); 8] = [
        ("a graded score", learns),
        ("tests and format", learns_two),
        ("0 or 1 with tests", zero_or_one),
        ("a graded score without tests", without_outcome),
        ("0 or 1 without tests", zero_or_one_alone),
        ("nothing is learnt", stands),
        ("all fail", fails_all),
        ("all pass", passes_all),
    ];
    for (name, say) in streams {
        for siblings in [1, 2, SIBLINGS] {
            let came = stream(siblings, say);
            assert_eq!(came.alarms, [], "{name}, {siblings} siblings");
        }
    }
}

/// Streams that each raise one alarm or more, the one named first among them.
fn gamed_streams() -> [(Detector, Say); 7] {
    [
        (Detector::ScoreWithoutOutcome, |at| {
            let passed = f64::from(u8::from(at.chance(0.3 - 0.1 * at.progress)));
            let score = 2.0 * at.progress + 0.5 * at.noise();
            Said::honest(at, score, Some(passed))
        }),
        (Detector::LengthDrift, |at| {
            let said = learns(at);
            let tokens = (f64::from(said.tokens) * 10f64.powf(at.progress)) as u32;
            Said { tokens, ..said }
        }),
        (Detector::OneScorerDecides, |at| {
            let pleases = 3.0 * at.progress + at.noise();
            let formatted = 0.2 * f64::from(u8::from(at.chance(0.9 - 0.8 * at.progress)));
            let mut said = Said::honest(at, pleases + formatted, None);
            said.added = vec![("reward-model", pleases), ("format", formatted)];
            said
        }),
        (Detector::VarianceCollapse, |at| {
            let spread = if at.progress < 0.5 { 1.0 } else { 0.05 };
            let score = spread * at.noise();
            Said::honest(at, score, None)
        }),
        (Detector::ScoreAtBound, |at| {
            let score = (0.2 + 1.2 * at.progress + 0.1 * at.noise()).min(1.0);
            Said::honest(at, score, None)
        }),
        (Detector::DuplicateSiblings, |at| {
            let said = learns(at);
            let digest = if at.progress < 0.5 { said.digest } else { said.digest % 3 };
            Said { digest, ..said }
        }),
        (Detector::TruncatedPaid, |at| {
            let said = learns(at);
            let truncated = at.chance(0.2);
            Said { truncated, score: said.score + f64::from(u8::from(truncated)) * 0.5, ..said }
        }),
    ]
}

#[test]
fn each_detector_is_raised_by_its_stream_once() {
    for (detector, say) in gamed_streams() {
        let came = stream(SIBLINGS, say);
        assert_eq!(came.raised().get(&detector), Some(&1), "{detector:?}: {:?}", came.alarms);
    }
}

#[test]
fn what_siblings_do_is_not_asked_where_there_are_none() {
    for (detector, say) in gamed_streams() {
        let came = stream(1, say);
        let asks = !matches!(
            detector,
            Detector::OneScorerDecides | Detector::VarianceCollapse | Detector::DuplicateSiblings
        );
        assert_eq!(came.raised().contains_key(&detector), asks, "{detector:?}: {:?}", came.alarms);
        assert!(!came.detectors.findings().contains_key(&Detector::DuplicateSiblings));
    }
}

#[test]
fn the_highest_score_is_no_bound_where_tests_say_that_it_is_right() {
    let came = stream(SIBLINGS, |at| {
        let score = (0.2 + 1.2 * at.progress + 0.1 * at.noise()).min(1.0);
        Said::honest(at, score, Some(f64::from(u8::from(score >= 1.0))))
    });
    assert_eq!(came.raised().get(&Detector::ScoreAtBound), None, "{:?}", came.alarms);
}

#[test]
fn a_truncated_response_that_is_paid_less_is_no_alarm() {
    let came = stream(SIBLINGS, |at| {
        let said = learns(at);
        let truncated = at.chance(0.4);
        Said { truncated, score: if truncated { 0.0 } else { said.score + 0.3 }, ..said }
    });
    assert_eq!(came.raised().get(&Detector::TruncatedPaid), None, "{:?}", came.alarms);
}

#[test]
fn an_alarm_ends_once_when_what_raised_it_is_over() {
    let came = stream(SIBLINGS, |at| {
        let said = learns(at);
        let repeats = (0.3..0.6).contains(&at.progress);
        Said { digest: if repeats { said.digest % 2 } else { said.digest }, ..said }
    });
    let turns: Vec<bool> = came
        .alarms
        .iter()
        .filter(|(_, alarm)| alarm.detector == Detector::DuplicateSiblings)
        .map(|(_, alarm)| alarm.raised)
        .collect();
    assert_eq!(turns, [true, false], "{:?}", came.alarms);
    let finding = &came.detectors.findings()[&Detector::DuplicateSiblings];
    let ended = came.alarms.last().unwrap().0;
    assert_eq!((finding.firing, finding.since), (false, BatchId(ended)));
}

#[test]
fn what_detectors_remember_does_not_grow_and_survives_a_snapshot() {
    let size = |steps| {
        let came = stream_of(steps, 2, &mut learns_two);
        let bytes = serde_json::to_vec(&came.detectors).unwrap();
        let back: Detectors = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(back, came.detectors);
        bytes.len()
    };
    let (full, later) = (size(330), size(660));
    assert!(later < full + full / 20, "{full} bytes after 330 steps, {later} after 660");
    assert!(full < 1 << 19, "{full} bytes");
}

#[test]
fn steps_carry_what_the_detectors_say() {
    let plan = RunPlan { batches: 24, batch_prompts: 8, prompts: 400, ..plan() };
    let mut world = World::new(plan, 5);
    world.run_to_the_end(200_000);
    let last = world.state.history().steps().next_back().unwrap();
    for detector in [Detector::LengthDrift, Detector::ScoreWithoutOutcome, Detector::DuplicateSiblings] {
        let reading = last.detectors[&detector];
        assert!(!reading.firing, "{detector:?}: {reading:?}");
    }
    assert!(!last.detectors.contains_key(&Detector::OneScorerDecides), "there is one scorer");
}
