//! Identities. Each is a newtype, so that a version is never taken for a batch number.
//!
//! The identity of a response is (run, epoch, prompt ordinal, sibling, attempt). The run is agreed once per
//! stream, the rest is a [`RolloutId`]. An id is issued once, and every issued id has exactly one ending.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Longest name of a run or member, in bytes.
const MAX_NAME_BYTES: usize = 64;

fn checked_name(kind: &str, name: String) -> Result<String, Invalid> {
    let is_legal = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !is_legal {
        let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
        return Err(Invalid::new(
            format!("{kind} {shown:?}"),
            format!("must be 1 to {MAX_NAME_BYTES} ASCII letters, digits, dots, underscores or hyphens"),
        ));
    }
    Ok(name)
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(name: String) -> Result<Self, Invalid> {
                checked_name($kind, name).map(Self)
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(name: &str) -> Result<Self, Invalid> {
                Self::try_from(name.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A run: one training from its recipe to its last checkpoint, across restarts.
    RunId,
    "run"
);
name_type!(
    /// A process of a run that the coordinator knows by name: an actor, a reward server or the learner.
    MemberId,
    "member"
);

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number_type!(
    /// The number of updates that made the policy; 0 is the policy the run started from.
    PolicyVersion,
    "v"
);
number_type!(
    /// A batch, counted from 1 in the order of training. Training batch `k` makes policy version `k`.
    BatchId,
    "b"
);
number_type!(
    /// A lease of prompts to one actor.
    LeaseId,
    "l"
);
number_type!(
    /// A weight broadcast group: one explicit list of members. Every list gets a number of its own.
    BroadcastGroupId,
    "g"
);
number_type!(
    /// The learner's processes of a run in the order in which they were admitted.
    LearnerTerm,
    "t"
);
number_type!(
    /// One life of a member's process. A member that restarts comes back under its name with a new
    /// incarnation.
    Incarnation,
    "i"
);

/// One prompt of one pass over the data; the group of its rollouts has the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PromptId {
    /// The pass over the data, from 0.
    pub epoch: u32,
    /// The position in that pass's order, from 0.
    pub ordinal: u64,
}

/// Ordinals from here on are of held-out prompts: no data set has as many lines.
const HELD_OUT_FROM: u64 = 1 << 40;

impl PromptId {
    /// The prompt at a place of the held-out data set, as an evaluation asks it.
    pub fn held_out(evaluation: u32, place: u64) -> Self {
        Self { epoch: evaluation, ordinal: HELD_OUT_FROM + place }
    }

    /// Its place in the held-out data set, where it is of that.
    pub fn held_out_place(self) -> Option<u64> {
        self.ordinal.checked_sub(HELD_OUT_FROM)
    }
}

impl fmt::Display for PromptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}-p{}", self.epoch, self.ordinal)
    }
}

/// One attempt at one response to one prompt. Together with the run this names a response for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RolloutId {
    /// The prompt, which is also the group.
    pub prompt: PromptId,
    /// The place in the group, from 0.
    pub sibling: u16,
    /// How often this place was issued before: 0 for the first attempt.
    pub attempt: u16,
}

impl RolloutId {
    /// The seed of this response's sampling. It does not depend on the attempt: a repeated attempt under the
    /// same weights and in the same batch composition draws the same tokens (`docs/decisions.md`, D7).
    pub fn seed(&self, run_seed: u64) -> u64 {
        [u64::from(self.prompt.epoch), self.prompt.ordinal, u64::from(self.sibling)]
            .into_iter()
            .fold(mix(run_seed), |state, word| mix(state ^ mix(word)))
    }

    /// The seed of a turn of an episode, counted from 0: its tokens are drawn from a stream of their own,
    /// that depends neither on the attempt nor on when the environment answered. The first turn has that of a
    /// response of one turn.
    pub fn turn_seed(&self, run_seed: u64, turn: u32) -> u64 {
        let first = self.seed(run_seed);
        if turn == 0 { first } else { mix(first ^ mix(u64::from(turn))) }
    }
}

/// One round of splitmix64 (Steele, Lea, Flood 2014): a bijection that spreads nearby inputs.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-s{}-a{}", self.prompt, self.sibling, self.attempt)
    }
}

impl PromptId {
    fn parse(text: &str) -> Option<Self> {
        let [epoch, ordinal] = numbers(text, ['e', 'p'])?;
        Some(Self { epoch: u32::try_from(epoch).ok()?, ordinal })
    }
}

impl RolloutId {
    fn parse(text: &str) -> Option<Self> {
        let [epoch, ordinal, sibling, attempt] = numbers(text, ['e', 'p', 's', 'a'])?;
        Some(Self {
            prompt: PromptId { epoch: u32::try_from(epoch).ok()?, ordinal },
            sibling: u16::try_from(sibling).ok()?,
            attempt: u16::try_from(attempt).ok()?,
        })
    }
}

impl FromStr for PromptId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text).ok_or_else(|| not_an_id("prompt id", text, "e0-p17"))
    }
}

impl FromStr for RolloutId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text).ok_or_else(|| not_an_id("rollout id", text, "e0-p17-s3-a0"))
    }
}

/// The numbers of `<prefix><number>-<prefix><number>...`.
fn numbers<const N: usize>(text: &str, prefixes: [char; N]) -> Option<[u64; N]> {
    let mut parts = text.split('-');
    let mut numbers = [0; N];
    for (number, prefix) in numbers.iter_mut().zip(prefixes) {
        *number = parts.next()?.strip_prefix(prefix)?.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn not_an_id(kind: &str, text: &str, example: &str) -> Invalid {
    let shown: String = text.chars().take(MAX_NAME_BYTES).collect();
    Invalid::new(format!("{kind} {shown:?}"), format!("must look like {example}"))
}

/// Ids are text in JSON, so that they can be keys of a map.
macro_rules! text_in_serde {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

text_in_serde!(PromptId);
text_in_serde!(RolloutId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(epoch: u32, ordinal: u64, sibling: u16, attempt: u16) -> RolloutId {
        RolloutId { prompt: PromptId { epoch, ordinal }, sibling, attempt }
    }

    #[test]
    fn a_seed_depends_on_everything_but_the_attempt() {
        let first = id(0, 17, 3, 0);
        assert_eq!(first.seed(7), id(0, 17, 3, 1).seed(7));
        let others = [id(1, 17, 3, 0), id(0, 18, 3, 0), id(0, 17, 4, 0), id(17, 0, 3, 0)];
        for other in others {
            assert_ne!(first.seed(7), other.seed(7), "{other}");
        }
        assert_ne!(first.seed(7), first.seed(8));
        assert_eq!(first.turn_seed(7, 0), first.seed(7));
        let turns: std::collections::BTreeSet<u64> = (0..99).map(|turn| first.turn_seed(7, turn)).collect();
        assert_eq!(turns.len(), 99, "each turn has a stream of its own");
        assert_eq!(first.turn_seed(7, 5), id(0, 17, 3, 1).turn_seed(7, 5));
    }

    #[test]
    fn names_are_short_plain_ascii() {
        assert!("actor-0.node_1".parse::<MemberId>().is_ok());
        for bad in ["", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<MemberId>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn rollout_ids_survive_text(epoch: u32, ordinal: u64, sibling: u16, attempt: u16) {
            let id = id(epoch, ordinal, sibling, attempt);
            prop_assert_eq!(id.to_string().parse::<RolloutId>().unwrap(), id);
            prop_assert_eq!(id.prompt.to_string().parse::<PromptId>().unwrap(), id.prompt);
        }

        #[test]
        fn junk_is_no_rollout_id(text in ".{0,40}") {
            if let Ok(id) = text.parse::<RolloutId>() {
                // Only leading zeros and signs may differ from the canonical form.
                prop_assert!(text.starts_with('e'), "{text} read as {id}");
            }
        }
    }
}
