//! `sluice trace`: the life of the responses that a run keeps as samples, to be read or as spans.

mod otlp;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::path::{Path, PathBuf};

use comfy_table::Table;
use dashboard::ring_folders;
use serde::Deserialize;
use service::BadInput;

use crate::table::table;

/// Bytes of a line that are read; longer ones are none of ours.
const MAX_LINE_BYTES: usize = 1 << 20;

/// The life of a response, from its lease to the step that it trained, with times.
///
/// Known are the responses in the ring folder's samples.jsonl: as many of each batch as
/// coordinator.samples_per_batch says.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The output folder of a run, or the folder of one of its rings.
    run: PathBuf,
    /// A response (e0-p17-s2-a0), or a prompt (e0-p17) for all its responses that are known.
    #[arg(required_unless_present = "otlp")]
    id: Option<String>,
    /// Writes spans instead, one trace for each response, as OTLP in JSON (a line for each ring): what the
    /// OpenTelemetry Collector reads. Of all responses that are known where no ID is given. `-` is standard
    /// output.
    #[arg(long, value_name = "FILE")]
    otlp: Option<PathBuf>,
}

/// What is read of a sample; its fields are the coordinator's.
#[derive(Debug, Deserialize)]
struct Sample {
    id: String,
    prompt_id: String,
    time_unix_ms: u64,
    batch: u64,
    #[serde(default)]
    actor: Option<String>,
    #[serde(default)]
    leased_unix_ms: Option<u64>,
    #[serde(default)]
    reward_server: Option<String>,
    #[serde(default)]
    scored_unix_ms: Option<u64>,
    version: u64,
    score: f32,
    outcome: Option<f32>,
    response_tokens: u32,
    finish_reason: String,
    fate: String,
    weight: f32,
}

/// What is read of a step.
#[derive(Debug, Deserialize)]
struct Step {
    batch: u64,
    time: u64,
}

/// Runs the command.
///
/// # Errors
/// A folder without samples, an id that no sample has.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let rings = ring_folders(&arguments.run);
    let folders = if rings.is_empty() { vec![arguments.run.clone()] } else { rings };
    let mut known = 0;
    let mut found = Vec::new();
    for folder in &folders {
        let mut samples: Vec<Sample> = ["samples.previous.jsonl", "samples.jsonl"]
            .iter()
            .flat_map(|name| lines(&folder.join(name)))
            .collect();
        known += samples.len();
        samples.retain(|sample| arguments.id.as_ref().is_none_or(|id| sample.is(id)));
        if !samples.is_empty() {
            let steps = lines(&folder.join("steps.jsonl")).collect();
            found.push(Ring { folder, samples, steps });
        }
    }
    if found.is_empty() {
        return Err(nothing_found(arguments, known).into());
    }
    match &arguments.otlp {
        Some(file) => otlp::write(file, &found),
        None => show(&found),
    }
}

/// What was found of one ring.
struct Ring<'a> {
    folder: &'a Path,
    samples: Vec<Sample>,
    steps: Vec<Step>,
}

fn show(found: &[Ring<'_>]) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let lives = found.iter().flat_map(|ring| ring.samples.iter().map(|sample| (sample, &ring.steps)));
    for (place, (sample, steps)) in lives.enumerate() {
        if place > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{}\n{}", sample.title(), life(sample, steps))?;
    }
    Ok(())
}

fn nothing_found(arguments: &Arguments, known: usize) -> BadInput {
    let where_to_look = arguments.run.display();
    BadInput(match &arguments.id {
        Some(id) if known > 0 => format!(
            "none of the {known} samples of {where_to_look} is {id}: the ids are in samples.jsonl, and \
             coordinator.samples_per_batch says how many of each batch are kept"
        ),
        _ => format!(
            "{where_to_look} has no samples: it is no run's folder, or coordinator.samples_per_batch is 0"
        ),
    })
}

/// The lines of a file that are such values: what is missing or half written is none.
fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> impl Iterator<Item = T> + use<T> {
    let file = File::open(path).ok().map(BufReader::new);
    let lines = file.into_iter().flat_map(|file| file.split(b'\n').map_while(Result::ok));
    lines.filter(|line| line.len() <= MAX_LINE_BYTES).filter_map(|line| serde_json::from_slice(&line).ok())
}

impl Sample {
    fn is(&self, id: &str) -> bool {
        self.id == id || self.prompt_id == id
    }

    fn trains(&self) -> bool {
        self.fate == "trains"
    }

    /// The step that it trained, if that is known.
    fn step<'a>(&self, steps: &'a [Step]) -> Option<&'a Step> {
        steps.iter().find(|step| self.trains() && step.batch == self.batch)
    }

    fn title(&self) -> String {
        let outcome = self.outcome.map_or_else(String::new, |outcome| format!(", tests passed {outcome}"));
        format!("{}  score {}{outcome}, {}", self.id, self.score, self.fate)
    }
}

/// What happened to a response, in order.
fn life(sample: &Sample, steps: &[Step]) -> Table {
    let trained = sample.trains();
    let step = sample.step(steps);
    let by = |who: &Option<String>| who.clone().unwrap_or_else(|| "?".to_owned());
    let drawn = format!(
        "scored by {}: {} tokens, the first of version {}, ended by {}",
        by(&sample.reward_server),
        sample.response_tokens,
        sample.version,
        sample.finish_reason
    );
    let decided = if trained {
        format!("its group is complete: trains in batch {} with weight {}", sample.batch, sample.weight)
    } else {
        format!("its group is complete: {}", sample.fate)
    };
    let mut events = vec![
        (sample.leased_unix_ms, format!("leased to {}", by(&sample.actor))),
        (sample.scored_unix_ms, drawn),
        (Some(sample.time_unix_ms), decided),
    ];
    if let Some(step) = step {
        events.push((Some(step.time), format!("batch {0} is trained: version {0}", step.batch)));
    }
    let mut table = table(&["time (UTC)", "after", "what"]);
    let begin = events.iter().find_map(|(at, _)| *at);
    for (at, what) in events {
        let time = at.and_then(|at| jiff::Timestamp::from_millisecond(i64::try_from(at).ok()?).ok());
        let time =
            time.map_or_else(|| "?".to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string());
        let after = at.zip(begin).map(|(at, begin)| at.saturating_sub(begin) as f64 / 1000.0);
        table.add_row([time, after.map_or_else(|| "?".to_owned(), |after| format!("{after:.3} s")), what]);
    }
    table
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) const SAMPLE: &str = r#"{"time_unix_ms": 1700000002500, "batch": 4, "prompt_id": "e0-p3", "id": "e0-p3-s1-a0",
        "actor": "actor-1", "leased_unix_ms": 1700000000000, "reward_server": "rewards", "scored_unix_ms": 1700000001250,
        "version": 3, "score": 0.5, "outcome": 1.0, "response_tokens": 12, "finish_reason": "stop", "fate": "trains",
        "weight": 1.0, "a field of later": []}"#;

    #[test]
    fn a_life_has_its_times_in_order() {
        let sample: Sample = serde_json::from_str(SAMPLE).unwrap();
        assert!(sample.is("e0-p3") && sample.is("e0-p3-s1-a0") && !sample.is("e0-p3-s1"));
        let steps = [Step { batch: 4, time: 1_700_000_004_000 }];
        let shown = life(&sample, &steps).to_string();
        let places = [
            "leased to actor-1",
            "scored by rewards: 12 tokens",
            "weight 1",
            "batch 4 is trained: version 4",
        ]
        .map(|what| shown.find(what).unwrap_or_else(|| panic!("{what}: {shown}")));
        assert!(places.is_sorted(), "{shown}");
        for time in ["2023-11-14 22:13:20.000", "1.250 s", "2.500 s", "4.000 s"] {
            assert!(shown.contains(time), "{time}: {shown}");
        }
    }

    #[test]
    fn a_response_that_was_filtered_trains_in_no_step() {
        let mut sample: Sample = serde_json::from_str(SAMPLE).unwrap();
        sample.fate = "filtered{strategy}".to_owned();
        sample.actor = None;
        sample.leased_unix_ms = None;
        let shown = life(&sample, &[Step { batch: 4, time: 1_700_000_004_000 }]).to_string();
        assert!(shown.contains("complete: filtered{strategy}") && !shown.contains("is trained"), "{shown}");
        assert!(shown.contains("leased to ?"), "{shown}");
    }
}
