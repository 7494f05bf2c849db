//! How far a rank is: which operations it has launched, in a form that other ranks can compare with theirs.
//!
//! Launching an operation only notes it here, under a number. The notes travel through the store when
//! something has gone wrong, as a [`Report`].

use std::collections::VecDeque;
use std::fmt::Write;

/// How many operations a report tells of. More are never under way at once.
const REMEMBERED: usize = 64;

/// What a rank has launched. Numbers start from 1.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    launched: u64,
    recent: VecDeque<(u64, String)>,
}

impl Progress {
    /// Notes the next collective operation and returns its number.
    pub(crate) fn launch(&mut self, description: &str) -> u64 {
        self.launched += 1;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((self.launched, description.to_owned()));
        self.launched
    }

    pub(crate) fn report(&self, standing: Standing) -> Report {
        Report { standing, launched: self.launched, recent: self.recent.clone().into() }
    }
}

/// Under which tag an operation is launched, so that it meets only equal operations with the same number: the
/// number's last eight bits, so that neighbours never collide, and 24 bits of a hash of what it is.
pub(crate) fn tag(sequence: u64, description: &str) -> u32 {
    (hash(description) << 8) | (sequence & 0xff) as u32
}

/// 32-bit FNV-1a (Fowler, Noll, Vo): the ranks may be different builds, so the hash must not depend on the
/// toolchain.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Whether a rank goes on, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was part of the group until it heard of the failure.
    Member,
    /// Its group was aborted, for the reason given.
    Aborted(String),
    /// It dropped the group.
    Left,
}

/// What a rank says of itself: lines of tab-separated fields, the first of them its standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) standing: Standing,
    /// Number of the last collective operation launched, 0 for none.
    pub(crate) launched: u64,
    recent: Vec<(u64, String)>,
}

impl Report {
    /// What was launched under a number, if that is remembered.
    pub(crate) fn operation(&self, sequence: u64) -> Option<&str> {
        self.recent
            .iter()
            .find(|(number, _)| *number == sequence)
            .map(|(_, description)| description.as_str())
    }

    /// The last operation launched, with its number.
    pub(crate) fn last(&self) -> Option<String> {
        self.recent.last().map(|(number, description)| format!("{description} #{number}"))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut text = match &self.standing {
            Standing::Member => "member\t".to_owned(),
            Standing::Left => "left\t".to_owned(),
            Standing::Aborted(reason) => format!("aborted\t{}", reason.replace(['\n', '\t'], " ")),
        };
        for (number, description) in &self.recent {
            write!(text, "\n{number}\t{description}").expect("writing to a string");
        }
        text.into_bytes()
    }

    /// `None` for anything that [`encode`](Report::encode) did not write.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.lines();
        let standing = match lines.next()?.split_once('\t')? {
            ("member", "") => Standing::Member,
            ("left", "") => Standing::Left,
            ("aborted", reason) => Standing::Aborted(reason.to_owned()),
            _ => return None,
        };
        let recent = lines
            .map(|line| {
                let (number, description) = line.split_once('\t')?;
                Some((number.parse().ok()?, description.to_owned()))
            })
            .collect::<Option<Vec<(u64, String)>>>()?;
        Some(Self { standing, launched: recent.last().map_or(0, |(number, _)| *number), recent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_store() {
        let mut progress = Progress::default();
        assert_eq!(
            Report::decode(&progress.report(Standing::Left).encode()),
            Some(progress.report(Standing::Left))
        );
        for number in 1..=100 {
            assert_eq!(progress.launch(&format!("broadcast 0 Float [{number}]")), number);
        }
        let report = progress.report(Standing::Aborted("two\tlines\nof reason".into()));
        let read = Report::decode(&report.encode()).expect("its own words");
        assert_eq!(read.standing, Standing::Aborted("two lines of reason".into()));
        assert_eq!((read.launched, read.last()), (100, Some("broadcast 0 Float [100] #100".into())));
        assert_eq!(read.operation(37), Some("broadcast 0 Float [37]"));
        assert_eq!(read.operation(36), None, "only the last 64 are remembered");
    }

    #[test]
    fn junk_is_no_report() {
        for junk in
            ["", "member", "member\tx", "stranger\t", "member\t\nx\ty", "member\t\n1", "member\t\n-1\ty"]
        {
            assert_eq!(Report::decode(junk.as_bytes()), None, "{junk:?}");
        }
        assert_eq!(Report::decode(&[0xff, 0xfe]), None);
    }

    #[test]
    fn tags_tell_operations_and_neighbours_apart() {
        assert_eq!(tag(3, "broadcast 0 Float [4]"), tag(3, "broadcast 0 Float [4]"));
        assert_ne!(tag(3, "broadcast 0 Float [4]"), tag(3, "broadcast 1 Float [4]"));
        assert_ne!(tag(3, "broadcast 0 Float [4]"), tag(3, "broadcast 0 Int [4]"));
        assert_ne!(tag(3, "broadcast 0 Float [4]"), tag(4, "broadcast 0 Float [4]"));
        // FNV-1a's published value for "a".
        assert_eq!(hash("a"), 0xe40c_292c);
    }
}
