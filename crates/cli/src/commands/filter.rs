//! `sluice filter`: PF-PPO's filtration on a file of scored rollouts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use algo::filtration::{
    Candidate, Diagnostics, Filtration, Group, GroupDecision, Mode, NoSignal, Strategy, filter_buffer,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::{BadInput, jsonl};

/// Weights rollouts by their scores (PF-PPO, arXiv 2409.06957): prompt by prompt, and with `power` or
/// `resample-buffer` over the whole file.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// none, best-of-n, best-random, best-worst, power:K, power-per-prompt:K, top:T, top-random:T or
    /// top-bottom:LOW:HIGH.
    #[arg(long, default_value = "best-worst")]
    strategy: Strategy,
    /// select, resample, resample:DRAWS, resample-buffer or resample-buffer:DRAWS.
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

fn candidates(rollouts: &[Rollout]) -> Vec<Candidate<'_>> {
    let mut candidates = Vec::with_capacity(rollouts.len());
    for Rollout { id, score, .. } in rollouts {
        candidates.push(Candidate { rollout_id: id, score: *score });
    }
    candidates
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
    let candidates: Vec<Vec<Candidate<'_>>> = groups.values().map(|rollouts| candidates(rollouts)).collect();
    let named = groups.keys().zip(&candidates);
    let buffer: Vec<Group<'_>> = named.map(|(prompt_id, rollouts)| Group { prompt_id, rollouts }).collect();
    let decisions = filter_buffer(&filtration, arguments.seed, "", &buffer)
        .map_err(|error| BadInput(format!("{}: {error}", arguments.input.display())))?;
    for (rollouts, decision) in groups.values().zip(decisions) {
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
