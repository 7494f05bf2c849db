//! What can go wrong with a journal.

use std::path::PathBuf;

/// Layout of the journal: the head names the snapshot's file.
pub(super) const FORMAT: u32 = 6;
/// The one before, which is read as well: the head is the snapshot. Others are refused.
pub(super) const FORMAT_BEFORE: u32 = 5;

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be opened as a journal.
    #[error("cannot open the journal {path}: {problem}")]
    Open {
        /// Its folder.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// Another process has it open.
    #[error("cannot open the journal {path}: another coordinator is using it; stop that one first")]
    Locked {
        /// Its folder.
        path: PathBuf,
    },
    /// What it holds cannot be understood.
    #[error("the journal {path} is damaged: {problem}; restore it, or start a new run in another folder")]
    Damaged {
        /// Its folder.
        path: PathBuf,
        /// Where.
        problem: String,
    },
    /// Another release wrote it.
    #[error(
        "the journal {path} has format {format}, this release reads formats {FORMAT_BEFORE} and {FORMAT}: finish the run with the release \
         that began it, or start a new one in another folder (its checkpoints can be the new run's model)"
    )]
    OtherFormat {
        /// Its folder.
        path: PathBuf,
        /// Its layout.
        format: u32,
    },
    /// It belongs to a run with another plan.
    #[error(
        "the journal {path} was begun under another plan: {}; restore the old values, or start a new run",
        conflicts.join("; ")
    )]
    OtherPlan {
        /// Its folder.
        path: PathBuf,
        /// What differs.
        conflicts: Vec<String>,
    },
    /// A fact or a snapshot would not be read back. Nothing of it is written.
    #[error("the journal {path} does not take what would not be read back: {problem}")]
    Unreadable {
        /// Its folder.
        path: PathBuf,
        /// Which one, and why.
        problem: String,
    },
    /// Its disk has no room. Nothing of what was to be written counts; the same can be committed again.
    #[error(
        "the disk of the journal {path} has no room: {problem}; nothing acknowledged is lost: make room, and the run goes \
         on where it was"
    )]
    NoRoom {
        /// Its folder.
        path: PathBuf,
        /// What the store says.
        problem: String,
    },
    /// It cannot be written.
    #[error(
        "cannot write to the journal {path}: {problem}; nothing acknowledged is lost: make room and start again, and \
         the run goes on where it was"
    )]
    Write {
        /// Its folder.
        path: PathBuf,
        /// What the store says.
        problem: String,
    },
}
