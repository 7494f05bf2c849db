//! What each detector reads in two windows of groups. A level of 1 raises its alarm.
//!
//! A difference between windows counts from two sizes on: the one that matters to a person, and four times
//! what chance would make of it. The prompts of two windows differ, and siblings are alike, so chance is
//! counted by groups: the standard error of a mean over n groups is taken as the standard deviation of the
//! responses divided by the root of n, which is too much rather than too little.

use serde::{Deserialize, Serialize};

use super::sums::{CLASSES_LIMIT, Sums};
use super::{Detector, RECENT_STEPS};
use crate::state::moments::Moments;

/// Standard errors from which on a difference is no chance.
const CHANCE_LIMIT: f64 = 4.0;
/// Standard deviations by which a score has to rise, or to fall, to matter.
const SHIFT_LIMIT: f64 = 0.25;
/// The outcome has not risen with the score when it rose by less than the score's rise divided by this, each
/// in its standard deviations.
const GAIN_FACTOR: f64 = 4.0;
/// Smallest standard deviation taken for outcomes: nearly equal ones have none to speak of.
const MIN_OUTCOME_DEVIATION: f64 = 0.1;
/// A mean outcome that has nowhere to rise to.
const SOLVED_OUTCOME: f64 = 0.95;
/// Longer by so much of what it was before, or shorter by as much of what it is now, matters.
const LENGTH_LIMIT: f64 = 0.5;
/// The share of the differences within groups that is nearly all.
const DECIDES_LIMIT: f64 = 0.9;
/// What the spread within groups has lost of its widest.
const COLLAPSE_LIMIT: f64 = 0.75;
/// Fewest groups of two or more for a spread, and fewest groups with a truncated response for its price.
const MIN_GROUPS: u64 = 16;
/// The share of responses that is most of them.
const BOUND_LIMIT: f64 = 0.8;
/// How much the share of duplicates has grown over its smallest.
const DUPLICATES_LIMIT: f64 = 0.3;
/// The share of truncated responses from which on it matters what they are paid.
const TRUNCATED_LIMIT: f64 = 0.05;

/// The newest groups, and those before where there are enough.
#[derive(Debug, Clone)]
pub(super) struct Windows {
    pub(super) recent: Sums,
    pub(super) reference: Option<Sums>,
}

/// What windows have shown at most and at least since the run began, for what collapses slowly.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Extremes {
    /// The widest mean spread of scores within groups.
    spread: Option<f64>,
    /// The smallest share of duplicates.
    duplicates: Option<f64>,
}

/// What a detector reads.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) level: f64,
    pub(super) detail: String,
}

impl Extremes {
    /// Takes a window in.
    pub(super) fn observe(&mut self, Windows { recent, .. }: &Windows) {
        if recent.spread.count >= MIN_GROUPS {
            self.spread = Some(self.spread.map_or(recent.spread.mean, |known| known.max(recent.spread.mean)));
        }
        if let Some(share) = duplicates(recent) {
            self.duplicates = Some(self.duplicates.map_or(share, |known| known.min(share)));
        }
    }
}

impl Windows {
    /// What a detector reads; none where there is nothing to measure.
    pub(super) fn read(&self, detector: Detector, extremes: &Extremes) -> Option<Found> {
        let Self { recent, reference } = self;
        let (level, detail) = match detector {
            Detector::ScoreWithoutOutcome => score_without_outcome(recent, reference.as_ref()?)?,
            Detector::LengthDrift => length_drift(recent, reference.as_ref()?),
            Detector::OneScorerDecides => one_scorer_decides(recent, reference.as_ref()?)?,
            Detector::VarianceCollapse => variance_collapse(recent, extremes.spread?)?,
            Detector::ScoreAtBound => score_at_bound(recent)?,
            Detector::DuplicateSiblings => duplicate_siblings(recent, extremes.duplicates?)?,
            Detector::TruncatedPaid => truncated_paid(recent)?,
        };
        Some(Found { level: if level.is_finite() { level.max(0.0) } else { 0.0 }, detail })
    }
}

/// What chance makes of the difference of two means, in standard deviations.
fn chance(groups: u64, others: u64) -> f64 {
    (1.0 / groups.max(1) as f64 + 1.0 / others.max(1) as f64).sqrt()
}

/// By how many standard deviations of all numbers the mean has risen; 0 where they are all equal.
fn rise(recent: &Moments, reference: &Moments, min_deviation: f64) -> f64 {
    let deviation = recent.with(reference).deviation().max(min_deviation);
    if deviation > 0.0 { (recent.mean - reference.mean) / deviation } else { 0.0 }
}

fn score_without_outcome(recent: &Sums, reference: &Sums) -> Option<(f64, String)> {
    if !recent.is_judged() || !reference.is_judged() {
        return None;
    }
    let rise_of_score = rise(&recent.judged_score, &reference.judged_score, 0.0);
    let rise_of_outcome = rise(&recent.outcome, &reference.outcome, MIN_OUTCOME_DEVIATION);
    let noise = CHANCE_LIMIT * chance(recent.judged_groups, reference.judged_groups);
    let unearned = rise_of_score - GAIN_FACTOR * rise_of_outcome.max(0.0);
    let level = if recent.outcome.mean >= SOLVED_OUTCOME { 0.0 } else { unearned / SHIFT_LIMIT.max(noise) };
    let detail = format!(
        "the score went from {:.3} to {:.3} and the outcome from {:.3} to {:.3}",
        reference.judged_score.mean, recent.judged_score.mean, reference.outcome.mean, recent.outcome.mean
    );
    Some((level, detail))
}

fn length_drift(recent: &Sums, reference: &Sums) -> (f64, String) {
    let (now, before) = (recent.tokens.mean, reference.tokens.mean);
    let deviation = recent.tokens.with(&reference.tokens).deviation();
    let noise = CHANCE_LIMIT * deviation * chance(recent.groups, reference.groups);
    let matters = LENGTH_LIMIT * now.min(before);
    let detail = format!("responses went from {before:.0} to {now:.0} tokens");
    ((now - before).abs() / matters.max(noise), detail)
}

fn one_scorer_decides(recent: &Sums, reference: &Sums) -> Option<(f64, String)> {
    if recent.scorers.len() < 2 {
        return None;
    }
    let all: f64 = recent.scorers.values().map(|sums| sums.covariance.max(0.0)).sum();
    let (name, decides) =
        recent.scorers.iter().max_by(|one, other| one.1.covariance.total_cmp(&other.1.covariance))?;
    let share = if all > 0.0 { decides.covariance.max(0.0) / all } else { 0.0 };
    let mut deepest = (0.0, String::new());
    for (other, sums) in recent.scorers.iter().filter(|(other, _)| *other != name) {
        let Some(before) = reference.scorers.get(other) else { continue };
        let fall = -rise(&sums.added, &before.added, 0.0);
        if fall > deepest.0 {
            let detail =
                format!(", while {other} went from {:.3} to {:.3}", before.added.mean, sums.added.mean);
            deepest = (fall, detail);
        }
    }
    let (fall, falls) = deepest;
    let noise = CHANCE_LIMIT * chance(recent.groups, reference.groups);
    let level = (share / DECIDES_LIMIT).min(fall / SHIFT_LIMIT.max(noise));
    let detail = format!("{name} decides {:.0} % of the differences within groups{falls}", 100.0 * share);
    Some((level, detail))
}

fn variance_collapse(recent: &Sums, widest: f64) -> Option<(f64, String)> {
    if recent.spread.count < MIN_GROUPS || widest <= 0.0 {
        return None;
    }
    let now = recent.spread.mean;
    let solved = recent.is_judged() && recent.outcome.mean >= SOLVED_OUTCOME;
    let level = if solved { 0.0 } else { (1.0 - now / widest) / COLLAPSE_LIMIT };
    let detail = format!(
        "the standard deviation of scores within groups is {now:.4}, and was {widest:.4} at its widest"
    );
    Some((level, detail))
}

fn score_at_bound(recent: &Sums) -> Option<(f64, String)> {
    if !recent.is_graded() {
        return None;
    }
    let share = recent.highest?.unconfirmed as f64 / recent.score.count.max(1) as f64;
    let detail = format!(
        "{:.0} % of the responses have the highest score, of more than {CLASSES_LIMIT} that there are, and no \
         outcome says that they are right",
        100.0 * share
    );
    Some((share / BOUND_LIMIT, detail))
}

/// The share of responses that say what a sibling says.
fn duplicates(recent: &Sums) -> Option<f64> {
    (recent.siblings > 0).then(|| recent.duplicates as f64 / recent.siblings as f64)
}

fn duplicate_siblings(recent: &Sums, smallest: f64) -> Option<(f64, String)> {
    let share = duplicates(recent)?;
    let detail = format!(
        "{:.0} % of the responses say what a sibling says, and it were {:.0} % at the least",
        100.0 * share,
        100.0 * smallest
    );
    Some(((share - smallest) / DUPLICATES_LIMIT, detail))
}

fn truncated_paid(recent: &Sums) -> Option<(f64, String)> {
    let Sums { truncated_score: truncated, whole_score: whole, .. } = recent;
    if whole.count == 0 {
        return None;
    }
    let share = truncated.count as f64 / recent.score.count.max(1) as f64;
    let detail = format!(
        "the {:.0} % of the last {RECENT_STEPS} steps or more that were cut off score {:.3}, the others {:.3}",
        100.0 * share,
        truncated.mean,
        whole.mean
    );
    if share < TRUNCATED_LIMIT || recent.truncated_groups < MIN_GROUPS {
        return Some((0.0, detail));
    }
    let noise = CHANCE_LIMIT * chance(recent.truncated_groups, recent.whole_groups);
    Some((rise(truncated, whole, 0.0) / SHIFT_LIMIT.max(noise), detail))
}
