//! Which of a run's coordinators a stream belongs to (`docs/decisions.md`, D13).
//!
//! A coordinator counts its starts over a journal; the count travels in the metadata of every stream, in both
//! directions. A member remembers the highest one it has seen and says so when it opens a stream. So a
//! coordinator that was stopped, or cut off, and wakes when another one has taken its place is believed by
//! nobody: it refuses whom that one served, and who meets it all the same leaves again.

use std::fmt;

use tonic::metadata::{MetadataMap, MetadataValue};

/// The key of the metadata.
const KEY: &str = "sluice-coordinator-term";

/// A coordinator of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorTerm {
    /// The run.
    pub run: String,
    /// Starts of a coordinator over its journal, this one included.
    pub term: u64,
}

impl CoordinatorTerm {
    /// The one that a stream's metadata names.
    pub fn read(metadata: &MetadataMap) -> Option<Self> {
        let (term, run) = metadata.get(KEY)?.to_str().ok()?.split_once(' ')?;
        Some(Self { run: run.to_owned(), term: term.parse().ok()? })
    }

    /// Names it in a stream's metadata.
    pub fn write(&self, metadata: &mut MetadataMap) {
        // Names of runs are words of ASCII.
        if let Ok(value) = MetadataValue::try_from(format!("{} {}", self.term, self.run)) {
            metadata.insert(KEY, value);
        }
    }

    /// Whether `other` is a later coordinator of the same run.
    pub fn is_before(&self, other: &Self) -> bool {
        self.run == other.run && self.term < other.term
    }
}

impl fmt::Display for CoordinatorTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "coordinator {} of run {}", self.term, self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(run: &str, term: u64) -> CoordinatorTerm {
        CoordinatorTerm { run: run.to_owned(), term }
    }

    #[test]
    fn it_reads_back_as_it_was_written() {
        let mut metadata = MetadataMap::new();
        assert_eq!(CoordinatorTerm::read(&metadata), None);
        of("run-1", 7).write(&mut metadata);
        assert_eq!(CoordinatorTerm::read(&metadata), Some(of("run-1", 7)));
        metadata.insert(KEY, MetadataValue::from_static("seven run-1"));
        assert_eq!(CoordinatorTerm::read(&metadata), None);
    }

    #[test]
    fn only_coordinators_of_one_run_follow_each_other() {
        assert!(of("a", 1).is_before(&of("a", 2)));
        assert!(!of("a", 2).is_before(&of("a", 2)) && !of("a", 3).is_before(&of("a", 2)));
        assert!(!of("a", 1).is_before(&of("b", 2)), "another run counts its own");
    }
}
