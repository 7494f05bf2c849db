//! What a ring begins with, of another run: the weights of one of its checkpoints, its place among the
//! prompts, or both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coordinator::state::StepRecord;
use service::config::Layers;
use service::{BadInput, jsonl};
use toml::Value;

use super::stage_tables::{Restored, RingStage};

/// A checkpoint of another run.
#[derive(Debug, PartialEq, Eq)]
struct Checkpoint {
    folder: PathBuf,
    batch: u64,
    /// The ring that wrote it.
    ring: PathBuf,
}

/// Lays what a ring takes of another run over what the recipe says; `place` is the ring's stage.
///
/// # Errors
/// When there is no such run or checkpoint, with those that there are.
pub(super) fn lay_over(layers: &mut Layers, ring: &RingStage, place: &str) -> Result<(), BadInput> {
    let Some(from) = ring.from.as_deref().filter(|from| !from.is_empty()) else { return Ok(()) };
    let found = checkpoint(from).map_err(|problem| BadInput(format!("{place}.from: {problem}")))?;
    let place = format!("{place}.from");
    for part in &ring.restore {
        match part {
            Restored::Weights => {
                let path = |name: &str| Value::String(found.folder.join(name).display().to_string());
                layers.replace("learner.policy", path("policy"), &place);
                if found.folder.join("critic").is_dir() {
                    layers.replace("learner.critic", path("critic"), &place);
                }
            }
            Restored::Cursor => {
                let used = prompts_used(&found).map_err(|problem| BadInput(format!("{place}: {problem}")))?;
                let used = Value::Integer(i64::try_from(used).unwrap_or(i64::MAX));
                layers.replace("coordinator.data.skip_prompts", used, &place);
            }
        }
    }
    Ok(())
}

/// Finds `RUN` or `RUN@BATCH`; a run is an output folder or a ring's folder in it.
fn checkpoint(from: &str) -> Result<Checkpoint, String> {
    let (run, batch) = match from.rsplit_once('@') {
        Some((run, batch)) => {
            let batch = batch.parse::<u64>().map_err(|_| format!("{batch:?} in {from:?} is no batch"))?;
            (Path::new(run), Some(batch))
        }
        None => (Path::new(from), None),
    };
    let ring = if run.join("checkpoints").is_dir() { run.to_owned() } else { run.join("ring") };
    let mut there = batches(&ring.join("checkpoints"));
    there.sort_unstable();
    let chosen = batch.or(there.last().copied());
    match chosen.filter(|chosen| there.contains(chosen)) {
        Some(batch) => {
            let folder = ring.join("checkpoints").join(format!("step-{batch:08}"));
            Ok(Checkpoint { folder, batch, ring })
        }
        None if there.is_empty() => {
            Err(format!("{} holds no checkpoint", ring.join("checkpoints").display()))
        }
        None => {
            let there: Vec<String> = there.iter().map(u64::to_string).collect();
            Err(format!(
                "{} holds checkpoints of batches {} and no other; raise learner.keep_checkpoints to keep more",
                ring.display(),
                there.join(", ")
            ))
        }
    }
}

/// The last batches of the checkpoints in a folder.
fn batches(checkpoints: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(checkpoints).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect()
}

/// Prompts whose groups were complete when a checkpoint's last batch was trained.
fn prompts_used(checkpoint: &Checkpoint) -> Result<u64, String> {
    let steps = checkpoint.ring.join("steps.jsonl");
    let mut used = BTreeMap::new();
    for line in jsonl::read(&steps).map_err(|error| error.to_string())? {
        let step: StepRecord = line.and_then(|line| line.parse()).map_err(|error| error.to_string())?;
        if step.batch.0 <= checkpoint.batch {
            // A step that was done again after a crash counts once.
            used.insert(step.batch, step.groups.max(step.prompts));
        }
    }
    Ok(used.values().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path) -> PathBuf {
        let run = folder.join("a");
        for batch in [40, 80] {
            let checkpoint = run.join(format!("ring/checkpoints/step-{batch:08}"));
            std::fs::create_dir_all(checkpoint.join("policy")).unwrap();
            std::fs::create_dir_all(checkpoint.join("critic")).unwrap();
        }
        let step = |batch: u64| {
            serde_json::json!({
                "batch": batch, "time": 0, "prompts": 8, "groups": 10, "responses": 1, "score_mean": 0.0,
                "outcome_mean": null, "response_tokens_mean": 3.0, "truncated": 0.0, "metrics": {},
                "reliability": {"unfiltered": null, "filtered": null}
            })
        };
        let steps: String = (1..=80).chain([80]).map(|batch| format!("{}\n", step(batch))).collect();
        std::fs::write(run.join("ring/steps.jsonl"), steps).unwrap();
        run
    }

    fn laid(from: &str, restore: &[Restored]) -> Result<Layers, BadInput> {
        let mut layers = Layers::default();
        layers.add_setting("learner.policy=sft").unwrap();
        let ring =
            RingStage { from: Some(from.to_owned()), restore: restore.to_vec(), ..RingStage::default() };
        lay_over(&mut layers, &ring, "stages[0].ring").map(|()| layers)
    }

    #[test]
    fn weights_and_cursor_are_taken_each_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let weights = laid(&format!("{}@40", run.display()), &[Restored::Weights]).unwrap();
        let policy = weights.value("learner.policy").unwrap().as_str().unwrap();
        assert!(policy.ends_with("a/ring/checkpoints/step-00000040/policy"), "{policy}");
        assert!(weights.value("learner.critic").is_some());
        assert_eq!(weights.value("coordinator.data.skip_prompts"), None);
        assert_eq!(weights.source("learner.policy").to_string(), "from stages[0].ring.from");

        let cursor = laid(&run.join("ring").display().to_string(), &[Restored::Cursor]).unwrap();
        assert_eq!(cursor.value("learner.policy"), Some(&Value::from("sft")));
        assert_eq!(cursor.value("coordinator.data.skip_prompts"), Some(&Value::Integer(800)));
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        let error = laid(&format!("{}@50", run.display()), &[Restored::Weights]).unwrap_err().to_string();
        assert!(
            error.starts_with("stages[0].ring.from: ") && error.contains("batches 40, 80 and no other"),
            "{error}"
        );
        let error = laid("/nowhere", &[Restored::Weights]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/ring/checkpoints holds no checkpoint"), "{error}");
    }
}
