//! The files of steps and of evaluations: a JSON line for each, for people and plots.
//!
//! The journal is the truth. A coordinator that was killed between the two has the step in its journal only,
//! or wrote half a line; the next one mends the file when it opens it. So does this one after a full disk.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::state::{EvaluationRecord, StepRecord};

/// The file, open at its end.
#[derive(Debug)]
pub(crate) struct StepsFile {
    path: PathBuf,
    file: File,
    /// There was no room for a line.
    lacks_lines: bool,
}

/// What of a line says where the file stands.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "version")]
    batch: u64,
}

/// What lines are written of; their numbers grow.
pub(crate) trait Numbered: Serialize {
    /// The number that its line is found by.
    fn number(&self) -> u64;
}

impl Numbered for StepRecord {
    fn number(&self) -> u64 {
        self.batch.0
    }
}

impl Numbered for EvaluationRecord {
    fn number(&self) -> u64 {
        self.version.0
    }
}

impl StepsFile {
    /// Opens or begins the file, cuts off half a last line, and adds those of `steps` that come after its
    /// last line.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn open<'a, T: Numbered + 'a>(
        path: &Path,
        steps: impl Iterator<Item = &'a T>,
    ) -> anyhow::Result<Self> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("read the steps file {}", path.display()));
            }
        };
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let last = text[..whole].trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let last = serde_json::from_slice(last).ok().map(|line: Line| line.batch);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("open the steps file {}", path.display()))?;
        let mut this = Self { path: path.to_owned(), file, lacks_lines: false };
        if whole < text.len() {
            let cut = this.file.set_len(whole as u64);
            cut.with_context(|| format!("cut half a line off the steps file {}", path.display()))?;
        }
        for step in steps.filter(|step| last.is_none_or(|last| step.number() > last)) {
            this.append(step)?;
        }
        Ok(this)
    }

    /// Adds the last one of `steps`, and those before it for which there was no room.
    ///
    /// # Errors
    /// When they cannot be written, for another reason than that the disk is full.
    pub(crate) fn add_last<'a, T: Numbered + 'a>(
        &mut self,
        mut steps: impl DoubleEndedIterator<Item = &'a T> + Clone,
    ) -> anyhow::Result<()> {
        let added = if self.lacks_lines {
            Self::open(&self.path, steps).map(|mended| *self = mended)
        } else {
            steps.next_back().map_or(Ok(()), |step| self.append(step))
        };
        match added {
            Err(error) if service::is_disk_full(error.as_ref()) => {
                let free_bytes = service::free_bytes(&self.path).unwrap_or(0);
                tracing::warn!(path = %self.path.display(), free_bytes, "no room for a line of the steps file");
                self.lacks_lines = true;
                Ok(())
            }
            other => other,
        }
    }

    fn append(&mut self, step: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(step)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("write the steps file {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::link::learner::StepMetrics;
    use types::{BatchId, Timestamp};

    use super::*;
    use crate::state::{FiltrationFigures, Refill, Reliability};

    fn step(batch: u64) -> StepRecord {
        StepRecord {
            batch: BatchId(batch),
            time: Timestamp(0),
            prompts: 1,
            responses: 1,
            groups: 1,
            groups_without_signal: 0,
            without_signal: 0.0,
            score_mean: 0.0,
            score_deviation: 0.0,
            scorers: BTreeMap::new(),
            contributions: BTreeMap::new(),
            detectors: BTreeMap::new(),
            eval_version: None,
            eval_score_mean: None,
            eval_outcome_mean: None,
            eval_truncated: None,
            eval_response_tokens: None,
            changes: Vec::new(),
            outcome_mean: None,
            response_tokens_mean: 1.0,
            truncated: 0.0,
            turns_mean: 1.0,
            several_turns: 0.0,
            sets: BTreeMap::new(),
            reliability: Reliability::default(),
            filtration: FiltrationFigures::default(),
            refill: Refill::default(),
            metrics: StepMetrics::default(),
        }
    }

    fn batches(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap().batch).collect()
    }

    #[test]
    fn lines_for_which_there_was_no_room_are_made_up_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        let steps: Vec<StepRecord> = (1..=3).map(step).collect();
        let mut file = StepsFile::open(&path, steps[..0].iter()).unwrap();
        file.add_last(steps[..1].iter()).unwrap();
        let room = std::mem::replace(&mut file.file, File::create("/dev/full").unwrap());
        file.add_last(steps[..2].iter()).unwrap();
        assert!(file.lacks_lines);
        drop(room);
        file.add_last(steps.iter()).unwrap();
        assert_eq!(batches(&path), [1, 2, 3]);
        assert!(!file.lacks_lines);
    }

    #[test]
    fn lines_that_a_killed_coordinator_did_not_write_are_added() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("of-a-run/steps.jsonl");
        let steps: Vec<StepRecord> = (1..=3).map(step).collect();
        let mut file = StepsFile::open(&path, steps[..0].iter()).unwrap();
        file.append(&steps[0]).unwrap();
        let half = &serde_json::to_vec(&steps[1]).unwrap()[..40];
        file.file.write_all(half).unwrap();
        drop(file);

        let mut file = StepsFile::open(&path, steps.iter()).unwrap();
        file.append(&step(4)).unwrap();
        assert_eq!(batches(&path), [1, 2, 3, 4]);
        drop(StepsFile::open(&path, steps.iter()).unwrap());
        assert_eq!(batches(&path), [1, 2, 3, 4], "nothing is written twice");
    }
}
