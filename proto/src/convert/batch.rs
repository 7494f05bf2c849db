//! The learner's commands, with batches cut into parts so that no message is large, and joined again.

use prost::Message;
use types::link::learner::LearnerCommand;
use types::{Batch, BatchId, BroadcastGroupId, LearnerTerm, PolicyVersion, RunId, Sample, Timestamp};

use super::learner::single_command;
use crate::error::required;
use crate::{ProtocolError, pb};

/// A part is closed when it has grown to this many bytes.
const PART_BYTES: usize = 4 << 20;

/// The messages of a command: several for a batch, one for everything else.
pub fn learner_messages(command: LearnerCommand) -> Vec<pb::LearnerCommand> {
    match single_command(command) {
        Ok(message) => vec![message],
        Err(batch) => batch_parts(batch),
    }
}

fn batch_parts(batch: Batch) -> Vec<pb::LearnerCommand> {
    let mut parts: Vec<Vec<pb::Sample>> = vec![Vec::new()];
    let mut part_bytes = 0;
    let id = batch.id();
    for sample in batch.into_samples() {
        let sample = pb::Sample::from(sample);
        let bytes = sample.encoded_len();
        if part_bytes > 0 && part_bytes + bytes > PART_BYTES {
            parts.push(Vec::new());
            part_bytes = 0;
        }
        part_bytes += bytes;
        parts.last_mut().expect("there is always a last part").push(sample);
    }
    let count = u32::try_from(parts.len()).expect("a batch fits into fewer than 2^32 parts");
    let mut messages = Vec::with_capacity(parts.len());
    for (part, samples) in (0..).zip(parts) {
        let part = pb::BatchPart { batch: id.0, part, parts: count, samples };
        messages.push(pb::LearnerCommand { command: Some(pb::learner_command::Command::BatchPart(part)) });
    }
    messages
}

/// Joins the learner's commands again: feeds on messages, yields whole commands.
#[derive(Debug, Default)]
pub struct LearnerCommands {
    /// The batch under way.
    open: Option<OpenBatch>,
}

/// A batch some of whose parts have come.
#[derive(Debug)]
struct OpenBatch {
    id: BatchId,
    /// How many parts it has.
    parts: u32,
    /// The parts that came, in order.
    came: Vec<Vec<pb::Sample>>,
}

impl LearnerCommands {
    /// Takes the next message of the stream; yields a command when it completes one.
    ///
    /// # Errors
    /// When a part comes out of turn, or a value is invalid.
    pub fn push(&mut self, message: pb::LearnerCommand) -> Result<Option<LearnerCommand>, ProtocolError> {
        use pb::learner_command::Command;
        let command = match (required("learner command", message.command)?, &self.open) {
            (Command::BatchPart(part), _) => return self.push_part(part),
            (_, Some(OpenBatch { id, .. })) => {
                return Err(ProtocolError::Unexpected(format!("a command amid the parts of batch {id}")));
            }
            (Command::Welcome(welcome), None) => LearnerCommand::Welcome {
                run: RunId::try_from(welcome.run)?,
                last_batch: BatchId(welcome.last_batch),
                sampling: required("learner_welcome.sampling", welcome.sampling)?.try_into()?,
                term: LearnerTerm(welcome.term),
                run_began: Timestamp(welcome.run_began_ms),
            },
            (Command::JoinBroadcastGroup(group), None) => {
                LearnerCommand::JoinBroadcastGroup(group.try_into()?)
            }
            (Command::Publish(publish), None) => LearnerCommand::Publish {
                group: BroadcastGroupId(publish.group),
                version: PolicyVersion(publish.version),
            },
            (Command::LeaveBroadcastGroup(group), None) => {
                LearnerCommand::LeaveBroadcastGroup(BroadcastGroupId(group))
            }
            (Command::Checkpoint(_), None) => LearnerCommand::Checkpoint,
            (Command::KeepBest(batch), None) => LearnerCommand::KeepBest(BatchId(batch)),
            (Command::Finish(_), None) => LearnerCommand::Finish,
        };
        Ok(Some(command))
    }

    fn push_part(&mut self, part: pb::BatchPart) -> Result<Option<LearnerCommand>, ProtocolError> {
        let id = BatchId(part.batch);
        let mut open =
            self.open.take().unwrap_or_else(|| OpenBatch { id, parts: part.parts, came: Vec::new() });
        let in_turn = part.part as usize == open.came.len() && part.part < part.parts;
        if id != open.id || part.parts != open.parts || !in_turn {
            let what = format!("part {} of {} of batch {id}", part.part, part.parts);
            return Err(ProtocolError::Unexpected(what));
        }
        open.came.push(part.samples);
        if open.came.len() < open.parts as usize {
            self.open = Some(open);
            return Ok(None);
        }
        let samples = open.came.into_iter().flatten().map(Sample::try_from).collect::<Result<_, _>>()?;
        Ok(Some(LearnerCommand::Batch(Batch::new(id, samples)?)))
    }
}
