//! `sluice filter`: PF-PPO's filtration on a file of scored rollouts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use algo::filtration::{
    Candidate, Diagnostics, Filtration, Group, GroupDecision, Mode, NoSignal, Strategy, filter_buffer,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::BadInput;
use service::jsonl::{self, Line};

use super::lines::{LineArguments, say_beside};

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
    /// Lines with {"prompt_id", "rollout_id", "score"}; without these, prompts are told apart by id and
    /// responses by index or their place. - is standard input.
    #[arg(long)]
    input: PathBuf,
    /// The same lines with {"weight", "kept"} added; - is standard output.
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    lines: LineArguments,
    /// Prints the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// The fields that are read; all others are kept as they are.
#[derive(Debug, Deserialize)]
struct Scored {
    prompt_id: Option<Value>,
    id: Option<Value>,
    rollout_id: Option<Value>,
    index: Option<Value>,
    score: f64,
}

impl Scored {
    fn of(line: &Line) -> Result<(Map<String, Value>, Self), BadInput> {
        let (fields, scored): (Map<String, Value>, Self) = (line.parse()?, line.parse()?);
        if scored.prompt_id.is_none() && scored.id.is_none() {
            return Err(line.wrong("has no prompt_id and no id, which say whose sibling it is"));
        }
        Ok((fields, scored))
    }
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
    let wrong = arguments.lines.wrong_lines();
    for line in jsonl::read(&arguments.input)? {
        let Some(row) = wrong.sift(line.and_then(|line| Scored::of(&line))) else { continue };
        let (row, scored) = row?;
        let prompt = scored.prompt_id.or(scored.id).unwrap_or_default();
        let group = groups.entry(id_text(&prompt)).or_default();
        let id = scored.rollout_id.or(scored.index).unwrap_or_else(|| group.len().into());
        group.push(Rollout { row: rows.len(), id: id_text(&id), score: scored.score });
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
    let summary = if arguments.json {
        let summary = serde_json::json!({
            "prompts": groups.len(), "rollouts": rows.len(), "kept": kept, "without_signal": without_signal,
            "kept_fraction": diagnostics.kept_fraction(), "weight_entropy": diagnostics.weight_entropy(),
        });
        summary.to_string()
    } else {
        format!(
            "{}: {kept} of {} rollouts kept, {} prompts, {without_signal} without signal",
            filtration.strategy.name(),
            rows.len(),
            groups.len()
        )
    };
    say_beside(&arguments.output, &summary);
    Ok(wrong.finish()?)
}
