//! Who may write checkpoints: the learner that the coordinator admitted last (docs/decisions.md, D13).
//!
//! A learner that was stopped, or cut off, may wake when another one has taken its place, and write over that
//! one's checkpoints. So each leaves its term in the folder when it is admitted, and looks before it writes
//! whether another has come since.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Incarnation, LearnerTerm, Timestamp};

use super::Error;
use crate::disk;

/// The file that says who writes here.
const FILE_NAME: &str = "writer.json";

/// A learner that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The how manieth it is, by the coordinator's count.
    pub term: LearnerTerm,
    /// When it was started, by its own clock.
    pub incarnation: Incarnation,
    /// When its run was begun, by the coordinator's clock: a run that begins anew in this folder counts terms
    /// from 1 again. 0 where an older release does not say.
    #[serde(default)]
    pub run_began: Timestamp,
}

impl Writer {
    /// Within a run the term alone decides: clocks of two machines may differ. Of two runs nothing is known
    /// but clocks, and only where all of them agree is the other one of the past.
    fn is_newer_than(self, other: Self) -> bool {
        if self.run_began == other.run_began {
            return self.term > other.term;
        }
        self.run_began > other.run_began && self.incarnation > other.incarnation
    }
}

/// This learner writes in `folder` from now on.
///
/// # Errors
/// [`Error::Superseded`] when a newer one does; what the system refuses.
pub(super) fn claim(folder: &Path, writer: Writer) -> Result<(), Error> {
    match read(folder) {
        Some(known) if known == writer => return Ok(()),
        Some(known) if known.is_newer_than(writer) => return Err(superseded(folder, writer, known)),
        _ => {}
    }
    disk::create_folder(folder)?;
    let text = serde_json::to_vec(&writer).expect("some numbers are JSON");
    Ok(disk::replace(folder, FILE_NAME, &text)?)
}

/// Checks that this learner still is the one that writes in `folder`.
///
/// # Errors
/// [`Error::Superseded`] when another one has been admitted since.
pub(super) fn check(folder: &Path, writer: Writer) -> Result<(), Error> {
    match read(folder) {
        Some(known) if known != writer => Err(superseded(folder, writer, known)),
        _ => Ok(()),
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE_NAME)
}

/// Who writes here; nobody where that cannot be read.
fn read(folder: &Path) -> Option<Writer> {
    serde_json::from_slice(&std::fs::read(path(folder)).ok()?).ok()
}

fn superseded(folder: &Path, ours: Writer, theirs: Writer) -> Error {
    Error::Superseded { folder: folder.to_owned(), ours: ours.term, theirs: theirs.term }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A learner of a run that began at 50.
    fn writer(term: u64, incarnation: u64) -> Writer {
        let run_began = Timestamp(50);
        Writer { term: LearnerTerm(term), incarnation: Incarnation(incarnation), run_began }
    }

    #[test]
    fn the_learner_that_came_last_writes() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (first, second) = (writer(1, 100), writer(2, 200));
        check(folder, first).unwrap();
        claim(folder, first).unwrap();
        claim(folder, first).unwrap();
        check(folder, first).unwrap();
        claim(folder, second).unwrap();
        check(folder, second).unwrap();
        let said = check(folder, first).unwrap_err().to_string();
        assert!(said.contains("learner t1") && said.contains("learner t2"), "{said}");
        // It reads the welcome that lay in its socket while it was stopped.
        assert!(claim(folder, first).is_err());
        check(folder, second).unwrap();
    }

    #[test]
    fn a_run_that_begins_anew_in_the_folder_is_not_of_the_past() {
        let folder = tempfile::tempdir().unwrap();
        let (first, anew) = (writer(7, 100), Writer { run_began: Timestamp(150), ..writer(1, 200) });
        claim(folder.path(), first).unwrap();
        claim(folder.path(), anew).unwrap();
        check(folder.path(), anew).unwrap();
        assert!(claim(folder.path(), first).is_err(), "the run of the past is over");
        // The coordinator has moved to a machine whose clock is behind.
        let behind = Writer { run_began: Timestamp(120), ..writer(1, 300) };
        claim(folder.path(), behind).unwrap();
    }

    #[test]
    fn a_learner_whose_clock_is_behind_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (writer(1, 200), writer(2, 100));
        claim(folder.path(), first).unwrap();
        claim(folder.path(), second).unwrap();
        let said = claim(folder.path(), first).unwrap_err().to_string();
        assert!(said.contains("learner t1") && said.contains("learner t2"), "{said}");
        check(folder.path(), second).unwrap();
    }

    #[test]
    fn what_an_older_release_has_left_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), r#"{"term":3,"incarnation":100}"#).unwrap();
        assert_eq!(read(folder.path()), Some(Writer { run_began: Timestamp(0), ..writer(3, 100) }));
        claim(folder.path(), writer(4, 90)).unwrap();
    }

    #[test]
    fn a_torn_file_is_nobodys() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), "{\"term\"").unwrap();
        check(folder.path(), writer(1, 100)).unwrap();
        claim(folder.path(), writer(1, 100)).unwrap();
        assert_eq!(read(folder.path()), Some(writer(1, 100)));
    }
}
