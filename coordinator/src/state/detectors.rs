//! Is the reward being gamed? Detectors over the scored responses of complete groups, evaluated once a step.
//!
//! A policy that has found how to please its scorers without doing better shows it: its score rises and its
//! outcome does not (Gao et al., "Scaling Laws for Reward Model Overoptimization", arXiv 2210.10760), its
//! responses grow or shrink (Singhal et al., "A Long Way to Go", arXiv 2310.03716), one scorer decides while
//! another is given up, siblings say the same. None of this proves anything; each is a reason to read some
//! responses.
//!
//! The groups that were complete between two steps are summed up ([`Sums`]). A detector looks at the newest
//! steps, and where it compares, at those before: what stays as it became is no alarm any more after some
//! time, and the steps show when it became so. What is kept does not grow with the run. Everything here
//! follows from facts, so that a restart knows what the process before knew.

mod readings;
mod sums;

use std::collections::{BTreeMap, VecDeque};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use types::BatchId;

use self::readings::{Extremes, Windows};
use self::sums::Sums;
use super::fact::ScoreSummary;

/// Fewest steps, and fewest groups, that the newest window spans.
const RECENT_STEPS: usize = 8;
const RECENT_GROUPS: u64 = 64;
/// How many times more steps than the newest window the one before spans, at most.
const REFERENCE_FACTOR: usize = 4;
/// Steps that are kept: both windows, where a step has one group.
const STEPS_LIMIT: usize = RECENT_GROUPS as usize * (1 + REFERENCE_FACTOR);
/// An alarm that was raised at the level 1 ends below this one.
const END_LEVEL: f64 = 0.6;

/// A detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// The score has risen, and the outcome has not or has fallen.
    ScoreWithoutOutcome,
    /// Responses have become much longer, or much shorter.
    LengthDrift,
    /// One scorer decides nearly all differences within groups, and another one falls.
    OneScorerDecides,
    /// Siblings' scores hardly differ any more.
    VarianceCollapse,
    /// Most responses have the highest score that there is, and no outcome says that they are right.
    ScoreAtBound,
    /// Siblings say the same more often than they did.
    DuplicateSiblings,
    /// Responses that the length limit cut off score higher than those that came to their end.
    TruncatedPaid,
}

impl Detector {
    /// Every detector, in the order of their names.
    pub const ALL: [Self; 7] = [
        Self::ScoreWithoutOutcome,
        Self::LengthDrift,
        Self::OneScorerDecides,
        Self::VarianceCollapse,
        Self::ScoreAtBound,
        Self::DuplicateSiblings,
        Self::TruncatedPaid,
    ];
    /// Their names in metrics, steps and logs.
    pub(crate) const NAMES: [&'static str; 7] = [
        "score_without_outcome",
        "length_drift",
        "one_scorer_decides",
        "variance_collapse",
        "score_at_bound",
        "duplicate_siblings",
        "truncated_paid",
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// What a detector has found last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// How much there is of what raises the alarm, not below 0: it is raised at 1 and ends below 0.6.
    pub level: f64,
    /// The alarm is raised.
    pub firing: bool,
    /// The batch since which it is so.
    pub since: BatchId,
    /// The numbers, for a person.
    pub detail: String,
}

/// An alarm was raised, or has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// The detector.
    pub detector: Detector,
    /// Whether it was raised.
    pub raised: bool,
    /// The numbers, for a person.
    pub detail: String,
}

/// What a detector said at a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reading {
    /// How much there is of what raises the alarm: it is raised at 1 and ends below 0.6.
    pub level: f64,
    /// The alarm is raised.
    pub firing: bool,
}

/// What the detectors say at a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluated {
    /// By detector; without those that there is nothing to measure for.
    pub readings: BTreeMap<Detector, Reading>,
    /// What has changed.
    pub alarms: Vec<Alarm>,
    /// What each scorer added to the score in the mean, since the step before; empty where there is one
    /// scorer.
    pub contributions: BTreeMap<String, f64>,
}

/// All detectors, and what they remember.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Detectors {
    /// Groups that were complete since the last step.
    open: Sums,
    /// The steps before, the oldest first.
    steps: VecDeque<Sums>,
    extremes: Extremes,
    findings: BTreeMap<Detector, Finding>,
}

impl Detectors {
    /// What each detector has found last; without those that never had enough to look at.
    pub fn findings(&self) -> &BTreeMap<Detector, Finding> {
        &self.findings
    }

    /// The scored responses of a complete group.
    pub fn observe(&mut self, group: &[ScoreSummary]) {
        if !group.is_empty() {
            self.open.merge(&Sums::of(group));
        }
    }

    /// A batch was trained: looks at what was complete up to it.
    pub fn step(&mut self, batch: BatchId) -> Evaluated {
        let mut evaluated = Evaluated::default();
        let step = std::mem::take(&mut self.open);
        if step.groups == 0 {
            return evaluated;
        }
        let added = step.scorers.iter().map(|(name, sums)| (name.clone(), sums.added.mean));
        evaluated.contributions = added.collect();
        self.steps.push_back(step);
        if self.steps.len() > STEPS_LIMIT {
            self.steps.pop_front();
        }
        let Some(windows) = self.windows() else { return evaluated };
        for detector in Detector::ALL {
            // What cannot be measured now is as it was.
            if let Some(found) = windows.read(detector, &self.extremes) {
                let (reading, alarm) = self.found(batch, detector, found.level, found.detail);
                evaluated.readings.insert(detector, reading);
                evaluated.alarms.extend(alarm);
            }
        }
        self.extremes.observe(&windows);
        evaluated
    }

    /// The newest steps, and those before where they are enough.
    fn windows(&self) -> Option<Windows> {
        let mut steps = self.steps.iter().rev();
        let (mut recent, mut taken) = (Sums::default(), 0);
        while taken < RECENT_STEPS || recent.groups < RECENT_GROUPS {
            recent.merge(steps.next()?);
            taken += 1;
        }
        let mut reference = Sums::default();
        for step in steps.take(taken * REFERENCE_FACTOR) {
            reference.merge(step);
        }
        let reference = (reference.groups >= RECENT_GROUPS).then_some(reference);
        Some(Windows { recent, reference })
    }

    fn found(
        &mut self,
        batch: BatchId,
        detector: Detector,
        level: f64,
        detail: String,
    ) -> (Reading, Option<Alarm>) {
        let before = self.findings.get(&detector);
        let was_firing = before.is_some_and(|finding| finding.firing);
        let firing = level >= if was_firing { END_LEVEL } else { 1.0 };
        let since = before.filter(|_| firing == was_firing).map_or(batch, |finding| finding.since);
        let changed = firing != was_firing;
        let alarm = changed.then(|| Alarm { detector, raised: firing, detail: detail.clone() });
        self.findings.insert(detector, Finding { level, firing, since, detail });
        (Reading { level, firing }, alarm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detector_has_one_name() {
        for (place, detector) in Detector::ALL.into_iter().enumerate() {
            assert_eq!(detector as usize, place);
            assert_eq!(serde_json::to_value(detector).unwrap(), detector.name());
        }
    }
}
