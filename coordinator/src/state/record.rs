//! What happened, for people and plots: steps, and how far the reward can be trusted.

use std::collections::VecDeque;

use algo::filtration::Filtration;
use algo::r2::{DEFAULT_BINS, filtered_r_squared};
use serde::{Deserialize, Serialize};
use types::link::learner::StepMetrics;
use types::{BatchId, Timestamp};

use super::BatchPlan;
use super::event::ScoreSummary;

/// Steps remembered for the dashboard.
const MAX_STEPS: usize = 1000;
/// Groups that the reliability is computed over.
const RELIABILITY_GROUPS: usize = 512;
/// Seconds over which the token rate is averaged.
const RATE_WINDOW_SECONDS: u64 = 20;

/// One training step as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The batch, and the version it made.
    pub batch: BatchId,
    /// When it was trained.
    pub time: Timestamp,
    /// Prompts in the batch.
    pub prompts: u64,
    /// Responses scored for it, filtered ones included.
    pub responses: u64,
    /// Their mean score: what the unfiltered policy earns.
    pub score_mean: f64,
    /// Their mean outcome in the hidden tests, where they have any.
    pub outcome_mean: Option<f64>,
    /// Their mean length in tokens.
    pub response_tokens_mean: f64,
    /// Share of them cut off by the length limit.
    pub truncated: f64,
    /// How far the reward could be trusted.
    pub reliability: Reliability,
    /// What the learner measured.
    pub metrics: StepMetrics,
}

impl StepRecord {
    pub(super) fn new(
        now: Timestamp,
        plan: &BatchPlan,
        metrics: StepMetrics,
        reliability: Reliability,
    ) -> Self {
        let sums = plan.sums;
        let per_response = |sum: f64| sum / (sums.responses.max(1)) as f64;
        Self {
            batch: plan.id,
            time: now,
            prompts: plan.prompts,
            responses: sums.responses,
            score_mean: per_response(sums.score),
            outcome_mean: (sums.with_outcome > 0).then(|| sums.outcome / sums.with_outcome as f64),
            response_tokens_mean: per_response(sums.tokens as f64),
            truncated: per_response(sums.truncated as f64),
            reliability,
            metrics,
        }
    }
}

/// R² of outcome on reward over recent prompts that carry tests (PF-PPO, section 4, "Weight choice").
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// Over all responses.
    pub unfiltered: Option<f64>,
    /// Over responses drawn from the filtered policy.
    pub filtered: Option<f64>,
}

/// The run's memory of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) steps: VecDeque<StepRecord>,
    /// (score, outcome) of the responses of recent groups with tests.
    groups: VecDeque<Vec<(f64, f64)>>,
    /// Response tokens scored, by second.
    tokens: VecDeque<(u64, u64)>,
}

impl Record {
    pub(super) fn observe_group(&mut self, scored: &[&ScoreSummary]) {
        let pair = |summary: &&ScoreSummary| Some((f64::from(summary.score), f64::from(summary.outcome?)));
        if let Some(pairs) = scored.iter().map(pair).collect::<Option<Vec<_>>>() {
            self.groups.push_back(pairs);
            if self.groups.len() > RELIABILITY_GROUPS {
                self.groups.pop_front();
            }
        }
    }

    pub(super) fn reliability(&self, filtration: &Filtration) -> Reliability {
        let groups: Vec<Vec<(f64, f64)>> = self.groups.iter().cloned().collect();
        let r_squared = |filtration: &Filtration| {
            filtered_r_squared(filtration, &groups, DEFAULT_BINS).ok().and_then(|r2| r2.r_squared)
        };
        let none = Filtration { strategy: algo::filtration::Strategy::None, ..*filtration };
        Reliability { unfiltered: r_squared(&none), filtered: r_squared(filtration) }
    }

    pub(super) fn tokens(&mut self, now: Timestamp, tokens: u64) {
        let second = now.0 / 1000;
        match self.tokens.back_mut() {
            Some((last, sum)) if *last == second => *sum += tokens,
            _ => self.tokens.push_back((second, tokens)),
        }
        while self.tokens.front().is_some_and(|(first, _)| first + RATE_WINDOW_SECONDS < second) {
            self.tokens.pop_front();
        }
    }

    /// Response tokens per second over the last seconds.
    pub(super) fn tokens_per_second(&self, now: Timestamp) -> f64 {
        let second = now.0 / 1000;
        let recent = self.tokens.iter().filter(|(at, _)| at + RATE_WINDOW_SECONDS >= second);
        recent.map(|(_, tokens)| *tokens).sum::<u64>() as f64 / RATE_WINDOW_SECONDS as f64
    }

    pub(super) fn push(&mut self, step: StepRecord) {
        self.steps.push_back(step);
        if self.steps.len() > MAX_STEPS {
            self.steps.pop_front();
        }
    }
}
