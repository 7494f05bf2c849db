//! What grading a response ends in.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The outcome of a grading. The words are those of competitive-programming judges (go-judge, ioi/isolate).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every test passed.
    Accepted,
    /// At least one test got an answer it does not accept.
    WrongAnswer,
    /// The response raised, crashed, ended too early, or broke the protocol.
    RuntimeError,
    /// More processor time than [`Limits::cpu`](crate::Limits::cpu).
    TimeLimit,
    /// More wall time than [`Limits::wall`](crate::Limits::wall), not counted what it waited for a processor:
    /// it slept, or waited for what never came.
    WallLimit,
    /// More memory than [`Limits::memory_bytes`](crate::Limits::memory_bytes).
    MemoryLimit,
    /// More output, or larger returned values, than allowed.
    OutputLimit,
    /// Larger, or more, files than allowed.
    FileLimit,
    /// A system call that no program under test needs; the guest was killed for it.
    DangerousSyscall,
    /// Cannot be judged here: the tests call nothing of the response, need a value that cannot cross, or a
    /// facility that this tier lacks. Says nothing about the response.
    Unsupported,
    /// The machine did not give it its processor time within
    /// [`Limits::overload_wall`](crate::Limits::overload_wall). Says nothing about the response.
    Overloaded,
    /// The sandbox itself failed. Says nothing about the response.
    InternalError,
}

impl Verdict {
    /// Every verdict, in declaration order.
    pub const ALL: [Self; 12] = [
        Self::Accepted,
        Self::WrongAnswer,
        Self::RuntimeError,
        Self::TimeLimit,
        Self::WallLimit,
        Self::MemoryLimit,
        Self::OutputLimit,
        Self::FileLimit,
        Self::DangerousSyscall,
        Self::Unsupported,
        Self::Overloaded,
        Self::InternalError,
    ];

    /// Whether the verdict judges the response. Where it does not, the sample has no score: it is dropped and
    /// counted.
    pub const fn judges_response(self) -> bool {
        !matches!(self, Self::Unsupported | Self::Overloaded | Self::InternalError)
    }

    /// The name in files and metrics, the same as serde's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::WrongAnswer => "wrong_answer",
            Self::RuntimeError => "runtime_error",
            Self::TimeLimit => "time_limit",
            Self::WallLimit => "wall_limit",
            Self::MemoryLimit => "memory_limit",
            Self::OutputLimit => "output_limit",
            Self::FileLimit => "file_limit",
            Self::DangerousSyscall => "dangerous_syscall",
            Self::Unsupported => "unsupported",
            Self::Overloaded => "overloaded",
            Self::InternalError => "internal_error",
        }
    }

    /// The verdict of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A graded response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grade {
    /// The outcome.
    pub verdict: Verdict,
    /// Tests that passed.
    pub passed: u32,
    /// Tests there are; at least 1.
    pub total: u32,
    /// Why, in one line of printable ASCII; empty where accepted. It may quote the response and the hidden
    /// tests: it is for the operator, never for the policy.
    pub detail: String,
    /// Wall time of the grading without queueing.
    pub wall: Duration,
    /// The part of `wall` in which it waited for a processor; zero where it was over before anybody looked.
    pub stalled: Duration,
    /// Processor time of the response, as far as it is known.
    pub cpu: Duration,
}

impl Grade {
    /// Passed tests over all tests, 0 to 1.
    pub fn ratio(&self) -> f64 {
        f64::from(self.passed) / f64::from(self.total.max(1))
    }
}

/// Text of a guest as it may appear in logs and terminals: one line of printable ASCII, everything else
/// escaped, cut to 500 characters.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 500;
    let mut clean = String::new();
    for character in text.trim().chars() {
        if clean.len() >= LONGEST {
            clean.push_str("...");
            break;
        }
        match character {
            ' '..='~' => clean.push(character),
            other => clean.extend(other.escape_default()),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_serde_and_lead_back() {
        for verdict in Verdict::ALL {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.name());
            assert_eq!(Verdict::named(verdict.name()), Some(verdict));
        }
        assert_eq!(Verdict::named("ok"), None);
    }

    #[test]
    fn only_those_that_are_not_the_responses_fault_judge_nothing() {
        let silent: Vec<_> = Verdict::ALL.into_iter().filter(|verdict| !verdict.judges_response()).collect();
        assert_eq!(silent, [Verdict::Unsupported, Verdict::Overloaded, Verdict::InternalError]);
    }

    #[test]
    fn printable_escapes_what_a_terminal_would_obey() {
        assert_eq!(
            printable("\u{1b}[2J\0 caf\u{e9}\n\u{202e}x "),
            "\\u{1b}[2J\\u{0} caf\\u{e9}\\n\\u{202e}x"
        );
        assert_eq!(printable(&"y".repeat(2000)).len(), 503);
    }
}
