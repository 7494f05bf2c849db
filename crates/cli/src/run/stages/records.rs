//! What is done: one file per finished stage, holding what the stage was told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use service::BadInput;

use crate::recipe::{Recipe, Stage};

/// The records of a run.
#[derive(Debug)]
pub(super) struct Records {
    output: PathBuf,
}

/// A finished stage.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// How long it took.
    seconds: f64,
    /// What it was told.
    #[serde(flatten)]
    told: Told,
}

/// What a stage is told. A record has paths below the output folder as seen from there: a run that is moved
/// is the same run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    /// Another text means another result.
    #[serde(rename = "told")]
    pub(super) text: String,
    /// Batches of a ring: more of them go on from the same result.
    pub(super) batches: Option<u64>,
}

impl Records {
    /// Those in a run's output folder.
    pub(super) fn of(output: &Path) -> anyhow::Result<Self> {
        let folder = output.join("stages");
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self { output: output.to_owned() })
    }

    fn path(&self, stage: &str) -> PathBuf {
        self.output.join("stages").join(format!("{stage}.toml"))
    }

    /// Seconds that a stage took, if it has finished; a ring that is to train more batches has not.
    ///
    /// # Errors
    /// When it was told something else then, or has trained more batches than it is to.
    pub(super) fn finished(&self, stage: &str, told: &Told, output: &Path) -> anyhow::Result<Option<f64>> {
        let path = self.path(stage);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let Ok(record) = toml::from_str::<Record>(&text) else { return Ok(None) };
        if !output.exists() {
            return Ok(None);
        }
        if record.told.batches.zip(told.batches).is_some_and(|(before, now)| before < now) {
            // What else has changed is for the ring to allow.
            return Ok(None);
        }
        let before =
            self.as_seen_from_output(&as_written_today(&record.told.text).unwrap_or(record.told.text));
        let now = self.as_seen_from_output(&told.text);
        if before != now {
            let changed = first_difference(&before, &now);
            let advice =
                format!("do it and what follows again with --redo-from {stage}, or name another output");
            return Err(BadInput(format!("stage {stage} was done with {changed}; {advice}")).into());
        }
        match (record.told.batches, told.batches) {
            (Some(before), Some(now)) if before > now => {
                let problem = format!(
                    "stage {stage} has trained {before} batches, and coordinator.batches is {now} now: say \
                     {before} or more, or do it again with --redo-from {stage}"
                );
                Err(BadInput(problem).into())
            }
            _ => Ok(Some(record.seconds)),
        }
    }

    /// Writes down that a stage has finished.
    pub(super) fn finish(&self, stage: &str, told: Told, took: Duration) -> anyhow::Result<()> {
        let told = Told { text: self.as_seen_from_output(&told.text), ..told };
        let (path, record) = (self.path(stage), Record { seconds: took.as_secs_f64(), told });
        let partial = path.with_extension("partial");
        let text = toml::to_string(&record).context("write down the stage")?;
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path));
        written.with_context(|| format!("write {}", path.display()))
    }

    /// The same text with `{output}` in the place of the output folder.
    fn as_seen_from_output(&self, text: &str) -> String {
        let folder = self.output.display().to_string();
        if folder.is_empty() {
            return text.to_owned();
        }
        // A path begins where its quotes open.
        let below = text.replace(&format!("\"{folder}/"), "\"{output}/");
        below.replace(&format!("\"{folder}\""), "\"{output}\"")
    }

    /// Forgets that a stage has finished.
    pub(super) fn forget(&self, stage: &str) -> anyhow::Result<()> {
        let path = self.path(stage);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// What a stage was told, as it is written now: a key that the release which did it did not have is one with
/// its default, and what it left to the device is what that decides. None where today's recipes could not
/// say that any more.
fn as_written_today(text: &str) -> Option<String> {
    // The stage's own table and, of a ring, what the roles are told, which begins with the run's name.
    let names = text.match_indices("\nname = ").map(|(at, _)| at + 1);
    names.chain([text.len()]).find_map(|border| {
        let (stage, roles) = text.split_at(border);
        let mut stage = toml::from_str::<Stage>(stage).ok()?;
        stage.fill_in_decided();
        let mut today = toml::to_string(&stage).ok()?;
        if !roles.is_empty() {
            today += &toml::to_string(&toml::from_str::<Recipe>(roles).ok()?).ok()?;
        }
        Some(today)
    })
}

/// The key of a line `key = value`.
fn key(line: &str) -> Option<&str> {
    line.split(" = ").next()
}

/// Where two configurations part, for people.
fn first_difference(before: &str, now: &str) -> String {
    let gone = before.lines().find(|line| !now.lines().any(|other| other == *line));
    let new = now.lines().find(|line| !before.lines().any(|other| other == *line));
    match (gone, new) {
        (Some(gone), Some(new)) if key(gone) == key(new) => format!("`{gone}`, now it is `{new}`"),
        (_, Some(new)) => format!("another value than `{new}`, which it is now"),
        (Some(gone), None) => format!("`{gone}`, which is not there now"),
        (None, None) => "another configuration".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Told {
        Told { text: text.to_owned(), batches: None }
    }

    fn ring(batches: u64) -> Told {
        Told { text: "lr = 1".to_owned(), batches: Some(batches) }
    }

    #[test]
    fn a_ring_goes_on_to_more_batches() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path()).unwrap();
        records.finish("ring", ring(10), Duration::from_secs(3)).unwrap();
        assert_eq!(records.finished("ring", &ring(10), folder.path()).unwrap(), Some(3.0));
        assert_eq!(records.finished("ring", &ring(20), folder.path()).unwrap(), None);
        let otherwise = Told { text: "lr = 2".to_owned(), ..ring(20) };
        assert_eq!(records.finished("ring", &otherwise, folder.path()).unwrap(), None, "the ring judges it");
        let error = records.finished("ring", &ring(5), folder.path()).unwrap_err().to_string();
        assert!(error.contains("has trained 10 batches"), "{error}");
    }

    #[test]
    fn a_run_that_is_moved_is_the_same_run() {
        let parent = tempfile::tempdir().unwrap();
        let told_in = |folder: &Path, model: &str| {
            let folder = folder.display();
            told(&format!("model = \"{model}\"\noutput = \"{folder}/sft\"\nroot = \"{folder}\"\n"))
        };
        let (old, new) = (parent.path().join("grpo"), parent.path().join("moved"));
        std::fs::create_dir_all(old.join("sft")).unwrap();
        let beside = format!("{}-more/base", old.display());
        let records = Records::of(&old).unwrap();
        records.finish("sft", told_in(&old, &beside), Duration::from_secs(3)).unwrap();
        assert_eq!(records.finished("sft", &told_in(&old, &beside), &old.join("sft")).unwrap(), Some(3.0));
        std::fs::rename(&old, &new).unwrap();
        let records = Records::of(&new).unwrap();
        assert_eq!(records.finished("sft", &told_in(&new, &beside), &new.join("sft")).unwrap(), Some(3.0));
        let other = format!("{}-more/base", new.display());
        let error = records.finished("sft", &told_in(&new, &other), &new.join("sft")).unwrap_err();
        assert!(error.to_string().contains("grpo-more/base"), "what lies outside counts: {error}");
    }

    /// The text of a stage that trains with this line in its execution.
    fn text_of(kind: &str, line: &str) -> String {
        let stage = format!("name = \"a\"\n[{kind}.execution]\n{line}\n");
        let mut stage: Stage = toml::from_str(&stage).unwrap();
        stage.fill_in_decided();
        toml::to_string(&stage).unwrap()
    }

    /// The default of an element type is the device's: a record that names it, as older releases wrote it,
    /// and one that leaves it open mean the same.
    #[test]
    fn a_stage_that_left_a_key_to_its_device_is_the_one_that_says_it() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path()).unwrap();
        for kind in ["sft", "reward_model", "dpo"] {
            let left_open = text_of(kind, "");
            assert!(left_open.contains("dtype = \"f32\""), "{left_open}");
            let written = left_open.replace("dtype = \"f32\"\n", "");
            records.finish("a", told(&written), Duration::from_secs(3)).unwrap();
            for now in [&left_open, &text_of(kind, "dtype = \"f32\"")] {
                assert_eq!(records.finished("a", &told(now), folder.path()).unwrap(), Some(3.0), "{kind}");
            }
            let other = told(&text_of(kind, "dtype = \"bf16\""));
            let error = records.finished("a", &other, folder.path()).unwrap_err();
            assert!(error.to_string().contains("`dtype = \"f32\"`, now it is"), "{error}");
        }
    }

    #[test]
    fn a_finished_stage_is_known_until_it_is_told_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path()).unwrap();
        let output = folder.path().join("sft");
        assert_eq!(records.finished("sft", &told("lr = 1"), &output).unwrap(), None);
        records.finish("sft", told("lr = 1"), Duration::from_secs(3)).unwrap();
        assert_eq!(records.finished("sft", &told("lr = 1"), &output).unwrap(), None, "its output is gone");
        std::fs::create_dir(&output).unwrap();
        assert_eq!(records.finished("sft", &told("lr = 1"), &output).unwrap(), Some(3.0));
        let error = records.finished("sft", &told("lr = 2"), &output).unwrap_err().to_string();
        assert!(
            error.contains("`lr = 1`, now it is `lr = 2`") && error.contains("--redo-from sft"),
            "{error}"
        );
        let error = records.finished("sft", &told("lr = 1\nwarmup = 3"), &output).unwrap_err().to_string();
        assert!(error.contains("another value than `warmup = 3`, which it is now"), "{error}");
        let error = records.finished("sft", &told(""), &output).unwrap_err().to_string();
        assert!(error.contains("`lr = 1`, which is not there now"), "{error}");
        records.forget("sft").unwrap();
        assert_eq!(records.finished("sft", &told("lr = 2"), &output).unwrap(), None);
    }
}
