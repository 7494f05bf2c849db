//! `sluice r2`: how far a reward can be trusted under each filtration strategy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use algo::filtration::{Filtration, Strategy};
use algo::r2::{RSquared, filtered_r_squared};
use serde::Deserialize;
use serde_json::Value;
use service::{BadInput, jsonl};

use crate::table::table;

/// R squared of the actual outcome on the reward, for the responses that each strategy would train on
/// (PF-PPO, arXiv 2409.06957, section 4).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Lines with {"prompt_id", "rollout_id", "score", "outcome"}; outcome is in 0..1.
    #[arg(long)]
    input: PathBuf,
    /// Points of the regression: bins of equal count.
    #[arg(long, default_value_t = algo::r2::DEFAULT_BINS)]
    bins: usize,
    /// Strategies to compare; the paper's by default.
    #[arg(long = "strategy")]
    strategies: Vec<Strategy>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Judged {
    prompt_id: Value,
    score: f64,
    outcome: f64,
}

/// Runs the command.
///
/// # Errors
/// Names the file and line of what cannot be read.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for line in jsonl::read(&arguments.input)? {
        let line = line?;
        let judged: Judged = line.parse()?;
        if !(0.0..=1.0).contains(&judged.outcome) {
            return Err(line.wrong(&format!("outcome is {}, must be in 0..1", judged.outcome)).into());
        }
        groups.entry(judged.prompt_id.to_string()).or_default().push((judged.score, judged.outcome));
    }
    let groups: Vec<Vec<(f64, f64)>> = groups.into_values().collect();
    let strategies = if arguments.strategies.is_empty() {
        vec![
            Strategy::None,
            Strategy::BestOfN,
            Strategy::BestRandom,
            Strategy::BestWorst,
            Strategy::Power { k: 1.0 },
            Strategy::Power { k: 2.0 },
            Strategy::Power { k: 3.0 },
        ]
    } else {
        arguments.strategies.clone()
    };
    let mut results: Vec<(Strategy, RSquared)> = Vec::new();
    for strategy in strategies {
        let filtration = Filtration { strategy, ..Filtration::default() };
        let result = filtered_r_squared(&filtration, &groups, arguments.bins);
        results.push((strategy, result.map_err(|error| BadInput(error.to_string()))?));
    }
    if arguments.json {
        println!("{}", Value::from_iter(results.iter().map(|(strategy, result)| json_row(strategy, result))));
        return Ok(());
    }
    let mut table = table(&["strategy", "R²", "bins", "responses"]);
    for (strategy, result) in results {
        let r_squared = result.r_squared.map_or_else(|| "undefined".to_owned(), |r2| format!("{r2:.3}"));
        table.add_row([
            strategy.to_string(),
            r_squared,
            result.bins.to_string(),
            result.responses.to_string(),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn json_row(strategy: &Strategy, result: &RSquared) -> Value {
    serde_json::json!({
        "strategy": strategy.to_string(), "r_squared": result.r_squared,
        "bins": result.bins, "responses": result.responses,
    })
}
