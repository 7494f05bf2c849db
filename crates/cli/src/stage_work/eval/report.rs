//! The figures of a comparison, as tables for people and JSON for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use algo::filtration::{Filtration, Strategy};
use algo::r2::{DEFAULT_BINS, filtered_r_squared};
use comfy_table::Table;
use serde::Serialize;

use crate::decimal::{decimal, signed};
use crate::episodes::EpisodeTotals;
use crate::rate::Rate;
use crate::table::table_of_figures;

use super::kinds::Kinds;
use super::numbers::Numbers;
use super::problems::Found;

/// What was found about one policy.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) model: PathBuf,
    /// About its greedy responses.
    pub(super) greedy: Found,
    /// About its sampled responses.
    pub(super) sampled: Found,
    pub(super) best: Option<AtBestTemperature>,
    /// The reward model's scores of the sampled responses.
    pub(super) rewards: Option<Numbers>,
    /// Whether the scores are more than the outcomes, so that they too may be trusted or not.
    pub(super) scores_are_rewards: bool,
    /// KL to the reference, nats per response.
    pub(super) kl: Option<f64>,
    /// What came of the sampled responses, where they are episodes.
    pub(super) episodes: Option<EpisodeTotals>,
}

/// What came of a policy at the temperature that suits it best.
#[derive(Debug)]
pub(super) struct AtBestTemperature {
    /// Chosen on the validation problems.
    pub(super) temperature: f32,
    /// What came of them.
    pub(super) validation: Rate,
    /// Of the problems of the comparison.
    pub(super) found: Found,
}

/// What policies are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Figure {
    /// How many responses are right.
    PassAt1,
    /// The weighted sum of the scorers, where nothing says what is right.
    Score,
}

/// One row.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    model: PathBuf,
    pass_at_1_greedy: Option<Rate>,
    pass_at_1_sampled: Option<Rate>,
    /// The weighted sum of the scorers, where they judge.
    score_greedy: Option<Rate>,
    score_sampled: Option<Rate>,
    /// In the figure that policies are compared by, as are kinds and gains.
    best_temperature: Option<BestTemperature>,
    /// At the sampling temperature.
    pass_at_k: BTreeMap<u64, Option<Rate>>,
    reward_mean: Option<f64>,
    kl_to_reference: Option<f64>,
    /// Of the sampled responses, where they are episodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    episodes: Option<EpisodeTotals>,
    r_squared_unfiltered: Option<f64>,
    r_squared_filtered: Option<f64>,
    /// Greedy, by kind of problem.
    kinds: BTreeMap<String, Option<Rate>>,
    /// Responses that could not be judged; they count in no figure.
    unjudged: usize,
    /// Why the first of them could not.
    first_problem: Option<String>,
    /// Over the first policy; none for itself.
    gain: Option<Gain>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct BestTemperature {
    temperature: f32,
    of_validation: Rate,
    of_problems: Option<Rate>,
}

/// How much better each problem's responses are than those of the first policy.
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
    compared_by: Figure,
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
        let rows = lines.iter().enumerate().map(|(at, line)| Row {
            gain: (at > 0).then(|| Gain::of(&lines[0], line)),
            pass_at_k: pass_at.iter().map(|k| (*k, line.sampled.outcomes.pass_at(*k))).collect(),
            kinds: kinds
                .iter()
                .map(|(kind, of)| (kind.to_owned(), line.greedy.figure().rate_of(of)))
                .collect(),
            ..Row::of(line, training)
        });
        let with_outcomes = lines.iter().any(|line| line.sampled.outcomes.rate().is_some());
        Self {
            problems: lines.first().map_or(0, |line| line.sampled.outcomes.0.len()),
            samples_per_problem: lines.first().map_or(0, |line| line.sampled.outcomes.samples()),
            strategy: training.0.strategy.to_string(),
            compared_by: if with_outcomes { Figure::PassAt1 } else { Figure::Score },
            rows: rows.collect(),
        }
    }

    fn best_temperatures(&self) -> bool {
        self.rows.iter().any(|row| row.best_temperature.is_some())
    }
}

impl Gain {
    fn of(first: &Line, line: &Line) -> Self {
        let best = first.best.as_ref().zip(line.best.as_ref());
        Self {
            greedy: first.greedy.gain(&line.greedy),
            best_temperature: best.and_then(|(first, line)| first.found.gain(&line.found)),
            sampled: first.sampled.gain(&line.sampled),
        }
    }
}

impl Line {
    /// The rewards of which it is a question how far they can be trusted: the reward model's, else the
    /// scores.
    fn trusted(&self) -> Option<&Numbers> {
        self.rewards.as_ref().or_else(|| self.scores_are_rewards.then_some(&self.sampled.scores))
    }
}

impl Row {
    /// What came of it at its best temperature, for people.
    fn best(&self, figure: Figure) -> Option<String> {
        let BestTemperature { temperature, of_problems, .. } = self.best_temperature?;
        Some(format!("{} (T = {})", figure.text(of_problems?), decimal(f64::from(temperature), 2)))
    }

    fn of(line: &Line, (filtration, group_size): (&Filtration, usize)) -> Self {
        let none = Filtration { strategy: Strategy::None, ..*filtration };
        let groups = line.trusted().map(|rewards| groups(rewards, &line.sampled.outcomes, group_size));
        let rewards = line.rewards.as_ref();
        let rewards =
            rewards.map(|rewards| rewards.0.iter().flatten().flatten().copied().collect::<Vec<_>>());
        let best_temperature = line.best.as_ref().map(|best| BestTemperature {
            temperature: best.temperature,
            of_validation: best.validation,
            of_problems: best.found.figure().rate(),
        });
        let Line { greedy, sampled, .. } = line;
        Self {
            name: line.name.clone(),
            model: line.model.clone(),
            pass_at_1_greedy: greedy.outcomes.rate(),
            pass_at_1_sampled: sampled.outcomes.rate(),
            score_greedy: greedy.scores.rate(),
            score_sampled: sampled.scores.rate(),
            best_temperature,
            pass_at_k: BTreeMap::new(),
            reward_mean: rewards.map(|rewards| rewards.iter().sum::<f64>() / rewards.len().max(1) as f64),
            kl_to_reference: line.kl,
            episodes: line.episodes.clone(),
            r_squared_unfiltered: groups.as_deref().and_then(|groups| r_squared(&none, groups)),
            r_squared_filtered: groups.as_deref().and_then(|groups| r_squared(filtration, groups)),
            kinds: BTreeMap::new(),
            unjudged: greedy.unjudged + sampled.unjudged,
            first_problem: sampled.first_problem.clone().or_else(|| greedy.first_problem.clone()),
            gain: None,
        }
    }
}

fn r_squared(filtration: &Filtration, groups: &[Vec<(f64, f64)>]) -> Option<f64> {
    filtered_r_squared(filtration, groups, DEFAULT_BINS).ok()?.r_squared
}

/// Pairs of reward and outcome in groups of the size that training has; what could not be judged is left out.
fn groups(rewards: &Numbers, outcomes: &Numbers, size: usize) -> Vec<Vec<(f64, f64)>> {
    let mut groups = Vec::new();
    for (problem, rewards) in rewards.0.iter().enumerate() {
        let judged: Vec<(f64, f64)> = rewards
            .iter()
            .enumerate()
            .filter_map(|(index, reward)| Some(((*reward)?, outcomes.of(problem, index)?)))
            .collect();
        groups.extend(judged.chunks_exact(size.max(1)).map(<[(f64, f64)]>::to_vec));
    }
    groups
}

fn three_decimals(value: Option<f64>) -> Option<String> {
    value.map(|value| decimal(value, 3))
}

/// A column of a table.
type Column = (String, Box<dyn Fn(&Row) -> Option<String>>);

impl Figure {
    fn text(self, rate: Rate) -> String {
        match self {
            Self::PassAt1 => rate.percent(),
            Self::Score => rate.number(),
        }
    }

    fn gain(self, rate: Rate) -> String {
        let errors = decimal(rate.standard_errors(), 1);
        match self {
            Self::PassAt1 => format!("{} points ({errors} standard errors)", signed(100.0 * rate.mean, 1)),
            Self::Score => format!("{} ({errors} standard errors)", signed(rate.mean, 3)),
        }
    }
}

impl Report {
    fn figures(&self) -> Table {
        let figure = self.compared_by;
        let mut columns: Vec<Column> = vec![
            ("pass@1 greedy".to_owned(), Box::new(|row| row.pass_at_1_greedy.map(Rate::percent))),
            ("pass@1 sampled".to_owned(), Box::new(|row| row.pass_at_1_sampled.map(Rate::percent))),
            ("score greedy".to_owned(), Box::new(|row| row.score_greedy.map(Rate::number))),
            ("score sampled".to_owned(), Box::new(|row| row.score_sampled.map(Rate::number))),
            ("at best temperature".to_owned(), Box::new(move |row| row.best(figure))),
        ];
        let ks = self.rows.first().into_iter().flat_map(|row| row.pass_at_k.keys().copied());
        columns.extend(ks.map(|k| -> Column {
            (format!("pass@{k}"), Box::new(move |row| row.pass_at_k.get(&k)?.map(Rate::percent)))
        }));
        self.table(columns)
    }

    fn rewards(&self) -> Table {
        let filtered = format!("R² {}", self.strategy);
        self.table(vec![
            ("reward".to_owned(), Box::new(move |row| three_decimals(row.reward_mean))),
            ("KL".to_owned(), Box::new(move |row| three_decimals(row.kl_to_reference))),
            ("R² no filter".to_owned(), Box::new(move |row| three_decimals(row.r_squared_unfiltered))),
            (filtered, Box::new(move |row| three_decimals(row.r_squared_filtered))),
        ])
    }

    /// What was measured of no policy is no column.
    fn table(&self, columns: Vec<Column>) -> Table {
        let known: Vec<Column> = columns
            .into_iter()
            .filter(|(_, figure)| self.rows.iter().any(|row| figure(row).is_some()))
            .collect();
        let names = known.iter().map(|(name, _)| name.as_str());
        let mut table = table_of_figures(&std::iter::once("policy").chain(names).collect::<Vec<&str>>());
        for row in &self.rows {
            let figures = known.iter().map(|(_, figure)| figure(row).unwrap_or_else(|| "-".to_owned()));
            table.add_row(std::iter::once(row.name.clone()).chain(figures));
        }
        table
    }

    /// Greedy figures by kind; none where the stage names no field of kinds.
    fn kinds(&self) -> Option<Table> {
        let kinds = &self.rows.first().filter(|row| !row.kinds.is_empty())?.kinds;
        let names = self.rows.iter().map(|row| row.name.as_str());
        let mut table = table_of_figures(&["kind", "problems"].into_iter().chain(names).collect::<Vec<_>>());
        for (kind, first) in kinds {
            let problems = first.map_or(0, |rate| rate.problems);
            let mut cells = vec![kind.clone(), problems.to_string()];
            for row in &self.rows {
                let rate = row.kinds.get(kind).copied().flatten();
                cells.push(rate.map_or_else(|| "-".to_owned(), |rate| self.compared_by.text(rate)));
            }
            table.add_row(cells);
        }
        Some(table)
    }

    fn gain(&self, gain: &Gain) -> String {
        let parts = [
            ("greedy", gain.greedy),
            ("at best temperature", gain.best_temperature),
            ("sampled", gain.sampled),
        ];
        let said = parts
            .into_iter()
            .filter_map(|(what, rate)| Some(format!("{what} {}", self.compared_by.gain(rate?))));
        said.collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.figures())?;
        write!(f, "{} held-out problems, {} samples each", self.problems, self.samples_per_problem)?;
        writeln!(f, "; ± one standard error over problems")?;
        if self.best_temperatures() {
            writeln!(f, "each policy's best temperature was chosen on other problems")?;
        }
        if let Some(kinds) = self.kinds() {
            writeln!(f, "\ngreedy, by kind of problem\n{kinds}")?;
        }
        let mut rewards = self.rewards();
        if rewards.column_count() > 1 {
            writeln!(f, "\n{rewards}")?;
        }
        for row in &self.rows {
            if let Some(gain) = &row.gain {
                writeln!(f, "{} over {}: {}", row.name, self.rows[0].name, self.gain(gain))?;
            }
        }
        for (at, row) in self.rows.iter().enumerate() {
            let line_break = if at == 0 { "" } else { "\n" };
            write!(f, "{line_break}{}: {}", row.name, row.model.display())?;
            if row.unjudged > 0 {
                write!(f, " ({} responses could not be judged", row.unjudged)?;
                if let Some(problem) = &row.first_problem {
                    write!(f, "; the first: {problem}")?;
                }
                write!(f, ")")?;
            }
            if let Some(episodes) = &row.episodes {
                write!(f, "; {episodes}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::numbers::tests::outcomes;
    use super::*;

    fn found(groups: &[&str]) -> Found {
        let outcomes = outcomes(groups);
        Found { unjudged: outcomes.unknown(), outcomes, ..Found::default() }
    }

    fn line(name: &str, greedy: &[&str], sampled: &[&str]) -> Line {
        let validation = Rate::of(&[0.5]).unwrap();
        Line {
            name: name.to_owned(),
            model: PathBuf::from(name),
            greedy: found(greedy),
            sampled: found(sampled),
            best: Some(AtBestTemperature { temperature: 0.4, validation, found: found(greedy) }),
            rewards: Some(Numbers(vec![vec![Some(1.0), Some(-1.0)]; sampled.len()])),
            scores_are_rewards: false,
            kl: Some(0.5),
            episodes: None,
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
        assert!(!text.contains("score"), "nothing scored: {text}");
    }

    #[test]
    fn kinds_have_rates_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("problems.jsonl");
        std::fs::write(&path, "{\"k\": [\"sort\", \"sum\"]}\n{\"k\": \"sum\"}\n").unwrap();
        let kinds = Kinds::read(&path, "k", 9).unwrap();
        let lines = [line("SFT", &["+", "-"], &["++", "--"])];
        let report = Report::new(&lines, &kinds, &[], (&Filtration::default(), 2));
        let means: Vec<f64> = report.rows[0].kinds.values().map(|rate| rate.unwrap().mean).collect();
        assert_eq!(means, [1.0, 0.5], "of sort and sum");
        assert!(report.to_string().contains("greedy, by kind of problem"));
    }

    fn scored(name: &str, scores: [f64; 2]) -> Line {
        let scores = Numbers(scores.iter().map(|score| vec![Some(*score)]).collect());
        let found = Found { outcomes: Numbers(vec![vec![None]; 2]), scores, ..Found::default() };
        Line {
            name: name.to_owned(),
            model: PathBuf::from(name),
            greedy: found.clone(),
            sampled: found,
            best: None,
            rewards: None,
            scores_are_rewards: true,
            kl: None,
            episodes: None,
        }
    }

    #[test]
    fn without_a_yardstick_policies_are_compared_by_their_scores() {
        let lines = [scored("a", [1.0, 2.0]), scored("b", [1.5, 3.5])];
        let text = Report::new(&lines, &Kinds::default(), &[], (&Filtration::default(), 2)).to_string();
        assert!(text.contains("sampled +1.000") && text.contains("2.500 ± 1.000"), "{text}");
        assert!(!text.contains("pass@1") && !text.contains("KL"), "{text}");
    }
}
