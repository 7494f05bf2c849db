//! `sluice compare`: what runs came to, and in which keys they differ.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dashboard::{ring_folders, told_keys};
use serde_json::json;
use service::BadInput;

use crate::decimal::decimal;
use crate::results::{self, Results};
use crate::table::{table, table_of_figures};

/// Compares runs: a table of what they came to, and one of the keys that differ.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Output folders of runs, such as runs/tiny-coder.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// A ring of a run.
struct Ring {
    /// The run's folder, and the ring's where that is not `ring`.
    name: String,
    results: Option<Results>,
    /// What its roles were told, by full key.
    keys: BTreeMap<String, String>,
}

/// Runs the command.
///
/// # Errors
/// A folder that is no run's.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut rings = Vec::new();
    for run in &arguments.runs {
        rings.extend(rings_of(run)?);
    }
    let differing = differing_keys(&rings);
    if arguments.json {
        let rows = rings.iter().map(|ring| {
            let keys: BTreeMap<&str, Option<&String>> =
                differing.iter().map(|key| (key.as_str(), ring.keys.get(key))).collect();
            json!({"run": ring.name, "results": ring.results, "keys": keys})
        });
        println!("{}", serde_json::to_string(&rows.collect::<Vec<_>>())?);
        return Ok(());
    }
    println!("{}", results_table(&rings));
    println!("means over the last tenth of the batches\n");
    if differing.is_empty() {
        println!("no key differs");
    } else {
        println!("{}", keys_table(&rings, &differing));
    }
    Ok(())
}

fn results_table(rings: &[Ring]) -> comfy_table::Table {
    let header = ["run", "batches", "score", "pass@1", "KL", "length", "cut off", "entropy", "s/step"];
    let mut table = table_of_figures(&header);
    for ring in rings {
        let of = |figure: fn(&Results) -> Option<f64>| {
            let figure = ring.results.as_ref().and_then(figure);
            figure.map_or_else(|| "-".to_owned(), |figure| decimal(figure, 3))
        };
        table.add_row([
            ring.name.clone(),
            ring.results.as_ref().map_or(0, |results| results.batches).to_string(),
            of(|results| Some(results.score)),
            of(|results| results.outcome),
            of(|results| results.kl),
            of(|results| Some(results.length)),
            of(|results| Some(results.truncated)),
            of(|results| results.entropy),
            of(|results| Some(results.step_seconds)),
        ]);
    }
    table
}

fn keys_table(rings: &[Ring], differing: &[String]) -> comfy_table::Table {
    let header: Vec<&str> =
        std::iter::once("key").chain(rings.iter().map(|ring| ring.name.as_str())).collect();
    let mut table = table(&header);
    for key in differing {
        let values = rings.iter().map(|ring| ring.keys.get(key).map_or("default", String::as_str));
        table.add_row(std::iter::once(key.as_str()).chain(values));
    }
    table
}

/// The rings of a run, in the order of their names.
fn rings_of(run: &Path) -> anyhow::Result<Vec<Ring>> {
    results::check_run(run)?;
    let mut rings = Vec::new();
    for folder in ring_folders(run).into_iter().filter(|folder| folder.join("config").is_dir()) {
        let own = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = if own == "ring" { run.display().to_string() } else { format!("{}/{own}", run.display()) };
        rings.push(Ring { name, results: Results::of(&folder)?, keys: told_keys(&folder) });
    }
    if rings.is_empty() {
        return Err(BadInput(format!("{} has no ring yet", run.display())).into());
    }
    Ok(rings)
}

/// Keys that do not say the same everywhere.
fn differing_keys(rings: &[Ring]) -> Vec<String> {
    let mut all: Vec<&String> = rings.iter().flat_map(|ring| ring.keys.keys()).collect();
    all.sort_unstable();
    all.dedup();
    let Some((first, others)) = rings.split_first() else { return Vec::new() };
    all.retain(|key| others.iter().any(|ring| ring.keys.get(*key) != first.keys.get(*key)));
    all.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_differ_are_shown_and_places_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut runs = Vec::new();
        for (name, lr) in [("a", "1e-4"), ("b", "1e-3")] {
            let run = folder.path().join(name);
            let config = run.join("ring/config");
            std::fs::create_dir_all(&config).unwrap();
            let text = format!(
                "coordinator = '127.0.0.1:{lr}'\npolicy = '{}/sft'\n[ppo]\npolicy_lr = {lr}\nalgorithm = 'grpo'\n",
                run.display()
            );
            std::fs::write(config.join("learner.toml"), text).unwrap();
            runs.push(run);
        }
        let rings: Vec<Ring> = runs.iter().flat_map(|run| rings_of(run).unwrap()).collect();
        assert_eq!(rings.len(), 2);
        assert_eq!(differing_keys(&rings), ["learner.ppo.policy_lr"]);
        assert_eq!(rings[1].keys["learner.policy"], "{output}/sft");
        let empty = folder.path().join("empty");
        std::fs::create_dir_all(&empty).unwrap();
        assert!(rings_of(&empty).is_err_and(|error| error.to_string().contains("no run's output folder")));
    }
}
