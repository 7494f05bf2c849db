//! `sluice r2`: how far a reward can be trusted under each filtration strategy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use algo::filtration::{Filtration, Strategy};
use algo::r2::{Bootstrap, Estimate, RSquared, estimates, filtered_r_squared};
use serde::Deserialize;
use serde_json::Value;
use service::BadInput;
use service::jsonl::{self, Line};

use super::lines::LineArguments;
use crate::decimal::decimal;
use crate::table::table;

/// R squared of the actual outcome on the reward, for the responses that each strategy would train on
/// (PF-PPO, arXiv 2409.06957, section 4).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Lines with {"prompt_id", "score", "outcome"}, the outcome in 0..1; id stands for prompt_id and passed,
    /// which sluice grade writes, for the outcome where these are missing. - is standard input.
    #[arg(long)]
    input: PathBuf,
    #[command(flatten)]
    lines: LineArguments,
    /// Points of the regression: bins of equal count.
    #[arg(long, default_value_t = algo::r2::DEFAULT_BINS)]
    bins: usize,
    /// Strategies to compare; the paper's by default.
    #[arg(long = "strategy")]
    strategies: Vec<Strategy>,
    /// Pools drawn for the interval.
    #[arg(long, default_value_t = 1000)]
    replicates: usize,
    /// Seeds the interval's draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
struct Judged {
    prompt_id: Option<Value>,
    id: Option<Value>,
    score: f64,
    outcome: Option<f64>,
    passed: Option<bool>,
}

impl Judged {
    /// The prompt, and score and outcome.
    fn of(line: &Line) -> Result<(String, (f64, f64)), BadInput> {
        let Self { prompt_id, id, score, outcome, passed } = line.parse()?;
        let prompt = prompt_id.or(id).ok_or_else(|| line.wrong("has no prompt_id and no id"))?;
        let outcome = outcome.or(passed.map(|passed| f64::from(u8::from(passed))));
        let outcome = outcome.ok_or_else(|| line.wrong("has no outcome, nor passed"))?;
        if !(0.0..=1.0).contains(&outcome) {
            return Err(line.wrong(&format!("outcome is {outcome}, must be in 0..1")));
        }
        Ok((prompt.to_string(), (score, outcome)))
    }
}

/// Runs the command.
///
/// # Errors
/// Names the file and line of what cannot be read.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let wrong = arguments.lines.wrong_lines();
    for line in jsonl::read(&arguments.input)? {
        if let Some(judged) = wrong.sift(line.and_then(|line| Judged::of(&line))) {
            let (prompt, pair) = judged?;
            groups.entry(prompt).or_default().push(pair);
        }
    }
    let groups: Vec<Vec<(f64, f64)>> = groups.into_values().collect();
    let strategies = if arguments.strategies.is_empty() {
        Strategy::WITHOUT_THRESHOLD.to_vec()
    } else {
        arguments.strategies.clone()
    };
    let filtrations: Vec<Filtration> = strategies
        .iter()
        .map(|strategy| Filtration { strategy: *strategy, ..Filtration::default() })
        .collect();
    let Arguments { bins, replicates, seed, .. } = *arguments;
    let drawn = estimates(&filtrations, &groups, Bootstrap { seed, replicates, bins }).map_err(bad)?;
    let mut results = Vec::with_capacity(filtrations.len());
    for (filtration, estimate) in filtrations.iter().zip(drawn) {
        let whole = filtered_r_squared(filtration, &groups, bins).map_err(bad)?;
        results.push(Found { strategy: filtration.strategy, whole, estimate });
    }
    if arguments.json {
        println!("{}", Value::from_iter(results.iter().map(Found::json)));
    } else {
        print_table(&results);
    }
    Ok(wrong.finish()?)
}

/// What was found of one strategy.
struct Found {
    strategy: Strategy,
    /// Of all that it would train on.
    whole: RSquared,
    /// With as many draws as every other strategy.
    estimate: Option<Estimate>,
}

fn print_table(results: &[Found]) {
    let mut table =
        table(&["strategy", "R²", "with equal draws", "95 % interval", "ceiling", "bins", "responses"]);
    for Found { strategy, whole, estimate } in results {
        let r_squared = whole.r_squared.map_or_else(|| "undefined".to_owned(), |r2| decimal(r2, 3));
        let [drawn, interval, ceiling] = match estimate {
            Some(Estimate { r_squared, low, high, ceiling }) => [
                decimal(*r_squared, 3),
                format!("{} to {}", decimal(*low, 3), decimal(*high, 3)),
                decimal(*ceiling, 3),
            ],
            None => ["undefined", "", ""].map(str::to_owned),
        };
        let (bins, responses) = (whole.bins.to_string(), whole.responses.to_string());
        table.add_row([strategy.to_string(), r_squared, drawn, interval, ceiling, bins, responses]);
    }
    println!("{table}");
}

impl Found {
    fn json(&self) -> Value {
        let Self { strategy, whole, estimate } = self;
        serde_json::json!({
            "strategy": strategy.to_string(), "r_squared": whole.r_squared, "bins": whole.bins,
            "responses": whole.responses, "equal_draws": estimate,
        })
    }
}

fn bad(error: algo::r2::FilteredError) -> BadInput {
    BadInput(error.to_string())
}
