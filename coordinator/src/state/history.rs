//! What happened, for people and plots: steps, and how far the reward can be trusted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::link::learner::StepMetrics;
use types::{BatchId, Timestamp};

use super::auto_strategy::AutoStrategy;
use super::batches::{BatchPlan, Refill};
use super::detectors::{Alarm, Detector, Detectors, Evaluated, Reading};
use super::evaluations::EvaluationRecord;
use super::fact::ScoreSummary;
use super::filtration_plan::FiltrationPlan;
use super::moments::Spread;
use super::outcomes::{OutcomeWindow, Reliability};
use super::selection::{FiltrationFigures, SelectionSums};
use super::sums::{SetFigures, one_turn};

/// Steps remembered for the dashboard.
const STEPS_LIMIT: usize = 1000;
/// Changes of the plan remembered for the dashboard.
const CHANGES_LIMIT: usize = 100;
/// Of these, the newest ones whose figures of the filtration are remembered; the file of steps has them all.
const FIGURES_LIMIT: usize = 64;
/// Seconds over which the token rate is averaged.
const RATE_WINDOW_SECONDS: u64 = 20;

/// Something that changed in the run's plan while it went on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanChange {
    /// When.
    pub time: Timestamp,
    /// The last batch that was trained before.
    pub after: BatchId,
    /// What was, and what is.
    pub change: String,
}

/// One training step as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    /// The batch, and the version it made.
    #[schemars(with = "u64")]
    pub batch: BatchId,
    /// When it was trained, in milliseconds since 1970 (UTC).
    #[schemars(with = "u64")]
    pub time: Timestamp,
    /// Prompts in the batch.
    pub prompts: u64,
    /// Responses of all groups that were complete since the batch before, filtered ones included.
    pub responses: u64,
    /// How many groups that were.
    #[serde(default)]
    pub groups: u64,
    /// Groups among them that carried no signal.
    #[serde(default)]
    pub groups_without_signal: u64,
    /// Their share among the groups.
    #[serde(default)]
    pub without_signal: f64,
    /// The mean score of the responses: what the unfiltered policy earns.
    pub score_mean: f64,
    /// The standard deviation of the scores.
    #[serde(default)]
    pub score_deviation: f64,
    /// By scorer, mean and deviation of its own numbers, as they were before weights and gates.
    #[serde(default)]
    pub scorers: BTreeMap<String, Spread>,
    /// Their mean outcome, by hidden tests or the scorer that is the yardstick, where they have any.
    pub outcome_mean: Option<f64>,
    /// Their mean length in tokens.
    pub response_tokens_mean: f64,
    /// Share of them cut off by the length limit.
    pub truncated: f64,
    /// Their mean turns: more than 1 where responses are episodes, and the policy asks for something.
    #[serde(default = "one_turn")]
    pub turns_mean: f64,
    /// Share of them with more than one turn.
    #[serde(default)]
    pub several_turns: f64,
    /// By data set, where there are several: what the unfiltered policy did on its prompts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sets: BTreeMap<String, SetFigures>,
    /// How far the reward could be trusted.
    pub reliability: Reliability,
    /// What the filtration did.
    #[serde(default)]
    pub filtration: FiltrationFigures,
    /// What was generated in vain for the batch.
    #[serde(default)]
    pub refill: Refill,
    /// What each scorer added to the score, in the mean over those responses; empty where there is one.
    #[serde(default)]
    pub contributions: BTreeMap<String, f64>,
    /// What the detectors of a gamed reward say, without those that there is nothing to measure for.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Reading>")]
    pub detectors: BTreeMap<Detector, Reading>,
    /// Of the newest evaluation that was over since the step before: the version that it was of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_version: Option<u64>,
    /// The mean score of its responses to held-out prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_score_mean: Option<f64>,
    /// Their mean outcome in the hidden tests, where they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_outcome_mean: Option<f64>,
    /// Share of them cut off by the length limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_truncated: Option<f64>,
    /// Their tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_response_tokens: Option<u64>,
    /// What of the configuration has changed since the step before, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
    /// What the learner measured.
    pub metrics: StepMetrics,
}

impl StepRecord {
    fn new(now: Timestamp, plan: &BatchPlan, metrics: StepMetrics) -> Self {
        let sums = &plan.sums;
        let (responses, score) = (sums.score.count.max(1) as f64, sums.score.spread());
        let scorers = sums.scorers.iter().map(|(name, numbers)| (name.clone(), numbers.spread()));
        Self {
            batch: plan.id,
            time: now,
            prompts: plan.prompts,
            responses: sums.score.count,
            groups: sums.groups,
            groups_without_signal: sums.groups_without_signal,
            without_signal: sums.groups_without_signal as f64 / sums.groups.max(1) as f64,
            score_mean: score.mean,
            score_deviation: score.deviation,
            scorers: scorers.collect(),
            outcome_mean: (sums.outcome.count > 0).then_some(sums.outcome.mean),
            response_tokens_mean: sums.tokens as f64 / responses,
            truncated: sums.truncated as f64 / responses,
            turns_mean: sums.turns as f64 / responses,
            several_turns: sums.several_turns as f64 / responses,
            sets: sums.set_figures(),
            reliability: Reliability::default(),
            filtration: FiltrationFigures::default(),
            refill: plan.refill,
            contributions: BTreeMap::new(),
            detectors: BTreeMap::new(),
            eval_version: None,
            eval_score_mean: None,
            eval_outcome_mean: None,
            eval_truncated: None,
            eval_response_tokens: None,
            changes: Vec::new(),
            metrics,
        }
    }

    fn add_evaluation(&mut self, found: &EvaluationRecord) {
        self.eval_version = Some(found.version.0);
        self.eval_score_mean = (found.responses > 0).then_some(found.score_mean);
        self.eval_outcome_mean = found.outcome_mean;
        self.eval_truncated = (found.responses > 0).then_some(found.truncated);
        self.eval_response_tokens = Some(found.response_tokens);
    }
}

/// A batch that was trained.
pub(super) struct TrainedBatch<'a> {
    pub(super) now: Timestamp,
    /// Seeds what is drawn for the figures.
    pub(super) seed: u64,
    pub(super) filtration: &'a FiltrationPlan,
    pub(super) batch: &'a BatchPlan,
    /// What the learner measured.
    pub(super) metrics: StepMetrics,
}

/// Steps, and what is known of recent responses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    #[serde(with = "shared")]
    steps: VecDeque<Arc<StepRecord>>,
    changes: VecDeque<PlanChange>,
    #[serde(default)]
    outcomes: OutcomeWindow,
    /// What was kept of the newest batches, the oldest first.
    #[serde(default)]
    selections: VecDeque<SelectionSums>,
    #[serde(default)]
    detectors: Detectors,
    /// The newest evaluation, until a step says it.
    #[serde(default)]
    evaluated: Option<EvaluationRecord>,
    /// Response tokens scored lately, by second.
    tokens: VecDeque<TokensInSecond>,
    /// The second in which tokens began to come after none had for the whole window.
    #[serde(default)]
    tokens_since: u64,
    /// When this coordinator started.
    #[serde(default)]
    started_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TokensInSecond {
    second: u64,
    tokens: u64,
}

impl History {
    /// The steps, oldest first.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &StepRecord> + Clone {
        self.steps.iter().map(AsRef::as_ref)
    }

    /// The same, to be held by others as well: no step is copied.
    pub(crate) fn shared_steps(&self) -> Vec<Arc<StepRecord>> {
        self.steps.iter().map(Arc::clone).collect()
    }

    /// What has changed in the plan, oldest first.
    pub fn changes(&self) -> impl Iterator<Item = &PlanChange> {
        self.changes.iter()
    }

    /// The run goes on under another plan.
    pub(super) fn plan_changed(&mut self, now: Timestamp, after: BatchId, changes: &[String]) {
        for change in changes {
            self.changes.push_back(PlanChange { time: now, after, change: change.clone() });
            if self.changes.len() > CHANGES_LIMIT {
                self.changes.pop_front();
            }
        }
    }

    /// The scored responses of a group that is filtered.
    pub(super) fn observe_group(&mut self, scored: &[ScoreSummary]) {
        self.detectors.observe(scored);
        self.outcomes.observe(scored);
    }

    /// A response of this many tokens was scored.
    pub(super) fn scored_tokens(&mut self, now: Timestamp, tokens: u64) {
        let second = now.0 / 1000;
        while self.tokens.front().is_some_and(|first| first.second + RATE_WINDOW_SECONDS <= second) {
            self.tokens.pop_front();
        }
        match self.tokens.back_mut() {
            Some(last) if last.second == second => last.tokens += tokens,
            last => {
                if last.is_none() {
                    self.tokens_since = second;
                }
                self.tokens.push_back(TokensInSecond { second, tokens });
            }
        }
    }

    /// Response tokens scored per second over the last seconds, or since they began to come.
    pub fn tokens_per_second(&self, now: Timestamp) -> f64 {
        let second = now.0 / 1000;
        let recent = self.tokens.iter().filter(|at| at.second + RATE_WINDOW_SECONDS > second);
        let span = (second + 1).saturating_sub(self.tokens_since).clamp(1, RATE_WINDOW_SECONDS);
        recent.map(|at| at.tokens).sum::<u64>() as f64 / span as f64
    }

    /// A coordinator has started: what was before says nothing about the pace from here on.
    pub(super) fn started(&mut self, now: Timestamp) {
        self.started_at = now;
        self.tokens.clear();
    }

    /// Seconds that the last steps took, at most so many of them; none before the first one of this
    /// coordinator.
    pub(crate) fn seconds_per_step(&self, most: usize) -> Option<f64> {
        let recent: Vec<&StepRecord> =
            self.steps().rev().take_while(|step| step.time >= self.started_at).take(most + 1).collect();
        let last = recent.first()?;
        // Of fewer steps the first one counts too, from the start on.
        let (since, steps) = match recent.get(most) {
            Some(before) => (before.time, most),
            None => (self.started_at, recent.len()),
        };
        Some(last.time.since(since).as_secs_f64() / steps as f64)
    }

    /// What the detectors of a gamed reward have found.
    pub fn detectors(&self) -> &Detectors {
        &self.detectors
    }

    /// An evaluation is over.
    pub(super) fn evaluated(&mut self, record: EvaluationRecord) {
        self.evaluated = Some(record);
    }

    /// A batch was trained; yields the step as people see it, and the alarms that were raised or have ended.
    pub(super) fn add_step(
        &mut self,
        trained: TrainedBatch<'_>,
        auto: &mut AutoStrategy,
    ) -> (StepRecord, Vec<Alarm>) {
        let TrainedBatch { now, seed, filtration: plan, batch, metrics } = trained;
        let Evaluated { readings, alarms, contributions } = self.detectors.step(batch.id);
        let mut step = StepRecord::new(now, batch, metrics);
        (step.contributions, step.detectors) = (contributions, readings);
        if let Some(found) = self.evaluated.take() {
            step.add_evaluation(&found);
        }
        let before = BatchId(batch.id.0.saturating_sub(1));
        let since = self.changes.iter().filter(|change| change.after == before);
        step.changes = since.map(|change| change.change.clone()).collect();
        let in_force = auto.filtration(plan);
        let trust = self.outcomes.step(plan, &in_force, seed.wrapping_add(batch.id.0));
        step.reliability = trust.reliability;
        let (of_batch, window) = self.select(plan, batch);
        step.filtration = FiltrationFigures {
            strategy: in_force.strategy.to_string(),
            decision: auto.judge(plan, &trust),
            batch: of_batch.selection(),
            window: window.selection(),
            r_squared: trust.estimates,
            calibration: trust.calibration,
        };
        self.steps.push_back(Arc::new(step.clone()));
        if self.steps.len() > STEPS_LIMIT {
            self.steps.pop_front();
        }
        if let Some(older) = self.steps.len().checked_sub(FIGURES_LIMIT + 1) {
            Arc::make_mut(&mut self.steps[older]).filtration = FiltrationFigures::default();
        }
        (step, alarms)
    }

    /// What was kept of a batch, and of those up to it that the window spans.
    fn select(&mut self, plan: &FiltrationPlan, batch: &BatchPlan) -> (SelectionSums, SelectionSums) {
        let of_batch = SelectionSums::of(batch);
        self.selections.push_back(of_batch.clone());
        while self.selections.len() > plan.window_batches {
            self.selections.pop_front();
        }
        let mut window = SelectionSums::default();
        self.selections.iter().for_each(|batch| window.merge(batch));
        (of_batch, window)
    }
}

/// Steps that several hold, written as if one did.
mod shared {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::StepRecord;

    pub(super) fn serialize<S: Serializer>(
        steps: &VecDeque<Arc<StepRecord>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(steps.iter().map(AsRef::as_ref))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<VecDeque<Arc<StepRecord>>, D::Error> {
        let steps = Vec::<StepRecord>::deserialize(deserializer)?;
        Ok(steps.into_iter().map(Arc::new).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::GroupSums;

    fn step(history: &mut History, second: u64) {
        let id = BatchId(history.steps.len() as u64 + 1);
        let batch = BatchPlan {
            id,
            samples: Vec::new(),
            groups: Vec::new(),
            prompts: 1,
            sums: GroupSums::default(),
            refill: Refill::default(),
        };
        let (now, metrics) = (Timestamp(second * 1000), StepMetrics::default());
        let filtration = &FiltrationPlan::default();
        let trained = TrainedBatch { now, seed: 0, filtration, batch: &batch, metrics };
        history.add_step(trained, &mut AutoStrategy::default());
    }

    #[test]
    fn the_rate_is_right_from_the_first_second_and_over_the_window_later() {
        let mut history = History::default();
        for second in 100..103 {
            history.scored_tokens(Timestamp(second * 1000 + 500), 600);
        }
        assert_eq!(history.tokens_per_second(Timestamp(102_900)), 600.0);
        for second in 103..160 {
            history.scored_tokens(Timestamp(second * 1000), 300);
        }
        assert_eq!(history.tokens_per_second(Timestamp(159_900)), 300.0);
        assert_eq!(history.tokens_per_second(Timestamp(169_000)), 150.0, "nothing came for half the window");
        assert_eq!(history.tokens_per_second(Timestamp(300_000)), 0.0);
        history.scored_tokens(Timestamp(400_000), 500);
        assert_eq!(history.tokens_per_second(Timestamp(400_500)), 500.0, "after a pause it begins anew");
    }

    #[test]
    fn steps_are_shared_and_not_copied() {
        let mut history = History::default();
        (1..4).for_each(|second| step(&mut history, second));
        let before = history.shared_steps();
        step(&mut history, 4);
        let after = history.shared_steps();
        assert_eq!((before.len(), after.len()), (3, 4));
        assert!(before.iter().zip(&after).all(|(one, other)| Arc::ptr_eq(one, other)));
        let bytes = serde_json::to_vec(&history).unwrap();
        assert_eq!(serde_json::from_slice::<History>(&bytes).unwrap(), history);
    }

    #[test]
    fn the_pace_is_known_after_one_step_and_forgets_what_was_before_a_restart() {
        let mut history = History::default();
        history.started(Timestamp(10_000));
        assert_eq!(history.seconds_per_step(10), None);
        step(&mut history, 14);
        assert_eq!(history.seconds_per_step(10), Some(4.0));
        for second in [16, 18, 20] {
            step(&mut history, second);
        }
        assert_eq!(history.seconds_per_step(10), Some(2.5));
        assert_eq!(history.seconds_per_step(2), Some(2.0), "the last two");
        history.started(Timestamp(9_000_000));
        assert_eq!(history.seconds_per_step(10), None, "the run was away for hours");
        step(&mut history, 9_003);
        assert_eq!(history.seconds_per_step(10), Some(3.0));
    }
}
