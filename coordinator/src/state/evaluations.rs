//! Evaluations: held-out prompts that are asked of the policy now and then, like any other prompts, and from
//! which nothing is learnt.
//!
//! An evaluation begins when so many versions have been trained since the one before, also before the first
//! step and after the last one. Its prompts are leased before those of training, to actors that have its
//! version or a newer one; its responses are scored like others and end as `evaluated`. They are part of no
//! group that is filtered, of no batch, and of no figure of training. In deterministic mode nothing is
//! trained beyond the version meanwhile, so that all of them are of one; elsewhere training goes on, and
//! the record says which versions drew them.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::{BatchId, PolicyVersion, PromptId, RolloutId, Timestamp};

use super::evaluation_plan::{BestBy, EvaluationPlan};
use super::fact::LeaseBounds;
use super::groups::{CompleteGroup, Groups};
use super::plan::RunPlan;
use super::sums::{GroupSums, one_turn};

/// Records that are remembered for files that lack them.
const RECORDS_LIMIT: usize = 256;

/// An evaluation as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvaluationRecord {
    /// The version that was the newest when it began.
    #[schemars(with = "u64")]
    pub version: PolicyVersion,
    /// The mean of the versions that drew the responses' first tokens: above `version` where training went on
    /// meanwhile.
    pub drawn_by: f64,
    /// When it was over, in milliseconds since 1970 (UTC).
    #[schemars(with = "u64")]
    pub time: Timestamp,
    /// Seconds that it took.
    pub seconds: f64,
    /// Prompts that were asked.
    pub prompts: u64,
    /// Responses that were scored.
    pub responses: u64,
    /// Responses that were given up: they count for nothing.
    pub failed: u64,
    /// Their tokens: what it cost.
    pub response_tokens: u64,
    /// The mean score.
    pub score_mean: f64,
    /// The standard deviation of the scores.
    pub score_deviation: f64,
    /// The mean outcome in the hidden tests, where there are any.
    pub outcome_mean: Option<f64>,
    /// Share of responses cut off by the length limit.
    pub truncated: f64,
    /// Mean turns of the responses.
    #[serde(default = "one_turn")]
    pub turns_mean: f64,
    /// Share of them with more than one turn.
    #[serde(default)]
    pub several_turns: f64,
    /// Whether no evaluation before was better.
    pub is_best: bool,
    /// Whether the run ends with it, because too many in a row were not better.
    pub ends_run: bool,
}

/// All evaluations of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Evaluations {
    groups: Groups,
    /// Prompts to lease, in order.
    waiting: VecDeque<PromptId>,
    under_way: Option<UnderWay>,
    /// How many have begun.
    begun: u32,
    /// The version of the one that began last.
    last: Option<PolicyVersion>,
    best: Option<Best>,
    /// Evaluations since the best one.
    without_gain: u64,
    is_over: bool,
    records: VecDeque<EvaluationRecord>,
}

/// The evaluation that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct UnderWay {
    version: PolicyVersion,
    began: Timestamp,
    /// Sum of the versions that drew the responses' first tokens.
    versions: u64,
    sums: GroupSums,
}

/// The best version so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Best {
    version: PolicyVersion,
    value: f64,
}

impl Evaluations {
    /// The weights hold every batch up to `trained`: begins what is due.
    pub(super) fn begin_if_due(&mut self, now: Timestamp, plan: &RunPlan, trained: BatchId) {
        let Some(evaluation) = &plan.evaluation else { return };
        if self.is_under_way() || !self.is_due(plan, trained) {
            return;
        }
        let version = PolicyVersion(trained.0);
        for place in 0..evaluation.prompts {
            let prompt = PromptId::held_out(self.begun, place);
            self.groups.open(prompt, evaluation.samples, version);
            self.waiting.push_back(prompt);
        }
        self.begun += 1;
        self.last = Some(version);
        let sums = GroupSums::default();
        self.under_way = Some(UnderWay { version, began: now, versions: 0, sums });
    }

    /// Whether the weights, which hold every batch up to `trained`, are to be evaluated.
    fn is_due(&self, plan: &RunPlan, trained: BatchId) -> bool {
        let Some(evaluation) = plan.evaluation.as_ref().filter(|_| !self.is_over) else { return false };
        match self.last {
            None => true,
            Some(last) if trained >= plan.last_batch() => last.0 < trained.0,
            Some(last) => last.0 / evaluation.every < trained.0 / evaluation.every,
        }
    }

    /// Whether the run, which has trained every batch up to `trained`, waits for an evaluation.
    pub(super) fn is_awaited(&self, plan: &RunPlan, trained: BatchId) -> bool {
        self.is_under_way() || self.is_due(plan, trained)
    }

    /// Whether responses are awaited.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The version whose evaluation is under way.
    pub(super) fn version_under_way(&self) -> Option<PolicyVersion> {
        self.under_way.as_ref().map(|under_way| under_way.version)
    }

    /// Whether there were too many in a row that were not better: nothing more is to be trained.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The version that held-out prompts wait for.
    pub(super) fn wanted_version(&self) -> Option<PolicyVersion> {
        self.version_under_way().filter(|_| !self.waiting.is_empty())
    }

    /// The best version so far, where it is not the one that the run began with.
    pub(super) fn best(&self) -> Option<BatchId> {
        self.best.map(|best| BatchId(best.version.0)).filter(|best| best.0 > 0)
    }

    /// Those that were over lately, oldest first.
    pub(super) fn records(&self) -> impl DoubleEndedIterator<Item = &EvaluationRecord> + Clone {
        self.records.iter()
    }

    /// Prompts with a response awaited.
    pub(super) fn open_prompts(&self) -> u64 {
        self.groups.open_count()
    }

    /// Attempts issued and not ended, or scored in an open group.
    pub(super) fn in_flight(&self) -> u64 {
        self.groups.in_flight()
    }

    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }

    pub(super) fn groups_mut(&mut self) -> &mut Groups {
        &mut self.groups
    }

    /// The prompts of the next lease. An actor has room for so many groups of the run's size, or in
    /// deterministic mode for a lease.
    pub(super) fn next_lease(&mut self, plan: &RunPlan, bounds: LeaseBounds) -> Vec<PromptId> {
        let Some(evaluation) = &plan.evaluation else { return Vec::new() };
        let per_group = u64::from(plan.group_size / evaluation.samples.max(1)).max(1);
        let room = if plan.deterministic { u64::MAX } else { bounds.room.saturating_mul(per_group) };
        let most = usize::try_from(room.min(plan.lease_prompts)).unwrap_or(usize::MAX);
        let count = most.min(self.waiting.len());
        self.waiting.drain(..count).filter(|prompt| self.groups.is_waiting(*prompt)).collect()
    }

    /// A prompt with waiting responses is leased again.
    pub(super) fn put_back(&mut self, prompt: PromptId) {
        if self.groups.is_waiting(prompt) && !self.waiting.contains(&prompt) {
            self.waiting.push_back(prompt);
        }
    }

    /// A response that was to be repeated has come after all.
    pub(super) fn drop_complete(&mut self) {
        let Self { waiting, groups, .. } = self;
        waiting.retain(|prompt| groups.is_waiting(*prompt));
    }

    /// Nothing is awaited of a group any more; yields the record of an evaluation that is over with it.
    pub(super) fn complete(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        group: &CompleteGroup,
    ) -> Option<EvaluationRecord> {
        let under_way = self.under_way.as_mut()?;
        under_way.sums.merge(&GroupSums::of(&group.scored));
        under_way.versions += group.scored.iter().map(|summary| summary.oldest.0).sum::<u64>();
        if self.groups.open_count() > 0 {
            return None;
        }
        let under_way = self.under_way.take()?;
        let record = self.judge(plan, under_way.into_record(now, plan.evaluation.as_ref()?));
        self.records.push_back(record.clone());
        if self.records.len() > RECORDS_LIMIT {
            self.records.pop_front();
        }
        Some(record)
    }

    /// Whether it is the best so far, and whether the run ends with it. One that measured nothing says
    /// nothing.
    fn judge(&mut self, plan: &RunPlan, mut record: EvaluationRecord) -> EvaluationRecord {
        let Some(evaluation) = &plan.evaluation else { return record };
        let value = match evaluation.best_by {
            BestBy::Score => (record.responses > 0).then_some(record.score_mean),
            BestBy::Outcome => record.outcome_mean,
        };
        let Some(value) = value else { return record };
        record.is_best = self.best.is_none_or(|best| value > best.value);
        if record.is_best {
            self.best = Some(Best { version: record.version, value });
            self.without_gain = 0;
        } else {
            self.without_gain += 1;
        }
        self.is_over = evaluation.stop_after > 0 && self.without_gain >= evaluation.stop_after;
        record.ends_run = self.is_over;
        record
    }

    /// Ends the evaluation that is under way; yields the attempts that were in flight.
    pub(super) fn stop(&mut self) -> Vec<RolloutId> {
        self.waiting.clear();
        self.under_way = None;
        self.groups.close_all()
    }
}

impl UnderWay {
    fn into_record(self, now: Timestamp, plan: &EvaluationPlan) -> EvaluationRecord {
        let Self { version, began, versions, sums } = self;
        let score = sums.score.spread();
        let asked = plan.prompts * u64::from(plan.samples);
        EvaluationRecord {
            version,
            drawn_by: versions as f64 / sums.score.count.max(1) as f64,
            time: now,
            seconds: now.since(began).as_secs_f64(),
            prompts: plan.prompts,
            responses: sums.score.count,
            failed: asked.saturating_sub(sums.score.count),
            response_tokens: sums.tokens,
            score_mean: score.mean,
            score_deviation: score.deviation,
            outcome_mean: (sums.outcome.count > 0).then_some(sums.outcome.mean),
            truncated: sums.truncated as f64 / sums.score.count.max(1) as f64,
            turns_mean: sums.turns as f64 / sums.score.count.max(1) as f64,
            several_turns: sums.several_turns as f64 / sums.score.count.max(1) as f64,
            is_best: false,
            ends_run: false,
        }
    }
}
