//! The figures of a comparison, as a table for people and JSON for programs.

use std::fmt;
use std::path::PathBuf;

use algo::filtration::{Filtration, Strategy};
use algo::r2::{DEFAULT_BINS, filtered_r_squared};
use serde::Serialize;

use super::problems::Found;
use crate::decimal::{decimal, signed};
use crate::table::table_of_figures;

/// What was found about one policy.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) model: PathBuf,
    /// About its greedy responses.
    pub(super) greedy: Found,
    /// About its sampled responses.
    pub(super) sampled: Found,
    /// The reward model's scores of the sampled responses, by problem.
    pub(super) rewards: Option<Vec<Vec<f64>>>,
    /// Whether the scores are more than the outcomes, so that they too may be trusted or not.
    pub(super) scores_are_rewards: bool,
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
    /// None of none.
    fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let variance = squares / (count - 1.0).max(1.0);
        Some(Self { mean, standard_error: (variance / count).sqrt() })
    }

    fn number(self) -> String {
        format!("{} ± {:.3}", decimal(self.mean, 3), self.standard_error)
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
    pass_at_1_greedy: Option<Estimate>,
    pass_at_1_sampled: Option<Estimate>,
    /// The weighted sum of the scorers, where they judge.
    score_greedy: Option<Estimate>,
    score_sampled: Option<Estimate>,
    reward_mean: Option<f64>,
    kl_to_reference: Option<f64>,
    r_squared_unfiltered: Option<f64>,
    r_squared_filtered: Option<f64>,
    /// Responses that could not be judged; they count in no figure.
    unjudged: usize,
    /// Why the first of them could not.
    first_problem: Option<String>,
}

/// A comparison.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    problems: usize,
    samples_per_problem: usize,
    strategy: String,
    rows: Vec<Row>,
    /// Sampled pass@1 of the last policy minus that of the first, problem by problem; of the scores where
    /// nothing says what is right.
    gain: Option<Estimate>,
    /// What the gain is in.
    gain_in: Option<Figure>,
}

/// A figure that two policies are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Figure {
    PassAt1Sampled,
    ScoreSampled,
}

impl Report {
    /// The figures of some lines; R² is of the filtration on groups of `group_size`.
    pub(super) fn new(lines: Vec<Line>, filtration: &Filtration, group_size: usize) -> Self {
        let gain = match lines.as_slice() {
            [first, .., last] => gain(first, last),
            _ => None,
        };
        let samples = |line: &Line| line.sampled.outcomes.iter().map(Vec::len).max();
        Self {
            problems: lines.first().map_or(0, |line| line.sampled.outcomes.len()),
            samples_per_problem: lines.first().and_then(samples).unwrap_or(0),
            strategy: filtration.strategy.to_string(),
            gain: gain.map(|(gain, _)| gain),
            gain_in: gain.map(|(_, figure)| figure),
            rows: lines.into_iter().map(|line| Row::of(line, filtration, group_size)).collect(),
        }
    }
}

impl Row {
    fn of(line: Line, filtration: &Filtration, group_size: usize) -> Self {
        let none = Filtration { strategy: Strategy::None, ..*filtration };
        let groups = line.trusted().map(|rewards| groups(&rewards, &line.sampled.outcomes, group_size));
        let Line { name, model, greedy, sampled, rewards, kl, .. } = line;
        let rewards = rewards.map(|rewards| rewards.concat());
        Self {
            name,
            model,
            pass_at_1_greedy: Estimate::of(&means(&greedy.outcomes)),
            pass_at_1_sampled: Estimate::of(&means(&sampled.outcomes)),
            score_greedy: Estimate::of(&means(&greedy.scores)),
            score_sampled: Estimate::of(&means(&sampled.scores)),
            reward_mean: rewards.map(|rewards| rewards.iter().sum::<f64>() / rewards.len().max(1) as f64),
            kl_to_reference: kl,
            r_squared_unfiltered: groups.as_deref().and_then(|groups| r_squared(&none, groups)),
            r_squared_filtered: groups.as_deref().and_then(|groups| r_squared(filtration, groups)),
            unjudged: greedy.unjudged + sampled.unjudged,
            first_problem: sampled.first_problem.or(greedy.first_problem),
        }
    }
}

impl Line {
    /// The rewards of which it is a question how far they can be trusted: the reward model's, else the
    /// scores.
    fn trusted(&self) -> Option<Vec<Vec<Option<f64>>>> {
        let of_model = self
            .rewards
            .as_ref()
            .map(|rewards| rewards.iter().map(|group| group.iter().copied().map(Some).collect()).collect());
        of_model.or_else(|| self.scores_are_rewards.then(|| self.sampled.scores.clone()))
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
fn gain(first: &Line, last: &Line) -> Option<(Estimate, Figure)> {
    let (before, after) = (&first.sampled, &last.sampled);
    let of_outcomes = Estimate::of(&differences(&before.outcomes, &after.outcomes));
    of_outcomes
        .map(|gain| (gain, Figure::PassAt1Sampled))
        .or_else(|| Some((Estimate::of(&differences(&before.scores, &after.scores))?, Figure::ScoreSampled)))
}

fn differences(before: &[Vec<Option<f64>>], after: &[Vec<Option<f64>>]) -> Vec<f64> {
    before.iter().zip(after).filter_map(|(before, after)| Some(mean(after)? - mean(before)?)).collect()
}

/// Pairs of reward and outcome in groups of the size that training has; what could not be judged is left out.
fn groups(rewards: &[Vec<Option<f64>>], outcomes: &[Vec<Option<f64>>], size: usize) -> Vec<Vec<(f64, f64)>> {
    let mut groups = Vec::new();
    for (rewards, outcomes) in rewards.iter().zip(outcomes) {
        let judged =
            rewards.iter().zip(outcomes).filter_map(|(reward, outcome)| Some(((*reward)?, (*outcome)?)));
        let judged: Vec<(f64, f64)> = judged.collect();
        groups.extend(judged.chunks_exact(size.max(1)).map(<[(f64, f64)]>::to_vec));
    }
    groups
}

/// A column of the table.
type Column = (String, fn(&Row) -> Option<String>);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: [Column; 8] = [
            ("pass@1 greedy".to_owned(), |row| row.pass_at_1_greedy.map(Estimate::percent)),
            ("pass@1 sampled".to_owned(), |row| row.pass_at_1_sampled.map(Estimate::percent)),
            ("score greedy".to_owned(), |row| row.score_greedy.map(Estimate::number)),
            ("score sampled".to_owned(), |row| row.score_sampled.map(Estimate::number)),
            ("reward".to_owned(), |row| row.reward_mean.map(|value| decimal(value, 3))),
            ("KL".to_owned(), |row| row.kl_to_reference.map(|value| decimal(value, 3))),
            ("R² no filter".to_owned(), |row| row.r_squared_unfiltered.map(|value| decimal(value, 3))),
            (format!("R² {}", self.strategy), |row| row.r_squared_filtered.map(|value| decimal(value, 3))),
        ];
        // What was measured of no policy is no column.
        let known =
            columns.into_iter().filter(|(_, figure)| self.rows.iter().any(|row| figure(row).is_some()));
        let known: Vec<Column> = known.collect();
        let names: Vec<&str> =
            std::iter::once("policy").chain(known.iter().map(|(name, _)| name.as_str())).collect();
        let mut table = table_of_figures(&names);
        for row in &self.rows {
            let figures = known.iter().map(|(_, figure)| figure(row).unwrap_or_else(|| "-".to_owned()));
            table.add_row(std::iter::once(row.name.clone()).chain(figures));
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "{} held-out problems, {} samples each; ± one standard error over problems",
            self.problems, self.samples_per_problem
        )?;
        if let (Some(Estimate { mean, standard_error }), Some(figure)) = (self.gain, self.gain_in) {
            let errors = decimal(mean / standard_error.max(f64::MIN_POSITIVE), 1);
            match figure {
                Figure::PassAt1Sampled => {
                    let points = signed(100.0 * mean, 1);
                    write!(f, "gain in sampled pass@1: {points} points, {errors} standard errors")?;
                }
                Figure::ScoreSampled => {
                    write!(f, "gain in sampled score: {}, {errors} standard errors", signed(mean, 3))?;
                }
            }
        }
        for row in &self.rows {
            write!(f, "\n{}: {}", row.name, row.model.display())?;
            if row.unjudged > 0 {
                write!(f, " ({} responses could not be judged", row.unjudged)?;
                if let Some(problem) = &row.first_problem {
                    write!(f, "; the first: {problem}")?;
                }
                write!(f, ")")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(outcomes: Vec<Vec<Option<f64>>>) -> Found {
        let unjudged = outcomes.iter().flatten().filter(|outcome| outcome.is_none()).count();
        Found { outcomes, unjudged, ..Found::default() }
    }

    fn line(name: &str, sampled: Vec<Vec<Option<f64>>>, rewards: Vec<Vec<f64>>) -> Line {
        Line {
            name: name.to_owned(),
            model: PathBuf::from(name),
            greedy: found(sampled.iter().map(|group| vec![group[0]]).collect()),
            sampled: found(sampled),
            rewards: Some(rewards),
            scores_are_rewards: false,
            kl: Some(0.5),
        }
    }

    #[test]
    fn estimates_are_over_problems() {
        let estimate = Estimate::of(&[1.0, 0.0, 0.5, 0.5]).unwrap();
        assert_eq!(estimate.mean, 0.5);
        // Sample deviation 0.408, over the root of 4.
        assert!((estimate.standard_error - 0.204_124).abs() < 1e-6, "{estimate:?}");
        assert_eq!(Estimate::of(&[]), None, "what nobody judged has no mean");
    }

    #[test]
    fn the_gain_is_paired_and_what_was_not_judged_counts_nowhere() {
        let (pass, fail) = (Some(1.0), Some(0.0));
        let before =
            line("SFT", vec![vec![pass, fail], vec![fail, fail]], vec![vec![1.0, -1.0], vec![0.0, 0.5]]);
        let after =
            line("PF-PPO", vec![vec![pass, None], vec![pass, fail]], vec![vec![1.0, -1.0], vec![2.0, 0.0]]);
        let report = Report::new(vec![before, after], &Filtration::default(), 2);
        assert_eq!(report.rows[0].pass_at_1_sampled.unwrap().mean, 0.25);
        assert_eq!(report.rows[1].pass_at_1_sampled.unwrap().mean, 0.75);
        assert_eq!(report.rows[1].unjudged, 1);
        assert_eq!(report.gain.unwrap().mean, 0.5);
        let text = report.to_string();
        assert!(text.contains("75.0 ± 25.0 %") && text.contains("+50.0 points"), "{text}");
        assert!(!text.contains("score"), "nothing scored: {text}");
    }

    #[test]
    fn without_a_yardstick_policies_are_compared_by_their_scores() {
        let of = |name: &str, scores: [f64; 2]| {
            let scores: Vec<Vec<Option<f64>>> = scores.iter().map(|score| vec![Some(*score)]).collect();
            let unknown = scores.iter().map(|_| vec![None]).collect();
            let found = Found { outcomes: unknown, scores, ..Found::default() };
            let (name, model) = (name.to_owned(), PathBuf::from(name));
            Line {
                name,
                model,
                greedy: found.clone(),
                sampled: found,
                rewards: None,
                scores_are_rewards: true,
                kl: None,
            }
        };
        let report = Report::new(vec![of("a", [1.0, 2.0]), of("b", [1.5, 3.5])], &Filtration::default(), 2);
        let text = report.to_string();
        assert!(text.contains("gain in sampled score: +1.000") && text.contains("2.500 ± 1.000"), "{text}");
        assert!(!text.contains("pass@1") && !text.contains("KL"), "{text}");
    }
}
