//! The figures of a comparison, as tables for people and JSON for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use algo::filtration::{Filtration, Strategy};
use algo::r2::{DEFAULT_BINS, filtered_r_squared};
use comfy_table::Table;
use serde::Serialize;

use crate::decimal::{decimal, signed};
use crate::rate::Rate;
use crate::table::table_of_figures;

use super::kinds::Kinds;
use super::outcomes::Outcomes;

/// What was found about one policy.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) model: PathBuf,
    pub(super) greedy: Outcomes,
    pub(super) sampled: Outcomes,
    pub(super) best: Option<AtBestTemperature>,
    /// The reward model's scores of the sampled responses, by problem.
    pub(super) scores: Option<Vec<Vec<f64>>>,
    /// KL to the reference, nats per response.
    pub(super) kl: Option<f64>,
}

/// What came of a policy at the temperature that suits it best.
#[derive(Debug)]
pub(super) struct AtBestTemperature {
    /// Chosen on the validation problems.
    pub(super) temperature: f32,
    /// What passed of them.
    pub(super) validation: Rate,
    /// Of the problems of the comparison.
    pub(super) outcomes: Outcomes,
}

/// One row.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    model: PathBuf,
    pass_at_1_greedy: Option<Rate>,
    pass_at_1_sampled: Option<Rate>,
    best_temperature: Option<BestTemperature>,
    /// At the sampling temperature.
    pass_at_k: BTreeMap<u64, Option<Rate>>,
    reward_mean: Option<f64>,
    kl_to_reference: Option<f64>,
    r_squared_unfiltered: Option<f64>,
    r_squared_filtered: Option<f64>,
    /// Greedy, by kind of problem.
    kinds: BTreeMap<String, Option<Rate>>,
    /// Responses that could not be judged; they count in no figure.
    unjudged: usize,
    /// Over the first policy; none for itself.
    gain: Option<Gain>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct BestTemperature {
    temperature: f32,
    pass_at_1_of_validation: Rate,
    pass_at_1: Option<Rate>,
}

/// How much more of each problem's responses pass than of the first policy's.
#[derive(Debug, Clone, Copy, Serialize)]
struct Gain {
    greedy: Option<Rate>,
    best_temperature: Option<Rate>,
    sampled: Option<Rate>,
}

/// A comparison.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    problems: usize,
    samples_per_problem: usize,
    strategy: String,
    rows: Vec<Row>,
}

impl Report {
    /// The figures of some lines; R² is of the filtration on groups of the size beside it.
    pub(super) fn new(
        lines: &[Line],
        kinds: &Kinds,
        pass_at: &[u64],
        training: (&Filtration, usize),
    ) -> Self {
        let row = |(at, line): (usize, &Line)| Row {
            gain: (at > 0).then(|| Gain::of(&lines[0], line)),
            pass_at_k: pass_at.iter().map(|k| (*k, line.sampled.pass_at(*k))).collect(),
            kinds: kinds.iter().map(|(kind, of)| (kind.to_owned(), line.greedy.rate_of(of))).collect(),
            ..Row::of(line, training)
        };
        Self {
            problems: lines.first().map_or(0, |line| line.sampled.problems()),
            samples_per_problem: lines.first().map_or(0, |line| line.sampled.samples()),
            strategy: training.0.strategy.to_string(),
            rows: lines.iter().enumerate().map(row).collect(),
        }
    }
}

impl Gain {
    fn of(first: &Line, line: &Line) -> Self {
        let best = first.best.as_ref().zip(line.best.as_ref());
        Self {
            greedy: first.greedy.gain(&line.greedy),
            best_temperature: best.and_then(|(first, line)| first.outcomes.gain(&line.outcomes)),
            sampled: first.sampled.gain(&line.sampled),
        }
    }
}

impl Row {
    fn of(line: &Line, (filtration, group_size): (&Filtration, usize)) -> Self {
        let none = Filtration { strategy: Strategy::None, ..*filtration };
        let groups = line.scores.as_ref().map(|scores| groups(scores, &line.sampled, group_size));
        let scores = line.scores.as_ref().map(|scores| scores.concat());
        let best_temperature = line.best.as_ref().map(|best| BestTemperature {
            temperature: best.temperature,
            pass_at_1_of_validation: best.validation,
            pass_at_1: best.outcomes.rate(),
        });
        Self {
            pass_at_1_greedy: line.greedy.rate(),
            pass_at_1_sampled: line.sampled.rate(),
            best_temperature,
            pass_at_k: BTreeMap::new(),
            reward_mean: scores.map(|scores| scores.iter().sum::<f64>() / scores.len().max(1) as f64),
            kl_to_reference: line.kl,
            r_squared_unfiltered: groups.as_deref().and_then(|groups| r_squared(&none, groups)),
            r_squared_filtered: groups.as_deref().and_then(|groups| r_squared(filtration, groups)),
            kinds: BTreeMap::new(),
            unjudged: line.sampled.unjudged() + line.greedy.unjudged(),
            gain: None,
            name: line.name.clone(),
            model: line.model.clone(),
        }
    }
}

fn r_squared(filtration: &Filtration, groups: &[Vec<(f64, f64)>]) -> Option<f64> {
    filtered_r_squared(filtration, groups, DEFAULT_BINS).ok()?.r_squared
}

/// Pairs of score and outcome in groups of the size that training has; what could not be judged is left out.
fn groups(scores: &[Vec<f64>], outcomes: &Outcomes, size: usize) -> Vec<Vec<(f64, f64)>> {
    let mut groups = Vec::new();
    for (problem, scores) in scores.iter().enumerate() {
        let of = |(index, score): (usize, &f64)| Some((*score, outcomes.of_response(problem, index)?));
        let judged: Vec<(f64, f64)> = scores.iter().enumerate().filter_map(of).collect();
        groups.extend(judged.chunks_exact(size.max(1)).map(<[(f64, f64)]>::to_vec));
    }
    groups
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.pass_rates())?;
        write!(f, "{} held-out problems, {} samples each", self.problems, self.samples_per_problem)?;
        writeln!(f, "; ± one standard error over problems")?;
        if let Some(kinds) = self.kinds() {
            writeln!(f, "\ngreedy, by kind of problem\n{kinds}")?;
        }
        writeln!(f, "\n{}", self.rewards())?;
        for row in &self.rows {
            if let Some(gain) = &row.gain {
                writeln!(f, "{} over {}: {gain}", row.name, self.rows[0].name)?;
            }
        }
        for (at, row) in self.rows.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}{}: {}", row.name, row.model.display())?;
            if row.unjudged > 0 {
                write!(f, " ({} responses could not be judged)", row.unjudged)?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn pass_rates(&self) -> Table {
        let best = self.rows.iter().any(|row| row.best_temperature.is_some());
        let ks: Vec<u64> =
            self.rows.first().map_or_else(Vec::new, |row| row.pass_at_k.keys().copied().collect());
        let mut header = vec!["policy".to_owned(), "greedy".to_owned(), "sampled".to_owned()];
        header.extend(best.then(|| "at best temperature".to_owned()));
        header.extend(ks.iter().map(|k| format!("pass@{k}")));
        let mut table = table_of_figures(&header.iter().map(String::as_str).collect::<Vec<_>>());
        for row in &self.rows {
            let mut cells =
                vec![row.name.clone(), percent(row.pass_at_1_greedy), percent(row.pass_at_1_sampled)];
            cells.extend(row.best_temperature.map(|best| {
                format!("{} (T = {})", percent(best.pass_at_1), decimal(f64::from(best.temperature), 2))
            }));
            cells.extend(row.pass_at_k.values().map(|rate| percent(*rate)));
            table.add_row(cells);
        }
        table
    }

    fn rewards(&self) -> Table {
        let filtered = format!("R² {}", self.strategy);
        let mut table = table_of_figures(&["policy", "reward", "KL", "R² no filter", &filtered]);
        for row in &self.rows {
            table.add_row([
                row.name.clone(),
                optional(row.reward_mean),
                optional(row.kl_to_reference),
                optional(row.r_squared_unfiltered),
                optional(row.r_squared_filtered),
            ]);
        }
        table
    }

    /// Greedy pass rates by kind; none where the stage names no field of kinds.
    fn kinds(&self) -> Option<Table> {
        let kinds = &self.rows.first().filter(|row| !row.kinds.is_empty())?.kinds;
        let names = self.rows.iter().map(|row| row.name.as_str());
        let mut table = table_of_figures(&["kind", "problems"].into_iter().chain(names).collect::<Vec<_>>());
        for (kind, first) in kinds {
            let problems = first.map_or(0, |rate| rate.problems);
            let mut cells = vec![kind.clone(), problems.to_string()];
            cells.extend(self.rows.iter().map(|row| percent(row.kinds.get(kind).copied().flatten())));
            table.add_row(cells);
        }
        Some(table)
    }
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("greedy", self.greedy),
            ("at best temperature", self.best_temperature),
            ("sampled", self.sampled),
        ];
        let said = parts.into_iter().filter_map(|(what, rate)| {
            let rate = rate?;
            let (points, errors) = (signed(100.0 * rate.mean, 1), decimal(rate.standard_errors(), 1));
            Some(format!("{what} {points} points ({errors} standard errors)"))
        });
        f.write_str(&said.collect::<Vec<_>>().join(", "))
    }
}

fn percent(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "-".to_owned(), Rate::percent)
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| decimal(value, 3))
}

#[cfg(test)]
mod tests {
    use super::super::outcomes::tests::outcomes;
    use super::*;

    fn line(name: &str, greedy: &[&str], sampled: &[&str]) -> Line {
        let scores = vec![vec![1.0, -1.0]; sampled.len()];
        Line {
            name: name.to_owned(),
            model: PathBuf::from(name),
            greedy: outcomes(greedy),
            sampled: outcomes(sampled),
            best: Some(AtBestTemperature {
                temperature: 0.4,
                validation: Rate::of(&[0.5]).unwrap(),
                outcomes: outcomes(greedy),
            }),
            scores: Some(scores),
            kl: Some(0.5),
        }
    }

    #[test]
    fn gains_are_over_the_first_policy_and_what_is_sharper_alone_is_seen() {
        // The second policy is only surer of itself: more of its samples pass, and nothing else.
        let before = line("SFT", &["+", "-"], &["+-", "--"]);
        let after = line("PF-PPO", &["+", "-"], &["++", "-?"]);
        let report = Report::new(&[before, after], &Kinds::default(), &[2], (&Filtration::default(), 2));
        assert_eq!(report.rows[0].pass_at_1_sampled.unwrap().mean, 0.25);
        assert_eq!(report.rows[1].unjudged, 1);
        let gain = report.rows[1].gain.unwrap();
        assert_eq!(gain.sampled.unwrap().mean, 0.25);
        assert_eq!((gain.greedy.unwrap().mean, gain.best_temperature.unwrap().mean), (0.0, 0.0));
        let text = report.to_string();
        for said in [
            "50.0 ± 50.0 % (T = 0.40)",
            "PF-PPO over SFT: greedy 0.0 points (0.0 standard errors)",
            "sampled +25.0 points (1.0 standard errors)",
        ] {
            assert!(text.contains(said), "{said:?} is not in\n{text}");
        }
    }

    #[test]
    fn kinds_have_rates_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("problems.jsonl");
        std::fs::write(&path, "{\"k\": [\"sort\", \"sum\"]}\n{\"k\": \"sum\"}\n").unwrap();
        let kinds = Kinds::read(&path, "k", 9).unwrap();
        let report =
            Report::new(&[line("SFT", &["+", "-"], &["++", "--"])], &kinds, &[], (&Filtration::default(), 2));
        let rate = |kind: &str| report.rows[0].kinds[kind].unwrap().mean;
        assert_eq!((rate("sort"), rate("sum")), (1.0, 0.5));
        assert!(report.to_string().contains("greedy, by kind of problem"));
    }
}
