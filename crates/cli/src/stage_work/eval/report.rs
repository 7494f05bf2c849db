//! The figures of a comparison, as a table for people and JSON for programs.

use std::fmt;
use std::path::PathBuf;

use algo::filtration::{Filtration, Strategy};
use algo::r2::{DEFAULT_BINS, filtered_r_squared};
use serde::Serialize;

use crate::decimal::{decimal, signed};
use crate::table::table_of_figures;

/// What was found about one policy.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) model: PathBuf,
    /// Outcome of the greedy response, by problem.
    pub(super) greedy: Vec<Vec<Option<f64>>>,
    /// Outcomes of the sampled responses, by problem.
    pub(super) sampled: Vec<Vec<Option<f64>>>,
    /// The reward model's scores of the sampled responses, by problem.
    pub(super) scores: Option<Vec<Vec<f64>>>,
    /// KL to the reference, nats per response.
    pub(super) kl: Option<f64>,
}

/// A mean with its standard error, over problems.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Estimate {
    /// The mean over problems.
    pub(super) mean: f64,
    /// Standard deviation of the problems' means over the root of their number.
    pub(super) standard_error: f64,
}

impl Estimate {
    fn of(values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let variance = squares / (count - 1.0).max(1.0);
        Self { mean, standard_error: (variance / count).sqrt() }
    }

    fn percent(self) -> String {
        format!("{:.1} ± {:.1} %", 100.0 * self.mean, 100.0 * self.standard_error)
    }
}

/// One row.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    model: PathBuf,
    pass_at_1_greedy: Estimate,
    pass_at_1_sampled: Estimate,
    reward_mean: Option<f64>,
    kl_to_reference: Option<f64>,
    r_squared_unfiltered: Option<f64>,
    r_squared_filtered: Option<f64>,
    /// Responses that could not be judged; they count in no figure.
    unjudged: usize,
}

/// A comparison.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    problems: usize,
    samples_per_problem: usize,
    strategy: String,
    rows: Vec<Row>,
    /// Sampled pass@1 of the last policy minus that of the first, problem by problem.
    gain: Option<Estimate>,
}

impl Report {
    /// The figures of some lines; R² is of the filtration on groups of `group_size`.
    pub(super) fn new(lines: Vec<Line>, filtration: &Filtration, group_size: usize) -> Self {
        let gain = match lines.as_slice() {
            [first, .., last] => Some(gain(first, last)),
            _ => None,
        };
        Self {
            problems: lines.first().map_or(0, |line| line.sampled.len()),
            samples_per_problem: lines.first().and_then(|line| line.sampled.first()).map_or(0, Vec::len),
            strategy: filtration.strategy.to_string(),
            gain,
            rows: lines.into_iter().map(|line| Row::of(line, filtration, group_size)).collect(),
        }
    }
}

impl Row {
    fn of(line: Line, filtration: &Filtration, group_size: usize) -> Self {
        let none = Filtration { strategy: Strategy::None, ..*filtration };
        let groups = line.scores.as_ref().map(|scores| groups(scores, &line.sampled, group_size));
        let scores = line.scores.as_ref().map(|scores| scores.concat());
        Self {
            pass_at_1_greedy: Estimate::of(&means(&line.greedy)),
            pass_at_1_sampled: Estimate::of(&means(&line.sampled)),
            reward_mean: scores.map(|scores| scores.iter().sum::<f64>() / scores.len().max(1) as f64),
            kl_to_reference: line.kl,
            r_squared_unfiltered: groups.as_deref().and_then(|groups| r_squared(&none, groups)),
            r_squared_filtered: groups.as_deref().and_then(|groups| r_squared(filtration, groups)),
            unjudged: line
                .sampled
                .iter()
                .chain(&line.greedy)
                .flatten()
                .filter(|outcome| outcome.is_none())
                .count(),
            name: line.name,
            model: line.model,
        }
    }
}

fn r_squared(filtration: &Filtration, groups: &[Vec<(f64, f64)>]) -> Option<f64> {
    filtered_r_squared(filtration, groups, DEFAULT_BINS).ok()?.r_squared
}

/// The mean outcome of each problem that has any.
fn means(outcomes: &[Vec<Option<f64>>]) -> Vec<f64> {
    outcomes.iter().filter_map(|group| mean(group)).collect()
}

fn mean(group: &[Option<f64>]) -> Option<f64> {
    let judged: Vec<f64> = group.iter().flatten().copied().collect();
    (!judged.is_empty()).then(|| judged.iter().sum::<f64>() / judged.len() as f64)
}

/// Both policies had the same problems, so the difference is taken problem by problem.
fn gain(first: &Line, last: &Line) -> Estimate {
    let pairs = first.sampled.iter().zip(&last.sampled);
    let gains: Vec<f64> = pairs.filter_map(|(before, after)| Some(mean(after)? - mean(before)?)).collect();
    Estimate::of(&gains)
}

/// Pairs of score and outcome in groups of the size that training has; what could not be judged is left out.
fn groups(scores: &[Vec<f64>], outcomes: &[Vec<Option<f64>>], size: usize) -> Vec<Vec<(f64, f64)>> {
    let mut groups = Vec::new();
    for (scores, outcomes) in scores.iter().zip(outcomes) {
        let judged = scores.iter().zip(outcomes).filter_map(|(score, outcome)| Some((*score, (*outcome)?)));
        let judged: Vec<(f64, f64)> = judged.collect();
        groups.extend(judged.chunks_exact(size.max(1)).map(<[(f64, f64)]>::to_vec));
    }
    groups
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filtered = format!("R² {}", self.strategy);
        let header = ["policy", "pass@1 greedy", "pass@1 sampled", "reward", "KL", "R² no filter", &filtered];
        let mut table = table_of_figures(&header);
        for row in &self.rows {
            table.add_row([
                row.name.clone(),
                row.pass_at_1_greedy.percent(),
                row.pass_at_1_sampled.percent(),
                optional(row.reward_mean),
                optional(row.kl_to_reference),
                optional(row.r_squared_unfiltered),
                optional(row.r_squared_filtered),
            ]);
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "{} held-out problems, {} samples each; ± one standard error over problems",
            self.problems, self.samples_per_problem
        )?;
        if let Some(Estimate { mean, standard_error }) = self.gain {
            let errors = mean / standard_error.max(f64::MIN_POSITIVE);
            write!(
                f,
                "gain in sampled pass@1: {} points, {} standard errors",
                signed(100.0 * mean, 1),
                decimal(errors, 1)
            )?;
        }
        for row in &self.rows {
            write!(f, "\n{}: {}", row.name, row.model.display())?;
            if row.unjudged > 0 {
                write!(f, " ({} responses could not be judged)", row.unjudged)?;
            }
        }
        Ok(())
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| decimal(value, 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, sampled: Vec<Vec<Option<f64>>>, scores: Vec<Vec<f64>>) -> Line {
        let greedy = sampled.iter().map(|group| vec![group[0]]).collect();
        Line {
            name: name.to_owned(),
            model: PathBuf::from(name),
            greedy,
            sampled,
            scores: Some(scores),
            kl: Some(0.5),
        }
    }

    #[test]
    fn estimates_are_over_problems() {
        let estimate = Estimate::of(&[1.0, 0.0, 0.5, 0.5]);
        assert_eq!(estimate.mean, 0.5);
        // Sample deviation 0.408, over the root of 4.
        assert!((estimate.standard_error - 0.204_124).abs() < 1e-6, "{estimate:?}");
    }

    #[test]
    fn the_gain_is_paired_and_what_was_not_judged_counts_nowhere() {
        let (pass, fail) = (Some(1.0), Some(0.0));
        let before =
            line("SFT", vec![vec![pass, fail], vec![fail, fail]], vec![vec![1.0, -1.0], vec![0.0, 0.5]]);
        let after =
            line("PF-PPO", vec![vec![pass, None], vec![pass, fail]], vec![vec![1.0, -1.0], vec![2.0, 0.0]]);
        let report = Report::new(vec![before, after], &Filtration::default(), 2);
        assert_eq!(report.rows[0].pass_at_1_sampled.mean, 0.25);
        assert_eq!(report.rows[1].pass_at_1_sampled.mean, 0.75);
        assert_eq!(report.rows[1].unjudged, 1);
        assert_eq!(report.gain.unwrap().mean, 0.5);
        let text = report.to_string();
        assert!(text.contains("75.0 ± 25.0 %") && text.contains("+50.0 points"), "{text}");
    }
}
