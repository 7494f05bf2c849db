//! What a rank is told, and the bytes by which rank 0 passes it on to the others.

use serde::{Deserialize, Serialize};
use types::{Batch, BatchId, RunId, Sampling};

use crate::checkpoint::Writer;

/// What a rank is to do.
#[derive(Debug)]
pub(crate) enum RankCommand {
    /// Learn about the run.
    Begin(RunTerms),
    /// Train a batch.
    Train(Batch),
    /// Write a checkpoint, unless the newest one holds everything.
    Checkpoint,
    /// Keep the checkpoint of the batches up to this one, whatever comes after.
    KeepBest(BatchId),
    /// Leave.
    Finish,
}

/// What a rank has to know about the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunTerms {
    /// The run, which its checkpoints name.
    pub(crate) run: RunId,
    /// How the actors draw tokens.
    pub(crate) sampling: Sampling,
    /// When it ends.
    pub(crate) last_batch: BatchId,
    /// Which of its learners this is.
    pub(crate) writer: Writer,
}

/// Bytes that no rank 0 sends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The tag at the beginning is missing or of another version of this program.
    #[error("a command of rank 0 begins with the unknown tag {0:?}")]
    Tag(Option<u8>),
    /// The run's terms are not readable.
    #[error("the run's terms of rank 0: {0}")]
    Terms(#[from] serde_json::Error),
    /// The batch is not readable.
    #[error("a batch of rank 0: {0}")]
    Batch(#[from] proto::ProtocolError),
}

const IDLE_TAG: u8 = 0;
const BEGIN_TAG: u8 = 1;
const TRAIN_TAG: u8 = 2;
const CHECKPOINT_TAG: u8 = 3;
const FINISH_TAG: u8 = 4;
const KEEP_BEST_TAG: u8 = 5;

/// A command, or that there is none, as bytes: a tag and what it carries.
///
/// # Errors
/// When the run's terms cannot be written as JSON.
pub(crate) fn encode(command: Option<&RankCommand>) -> Result<Vec<u8>, serde_json::Error> {
    let (tag, content) = match command {
        None => (IDLE_TAG, Vec::new()),
        Some(RankCommand::Begin(terms)) => (BEGIN_TAG, serde_json::to_vec(terms)?),
        Some(RankCommand::Train(batch)) => (TRAIN_TAG, proto::batch_to_bytes(batch.clone())),
        Some(RankCommand::Checkpoint) => (CHECKPOINT_TAG, Vec::new()),
        Some(RankCommand::KeepBest(batch)) => (KEEP_BEST_TAG, serde_json::to_vec(batch)?),
        Some(RankCommand::Finish) => (FINISH_TAG, Vec::new()),
    };
    let mut bytes = vec![tag];
    bytes.extend(content);
    Ok(bytes)
}

/// The command in these bytes; `None` when they say that there is none.
///
/// # Errors
/// [`DecodeError`], when ranks run different programs.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<RankCommand>, DecodeError> {
    let (tag, content) = bytes.split_first().ok_or(DecodeError::Tag(None))?;
    Ok(Some(match *tag {
        IDLE_TAG => return Ok(None),
        BEGIN_TAG => RankCommand::Begin(serde_json::from_slice(content)?),
        TRAIN_TAG => RankCommand::Train(proto::batch_from_bytes(content)?),
        CHECKPOINT_TAG => RankCommand::Checkpoint,
        KEEP_BEST_TAG => RankCommand::KeepBest(serde_json::from_slice(content)?),
        FINISH_TAG => RankCommand::Finish,
        other => return Err(DecodeError::Tag(Some(other))),
    }))
}

#[cfg(test)]
mod tests {
    use types::SamplingParams;

    use super::*;

    #[test]
    fn commands_survive_being_passed_on() {
        assert!(decode(&encode(None).unwrap()).unwrap().is_none());
        let terms = RunTerms {
            run: "r".parse().unwrap(),
            sampling: SamplingParams { temperature: 0.7, ..SamplingParams::default() }.try_into().unwrap(),
            last_batch: BatchId(9),
            writer: Writer {
                term: types::LearnerTerm(3),
                incarnation: types::Incarnation(7),
                run_began: types::Timestamp(5),
            },
        };
        let bytes = encode(Some(&RankCommand::Begin(terms.clone()))).unwrap();
        let Some(RankCommand::Begin(found)) = decode(&bytes).unwrap() else {
            panic!("another command came out");
        };
        assert_eq!(found, terms);
        let bytes = encode(Some(&RankCommand::KeepBest(BatchId(40)))).unwrap();
        assert!(matches!(decode(&bytes), Ok(Some(RankCommand::KeepBest(BatchId(40))))));
        let bytes = encode(Some(&RankCommand::Finish)).unwrap();
        assert!(matches!(decode(&bytes), Ok(Some(RankCommand::Finish))));
        assert!(decode(&[]).is_err());
        assert!(decode(&[77]).is_err());
        assert!(decode(&[TRAIN_TAG, 1, 2, 3]).is_err());
    }
}
