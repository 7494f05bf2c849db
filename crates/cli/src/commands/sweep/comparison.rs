//! What the runs of a sweep have come to: their rings' training, and the policies that they have judged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use algo::Interval;
use anyhow::Context as _;
use comfy_table::Table;
use serde::Deserialize;
use serde_json::{Value, json};

use super::grid::{Cell, Point};
use crate::recipe::RecipeFile;
use crate::results::Results;
use crate::table::table_of_figures;

/// What is compared: places below a run's output folder.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Folders of rings.
    rings: Vec<PathBuf>,
    /// Reports of stages `eval`, by the stage's name.
    reports: Vec<(String, PathBuf)>,
}

/// What a stage `eval` says.
#[derive(Debug, Deserialize)]
struct Report {
    rows: Vec<Judged>,
}

/// What it says of a policy.
#[derive(Debug, Clone, Deserialize)]
struct Judged {
    name: String,
    pass_at_1_greedy: Option<Mean>,
    pass_at_1_sampled: Option<Mean>,
    score_greedy: Option<Mean>,
    score_sampled: Option<Mean>,
    best_temperature: Option<AtBestTemperature>,
    pass_at_k: BTreeMap<u64, Option<Mean>>,
    reward_mean: Option<f64>,
    kl_to_reference: Option<f64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Mean {
    mean: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct AtBestTemperature {
    of_problems: Option<Mean>,
}

impl Comparison {
    /// That of a recipe's runs.
    ///
    /// # Errors
    /// When what one of its rings sets does not fit.
    pub(super) fn of(file: &RecipeFile) -> anyhow::Result<Self> {
        let evals = file.recipe.stages.iter().filter_map(|stage| Some((stage, stage.eval.as_ref()?)));
        let reports = evals.filter_map(|(stage, eval)| {
            let folder = eval.output.strip_prefix(&file.recipe.output).ok()?;
            Some((stage.name.clone(), folder.join("report.json")))
        });
        Ok(Self { reports: reports.collect(), rings: file.rings_below_output()? })
    }

    /// Prints what there is, a row or more for each point.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn show(&self, points: &[Point], cells: &[Cell], as_json: bool) -> anyhow::Result<()> {
        let mut trained = table_of_figures(&["run", "seeds", "score", "pass@1", "KL", "length", "entropy"]);
        let (mut rows, mut judged) = (Vec::new(), Vec::new());
        for (at, point) in points.iter().enumerate() {
            let cells: Vec<&Cell> = cells.iter().filter(|cell| cell.point == at).collect();
            for ring in &self.rings {
                rows.push(self.of_ring(&mut trained, point, &cells, ring)?);
            }
            for (stage, report) in &self.reports {
                let found = policies(&cells, report)?;
                judged.extend(found.iter().map(|found| self.of_policy(point, stage, found)));
            }
        }
        if as_json {
            rows.extend(judged.into_iter().map(|row| row.json));
            println!("{}", serde_json::to_string(&rows)?);
            return Ok(());
        }
        if !self.rings.is_empty() {
            println!(
                "{trained}\nmeans over the last tenth of each run's batches, ± half the 95 % interval over seeds"
            );
        }
        if !judged.is_empty() {
            println!(
                "{}\nof held-out problems, ± half the 95 % interval over seeds",
                table_of_judged(&judged)
            );
        }
        if self.rings.is_empty() && judged.is_empty() {
            println!("nothing to compare yet: the runs have no ring, and no stage eval has ended");
        }
        Ok(())
    }

    /// What the rings of a point have come to.
    fn of_ring(
        &self,
        table: &mut Table,
        point: &Point,
        cells: &[&Cell],
        ring: &Path,
    ) -> anyhow::Result<Value> {
        let mut found = Vec::new();
        for cell in cells {
            found.extend(Results::of(&cell.output.join(ring))?);
        }
        let figures = [
            over(&found, |results| Some(results.score)),
            over(&found, |results| results.outcome),
            over(&found, |results| results.kl),
            over(&found, |results| Some(results.length)),
            over(&found, |results| results.entropy),
        ];
        let several = self.rings.len() > 1;
        let label = if several { format!("{} {}", point.label(), ring.display()) } else { point.label() };
        table.add_row([label, found.len().to_string()].into_iter().chain(figures.map(text)));
        let [score, outcome, kl, length, entropy] = figures;
        Ok(json!({
            "run": point.label(), "settings": point.settings, "ring": ring, "seeds": found.len(), "score": score,
            "outcome": outcome, "kl": kl, "length": length, "entropy": entropy
        }))
    }

    /// What was found of a policy.
    fn of_policy(&self, point: &Point, stage: &str, (policy, of): &(String, Vec<Judged>)) -> JudgedRow {
        let mut figures = vec![
            ("pass@1 greedy".to_owned(), over(of, |row| mean(row.pass_at_1_greedy))),
            ("pass@1 sampled".to_owned(), over(of, |row| mean(row.pass_at_1_sampled))),
            ("score greedy".to_owned(), over(of, |row| mean(row.score_greedy))),
            ("score sampled".to_owned(), over(of, |row| mean(row.score_sampled))),
            ("at best temperature".to_owned(), over(of, |row| mean(row.best_temperature?.of_problems))),
        ];
        let ks = of.first().into_iter().flat_map(|row| row.pass_at_k.keys());
        figures.extend(
            ks.map(|k| (format!("pass@{k}"), over(of, |row| mean(row.pass_at_k.get(k).copied().flatten())))),
        );
        figures.push(("reward".to_owned(), over(of, |row| row.reward_mean)));
        figures.push(("KL".to_owned(), over(of, |row| row.kl_to_reference)));
        let json = json!({
            "run": point.label(), "settings": point.settings, "stage": stage, "policy": policy,
            "seeds": of.len(), "figures": figures.iter().cloned().collect::<BTreeMap<_, _>>()
        });
        let several = self.reports.len() > 1;
        let stage = if several { format!(" {stage}") } else { String::new() };
        JudgedRow { label: format!("{}{stage} {policy}", point.label()), seeds: of.len(), figures, json }
    }
}

/// A row of the table of policies.
#[derive(Debug)]
struct JudgedRow {
    label: String,
    seeds: usize,
    /// By the column's name.
    figures: Vec<(String, Option<Interval>)>,
    json: Value,
}

/// What was measured of no policy is no column.
fn table_of_judged(rows: &[JudgedRow]) -> Table {
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.figures).filter(|(_, figure)| figure.is_some()) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut table = table_of_figures(&[&["run", "seeds"], &columns[..]].concat());
    for row in rows {
        let figures: BTreeMap<&str, Option<Interval>> =
            row.figures.iter().map(|(name, figure)| (name.as_str(), *figure)).collect();
        let cells = columns.iter().map(|name| text(figures.get(name).copied().flatten()));
        table.add_row([row.label.clone(), row.seeds.to_string()].into_iter().chain(cells));
    }
    table
}

fn mean(mean: Option<Mean>) -> Option<f64> {
    mean.map(|mean| mean.mean)
}

/// The mean of those that have the figure.
fn over<T>(found: &[T], figure: impl Fn(&T) -> Option<f64>) -> Option<Interval> {
    Interval::of(&found.iter().filter_map(figure).collect::<Vec<_>>())
}

fn text(figure: Option<Interval>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
}

/// What the runs of a point say of each policy, in the order of the first.
fn policies(cells: &[&Cell], report: &Path) -> anyhow::Result<Vec<(String, Vec<Judged>)>> {
    let mut policies: Vec<(String, Vec<Judged>)> = Vec::new();
    for cell in cells {
        let path = cell.output.join(report);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let read: Report = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        for row in read.rows {
            match policies.iter_mut().find(|(name, _)| *name == row.name) {
                Some((_, of)) => of.push(row),
                None => policies.push((row.name.clone(), vec![row])),
            }
        }
    }
    Ok(policies)
}
