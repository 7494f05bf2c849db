//! The accounting: every issued attempt, and how it ended (`docs/decisions.md`, D4).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::Ending;

/// Counts of issued attempts and of endings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    issued: u64,
    #[serde(with = "as_pairs")]
    endings: BTreeMap<Ending, u64>,
    /// Results of attempts that had ended before; acknowledged and not used.
    late: u64,
}

impl Account {
    /// Attempts were issued.
    pub(super) fn issue(&mut self, attempts: u64) {
        self.issued += attempts;
    }

    /// Attempts have ended.
    pub(super) fn end(&mut self, ending: Ending, attempts: u64) {
        if attempts > 0 {
            *self.endings.entry(ending).or_default() += attempts;
        }
    }

    /// A result came for an attempt that had ended before.
    pub(super) fn late(&mut self) {
        self.late += 1;
    }

    /// Attempts issued.
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// Attempts that have ended.
    pub fn ended(&self) -> u64 {
        self.endings.values().sum()
    }

    /// Endings with their counts.
    pub fn endings(&self) -> impl Iterator<Item = (Ending, u64)> {
        self.endings.iter().map(|(ending, count)| (*ending, *count))
    }

    /// How often this ending occurred.
    pub fn count(&self, ending: Ending) -> u64 {
        self.endings.get(&ending).copied().unwrap_or(0)
    }

    /// Results that came too late.
    pub(crate) fn late_results(&self) -> u64 {
        self.late
    }

    /// Attempts issued, minus endings, minus those in flight: 0 unless there is a bug.
    pub(super) fn unaccounted(&self, in_flight: u64) -> i64 {
        self.issued.wrapping_sub(self.ended()).wrapping_sub(in_flight).cast_signed()
    }
}

/// JSON maps want text keys; an ending is not one.
mod as_pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use types::Ending;

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<Ending, u64>, to: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Ending, u64>, D::Error> {
        Ok(Vec::<(Ending, u64)>::deserialize(from)?.into_iter().collect())
    }
}
