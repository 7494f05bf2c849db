//! Which responses are part of the weights, by batch: what of the run's data is used up lies beside the
//! weights that it made, under one manifest.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use types::{Batch, BatchId, RolloutId};

use super::Error;
use crate::disk::FileError;

/// The file in a checkpoint: a line for each batch.
pub(super) const FILE_NAME: &str = "consumed.jsonl";

/// The responses that the policy was trained on, by batch. What an older release trained is not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Consumed(BTreeMap<BatchId, Vec<RolloutId>>);

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    batch: BatchId,
    responses: Vec<RolloutId>,
}

impl Consumed {
    /// A batch is part of the weights.
    pub(crate) fn add(&mut self, batch: &Batch) {
        let trains = batch.samples().iter().filter(|sample| sample.weight() > 0.0);
        let ids = trains.map(|sample| sample.scored().rollout().id()).collect();
        self.0.insert(batch.id(), ids);
    }

    /// The responses of each batch.
    pub fn batches(&self) -> impl Iterator<Item = (BatchId, &[RolloutId])> {
        self.0.iter().map(|(batch, responses)| (*batch, responses.as_slice()))
    }

    /// Writes the file and flushes it.
    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        let write = || {
            let mut file = BufWriter::new(std::fs::File::create(path)?);
            for (batch, responses) in &self.0 {
                serde_json::to_writer(&mut file, &Line { batch: *batch, responses: responses.clone() })?;
                file.write_all(b"\n")?;
            }
            file.into_inner()?.sync_all()
        };
        write().map_err(FileError::on("write", path))
    }

    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = std::fs::File::open(path).map_err(FileError::on("open", path))?;
        let mut consumed = Self::default();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(FileError::on("read", path))?;
            let Line { batch, responses } =
                serde_json::from_str(&line).map_err(|error| Error::damaged(path.to_owned(), error))?;
            consumed.0.insert(batch, responses);
        }
        Ok(consumed)
    }
}
