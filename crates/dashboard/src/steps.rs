//! The training steps of a run, as columns.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::axis::{Axis, interpolate};
use crate::columns::{Absent, Columns, flatten};
use crate::follower::{Continuity, Follower};

/// The steps of one run: those of its `steps.jsonl`, or, where it writes none, those that its process
/// remembers.
#[derive(Debug)]
pub struct Steps(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Origin,
    table: StepTable,
}

enum Origin {
    File(Follower),
    /// Yields a list of all that are remembered.
    Memory(Box<dyn Fn() -> Value + Send + Sync>),
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Memory(_) => f.write_str("Memory"),
        }
    }
}

/// The steps read so far.
#[derive(Debug, Default)]
pub(crate) struct StepTable {
    columns: Columns,
}

impl Steps {
    /// Of a file with a JSON line for each, which may grow.
    pub fn of_file(path: PathBuf) -> Self {
        Self::of(Origin::File(Follower::new(path)))
    }

    /// Of a run that keeps no file: `source` yields the list of those that are remembered.
    pub fn of_source(source: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        Self::of(Origin::Memory(Box::new(source)))
    }

    fn of(origin: Origin) -> Self {
        Self(Mutex::new(Inner { origin, table: StepTable::default() }))
    }

    /// What there is now, read up to the file's end.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&StepTable) -> T) -> T {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { origin, table } = &mut *inner;
        match origin {
            Origin::Memory(source) => {
                *table = StepTable::default();
                source().as_array().into_iter().flatten().for_each(|step| table.push(step));
            }
            Origin::File(file) => table.read(file),
        }
        look(table)
    }
}

impl StepTable {
    /// Reads the steps that a file has got since it was read last.
    fn read(&mut self, file: &mut Follower) {
        let read = file.read(|continuity, line| {
            if continuity == Continuity::BeganAnew {
                *self = Self::default();
            }
            // A line that is no JSON is not ours to judge: the coordinator mends its file.
            if let Ok(step) = serde_json::from_slice(line) {
                self.push(&step);
            }
        });
        if let Err(error) = read {
            tracing::warn!(file = %file.path().display(), %error, "the steps cannot be read");
        }
    }

    /// A step; one that was trained again takes the place of the one before, and of what followed that.
    fn push(&mut self, step: &Value) {
        let row = flatten(step);
        let Some(batch) = row.iter().find(|(name, _)| name == "batch").map(|(_, batch)| *batch) else {
            return;
        };
        let batches = self.columns.get("batch").unwrap_or_default();
        let earlier = batches.partition_point(|known| *known < batch);
        self.columns.truncate(earlier);
        self.columns.push(row, Absent::Unknown);
    }

    /// Number of steps.
    pub(crate) fn count(&self) -> usize {
        self.columns.rows()
    }

    /// The last batch.
    pub(crate) fn last_batch(&self) -> Option<f64> {
        self.columns.get("batch").and_then(|batches| batches.last().copied())
    }

    /// A column by its path.
    pub(crate) fn get(&self, path: &str) -> Option<&[f64]> {
        self.columns.get(path)
    }

    /// The paths of what was measured.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.columns.names().filter(|name| !matches!(*name, "batch" | "time"))
    }

    /// When each step was trained, in seconds since 1970.
    pub(crate) fn times(&self) -> Vec<f64> {
        self.get("time").unwrap_or_default().iter().map(|milliseconds| milliseconds / 1e3).collect()
    }

    /// The x of each step.
    pub(crate) fn axis(&self, axis: Axis, began: f64) -> Vec<f64> {
        match axis {
            Axis::Batch => self.get("batch").unwrap_or_default().to_vec(),
            Axis::Time => self.times(),
            Axis::Hours => self.times().iter().map(|time| (time - began) / 3600.0).collect(),
            Axis::Tokens => {
                let tokens = self.get("metrics.tokens").unwrap_or_default();
                let mut sum = 0.0;
                let mut sums = Vec::with_capacity(tokens.len());
                for tokens in tokens {
                    sum += if tokens.is_finite() { *tokens } else { 0.0 };
                    sums.push(sum);
                }
                sums
            }
        }
    }

    /// The x of moments that are no steps: as far as training had come then.
    pub(crate) fn axis_at(&self, axis: Axis, began: f64, times: &[f64]) -> Vec<f64> {
        match axis {
            Axis::Time => times.to_vec(),
            Axis::Hours => times.iter().map(|time| (time - began) / 3600.0).collect(),
            Axis::Batch | Axis::Tokens => {
                let (known, xs) = (self.times(), self.axis(axis, began));
                times.iter().map(|time| interpolate(&known, &xs, *time)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_that_was_trained_again_counts_once() {
        let of = |(batch, score)| json!({"batch": batch, "time": batch * 1000, "score_mean": score});
        let steps = Steps::of_source(move || [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)].map(of).into());
        steps.with(|table| {
            assert_eq!(table.get("batch"), Some([1.0, 2.0].as_slice()));
            assert_eq!(table.get("score_mean"), Some([0.1, 0.25].as_slice()));
            assert_eq!(table.paths().collect::<Vec<_>>(), ["score_mean"]);
            assert_eq!(table.last_batch(), Some(2.0));
        });
    }

    #[test]
    fn every_axis_counts_what_it_says() {
        let of = |batch| json!({"batch": batch, "time": 3_600_000 * batch, "metrics": {"tokens": 10}});
        let steps = Steps::of_source(move || [1, 2, 3].map(of).into());
        steps.with(|table| {
            assert_eq!(table.axis(Axis::Batch, 3600.0), [1.0, 2.0, 3.0]);
            assert_eq!(table.axis(Axis::Hours, 3600.0), [0.0, 1.0, 2.0]);
            assert_eq!(table.axis(Axis::Tokens, 3600.0), [10.0, 20.0, 30.0]);
            assert_eq!(table.axis_at(Axis::Batch, 3600.0, &[5400.0]), [1.5]);
        });
    }

    #[test]
    fn lines_that_are_no_steps_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        std::fs::write(&path, "{\"batch\":1,\"score_mean\":0.5}\nnot json\n[]\n{\"batch\":2}\n").unwrap();
        assert_eq!(Steps::of_file(path).with(StepTable::count), 2);
    }
}
