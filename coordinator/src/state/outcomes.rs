//! How far scores can be trusted: what they said and what was true, over the newest batches (PF-PPO, arXiv
//! 2409.06957, section 4, "Weight choice").
//!
//! The work is bounded. The window holds at most [`GROUPS_LIMIT`] groups and [`RESPONSES_LIMIT`] responses;
//! estimates are drawn [`REPLICATES`] times for at most [`STRATEGIES_LIMIT`] strategies, once in a step, and
//! not before a sixteenth of the window is new. It runs where the step is recorded.

use std::collections::{BTreeMap, VecDeque};

use algo::filtration::{Filtration, Strategy};
use algo::r2::{
    Bootstrap, CalibrationBin, DEFAULT_BINS, Estimate, calibration, estimates, filtered_r_squared,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::PromptId;

use super::fact::ScoreSummary;
use super::filtration_plan::FiltrationPlan;

/// Most groups of the window.
const GROUPS_LIMIT: usize = 256;
/// Most responses of the window.
const RESPONSES_LIMIT: usize = 2048;
/// How often a pool is drawn for an interval.
const REPLICATES: usize = 100;
/// Strategies that are estimated, at most.
const STRATEGIES_LIMIT: usize = 12;
/// Bins of the calibration.
const CALIBRATION_BINS: usize = 10;
/// Estimates stand until one in so many groups of the window is new.
const FRESH_SHARE: usize = 16;

/// R² of outcome on reward over recent prompts that carry tests (PF-PPO, section 4, "Weight choice").
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reliability {
    /// Over all responses.
    pub unfiltered: Option<f64>,
    /// Over responses drawn from the filtered policy.
    pub filtered: Option<f64>,
}

/// What is known of scores and outcomes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Trust {
    pub(super) reliability: Reliability,
    /// By strategy.
    pub(super) estimates: BTreeMap<String, Estimate>,
    /// They are new.
    pub(super) is_new: bool,
    /// Groups that they are of.
    pub(super) groups: u64,
    pub(super) calibration: Vec<CalibrationBin>,
}

/// (score, outcome) of the responses of recent groups in which every response has an outcome.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OutcomeWindow {
    /// Groups up to the last step: those of one step in the order of their prompts, so that nothing depends
    /// on which was complete first.
    groups: VecDeque<Vec<(f64, f64)>>,
    /// How many of them came before each of the newest steps, the oldest step first.
    steps: VecDeque<usize>,
    /// Groups since the last step.
    current: BTreeMap<PromptId, Vec<(f64, f64)>>,
    /// Groups since the estimates.
    fresh: usize,
    estimates: BTreeMap<String, Estimate>,
}

impl OutcomeWindow {
    /// A group is filtered.
    pub(super) fn observe(&mut self, scored: &[ScoreSummary]) {
        let Some(prompt) = scored.first().map(|summary| summary.id.prompt) else { return };
        let pairs =
            scored.iter().map(|summary| Some((f64::from(summary.score), f64::from(summary.outcome?))));
        if let Some(pairs) = pairs.collect::<Option<Vec<_>>>() {
            self.current.insert(prompt, pairs);
            let mut responses: usize = self.current.values().map(Vec::len).sum();
            while is_too_much(self.current.len(), responses) {
                responses -= self.current.pop_first().map_or(0, |(_, group)| group.len());
            }
        }
    }

    /// The groups since the last step are part of the window from now on, and those of the oldest steps no
    /// more.
    fn slide(&mut self, window_batches: usize) {
        let current = std::mem::take(&mut self.current);
        self.fresh += current.len();
        self.steps.push_back(current.len());
        self.groups.extend(current.into_values());
        while self.steps.len() > window_batches {
            let oldest = self.steps.pop_front().unwrap_or(0);
            drop(self.groups.drain(..oldest));
        }
        let mut responses: usize = self.groups.iter().map(Vec::len).sum();
        while is_too_much(self.groups.len(), responses) {
            responses -= self.groups.pop_front().map_or(0, |group| group.len());
            if let Some(oldest) = self.steps.iter_mut().find(|groups| **groups > 0) {
                *oldest -= 1;
            }
        }
    }

    /// A step is complete: what the window says now, with the filtration in force.
    pub(super) fn step(&mut self, plan: &FiltrationPlan, in_force: &Filtration, seed: u64) -> Trust {
        self.slide(plan.window_batches);
        let groups = self.groups.make_contiguous();
        let none = Filtration { strategy: Strategy::None, ..*in_force };
        let reliability =
            Reliability { unfiltered: r_squared(&none, groups), filtered: r_squared(in_force, groups) };
        if groups.is_empty() {
            self.estimates.clear();
        }
        let is_new = self.fresh > 0 && self.fresh * FRESH_SHARE >= groups.len();
        if is_new {
            self.fresh = 0;
            self.estimates = estimated(plan, in_force, seed, groups);
        }
        Trust {
            reliability,
            estimates: self.estimates.clone(),
            is_new,
            groups: groups.len() as u64,
            calibration: calibration(groups.iter().flatten().copied(), CALIBRATION_BINS),
        }
    }
}

/// Whether the window holds more than it may; one group it always may.
fn is_too_much(groups: usize, responses: usize) -> bool {
    groups > GROUPS_LIMIT || (responses > RESPONSES_LIMIT && groups > 1)
}

/// The strategies that are estimated.
fn strategies(plan: &FiltrationPlan, in_force: &Filtration) -> Vec<Strategy> {
    let mut strategies: Vec<Strategy> = Vec::new();
    for strategy in
        [in_force.strategy].into_iter().chain(plan.candidates()).chain(Strategy::WITHOUT_THRESHOLD)
    {
        if strategies.len() < STRATEGIES_LIMIT && !strategies.contains(&strategy) {
            strategies.push(strategy);
        }
    }
    strategies
}

fn estimated(
    plan: &FiltrationPlan,
    in_force: &Filtration,
    seed: u64,
    groups: &[Vec<(f64, f64)>],
) -> BTreeMap<String, Estimate> {
    let strategies = strategies(plan, in_force);
    let filtrations: Vec<Filtration> =
        strategies.iter().map(|strategy| Filtration { strategy: *strategy, ..*in_force }).collect();
    let bootstrap = Bootstrap { seed, replicates: REPLICATES, bins: DEFAULT_BINS };
    let found = estimates(&filtrations, groups, bootstrap).unwrap_or_default();
    let named = strategies.iter().zip(found);
    named.filter_map(|(strategy, estimate)| Some((strategy.to_string(), estimate?))).collect()
}

fn r_squared(filtration: &Filtration, groups: &[Vec<(f64, f64)>]) -> Option<f64> {
    filtered_r_squared(filtration, groups, DEFAULT_BINS).ok()?.r_squared
}

#[cfg(test)]
mod tests {
    use types::{PolicyVersion, RolloutId};

    use super::*;

    /// A group of so many responses: scores spread over 0..1, right above one half.
    fn group(ordinal: u64, size: u16, has_outcomes: bool) -> Vec<ScoreSummary> {
        let prompt = PromptId { epoch: 0, ordinal };
        let mut scored = Vec::new();
        for sibling in 0..size {
            let id = RolloutId { prompt, sibling, attempt: 0 };
            let score = (id.seed(3) % 1000) as f32 / 1000.0;
            scored.push(ScoreSummary {
                id,
                score,
                outcome: has_outcomes.then_some(f32::from(u8::from(score > 0.5))),
                tokens: 3,
                oldest: PolicyVersion(0),
                truncated: false,
                turns: 1,
                numbers: BTreeMap::new(),
                contributions: BTreeMap::new(),
                digest: None,
            });
        }
        scored
    }

    fn step(window: &mut OutcomeWindow) -> Trust {
        let plan = FiltrationPlan { window_batches: 3, ..FiltrationPlan::default() };
        window.step(&plan, &plan.first(), 5)
    }

    #[test]
    fn without_outcomes_nothing_is_said() {
        let mut window = OutcomeWindow::default();
        (0..64).for_each(|ordinal| window.observe(&group(ordinal, 5, false)));
        window.observe(&[]);
        assert_eq!(step(&mut window), Trust::default());
    }

    #[test]
    fn the_order_in_which_groups_are_complete_has_no_say() {
        let (mut one, mut other) = (OutcomeWindow::default(), OutcomeWindow::default());
        (0..700).for_each(|ordinal| one.observe(&group(ordinal, 5, true)));
        (0..700).rev().for_each(|ordinal| other.observe(&group(ordinal, 5, true)));
        let trust = step(&mut one);
        assert_eq!(trust, step(&mut other));
        assert_eq!((one, trust.groups, trust.is_new), (other, GROUPS_LIMIT as u64, true));
        assert!(trust.estimates.len() >= Strategy::WITHOUT_THRESHOLD.len() && trust.calibration.len() == 10);
    }

    #[test]
    fn the_window_holds_the_newest_steps_and_no_more_than_it_may() {
        let mut window = OutcomeWindow::default();
        for number in 0..5 {
            (0..10).for_each(|place| window.observe(&group(number * 10 + place, 5, true)));
            assert_eq!(step(&mut window).groups, 10 * (number + 1).min(3));
        }
        for number in 5..8 {
            (0..300).for_each(|place| window.observe(&group(number * 1000 + place, 20, true)));
            let trust = step(&mut window);
            let responses: usize = window.groups.iter().map(Vec::len).sum();
            assert!((RESPONSES_LIMIT - 20..=RESPONSES_LIMIT).contains(&responses), "{responses}");
            assert_eq!(trust.groups, window.steps.iter().sum::<usize>() as u64);
        }
        window.observe(&group(9000, 5000, true));
        assert_eq!(step(&mut window).groups, 1, "one group it may always hold");
    }

    #[test]
    fn estimates_stand_until_enough_is_new() {
        let mut window = OutcomeWindow::default();
        (0..64).for_each(|ordinal| window.observe(&group(ordinal, 5, true)));
        let first = step(&mut window);
        window.observe(&group(100, 5, true));
        let second = step(&mut window);
        assert!(first.is_new && !second.is_new);
        assert_eq!(first.estimates, second.estimates);
        (200..204).for_each(|ordinal| window.observe(&group(ordinal, 5, true)));
        assert!(step(&mut window).is_new, "a sixteenth");
    }
}
