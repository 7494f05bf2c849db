//! `sluice filter`: PF-PPO's filtration on a file of scored rollouts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use algo::filtration::{
    Candidate, Diagnostics, Filtration, Group, GroupDecision, Mode, NoSignal, Strategy, filter_group,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::{BadInput, jsonl};

/// Weights rollouts by their scores, prompt by prompt (PF-PPO, arXiv 2409.06957).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// none, best-of-n, best-random, best-worst, power:K, top:T, top-random:T or top-bottom:LOW:HIGH.
    #[arg(long, default_value = "best-worst")]
    strategy: Strategy,
    /// select, resample or resample:DRAWS.
    #[arg(long, default_value = "select")]
    mode: Mode,
    /// Seeds draws and ties.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Lines with {"prompt_id", "rollout_id", "score"}.
    #[arg(long)]
    input: PathBuf,
    /// The same lines with {"weight", "kept"} added.
    #[arg(long)]
    output: PathBuf,
    /// Prints the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// The fields that are read; all others are kept as they are.
#[derive(Debug, Deserialize)]
struct Scored {
    prompt_id: Value,
    rollout_id: Value,
    score: f64,
}

/// A rollout of the input.
#[derive(Debug)]
struct Rollout {
    /// Its place among the lines.
    row: usize,
    id: String,
    score: f64,
}

/// An id as text: a string's own, anything else as JSON.
fn id_text(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

/// Runs the command.
///
/// # Errors
/// Names the file and line of what cannot be read, and the prompt that cannot be filtered.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let filtration =
        Filtration { strategy: arguments.strategy, mode: arguments.mode, no_signal: NoSignal::default() };
    filtration.validate().map_err(|error| BadInput(error.to_string()))?;
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let mut groups: BTreeMap<String, Vec<Rollout>> = BTreeMap::new();
    for line in jsonl::read(&arguments.input)? {
        let line = line?;
        let row: Map<String, Value> = line.parse()?;
        let scored: Scored = line.parse()?;
        let rollout = Rollout { row: rows.len(), id: id_text(&scored.rollout_id), score: scored.score };
        groups.entry(id_text(&scored.prompt_id)).or_default().push(rollout);
        rows.push(row);
    }
    let (mut diagnostics, mut without_signal) = (Diagnostics::default(), 0usize);
    for (prompt_id, rollouts) in &groups {
        let candidates: Vec<Candidate<'_>> = rollouts
            .iter()
            .map(|rollout| Candidate { rollout_id: &rollout.id, score: rollout.score })
            .collect();
        let group = Group { prompt_id, rollouts: &candidates };
        let decision = filter_group(&filtration, arguments.seed, &group)
            .map_err(|error| BadInput(format!("{}: {error}", arguments.input.display())))?;
        diagnostics.record(rollouts.len(), &decision);
        let choices = match decision {
            GroupDecision::Choices(choices) => choices,
            GroupDecision::NoSignal => {
                without_signal += 1;
                vec![algo::filtration::Choice::default(); rollouts.len()]
            }
        };
        for (rollout, choice) in rollouts.iter().zip(choices) {
            rows[rollout.row].insert("weight".to_owned(), choice.weight.into());
            rows[rollout.row].insert("kept".to_owned(), choice.kept.into());
        }
    }
    jsonl::write(&arguments.output, rows.iter())?;
    let kept = rows.iter().filter(|row| row["kept"] == Value::Bool(true)).count();
    if arguments.json {
        let summary = serde_json::json!({
            "prompts": groups.len(), "rollouts": rows.len(), "kept": kept, "without_signal": without_signal,
            "kept_fraction": diagnostics.kept_fraction(), "weight_entropy": diagnostics.weight_entropy(),
        });
        println!("{summary}");
    } else {
        println!(
            "{}: {kept} of {} rollouts kept, {} prompts, {without_signal} without signal",
            filtration.strategy.name(),
            rows.len(),
            groups.len()
        );
    }
    Ok(())
}
