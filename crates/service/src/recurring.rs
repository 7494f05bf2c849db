//! What happens again and again is said once, then counted.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Shortest time between two sayings about one kind.
const SAYING_INTERVAL: Duration = Duration::from_secs(60);

/// Counts what happened, by kind. Kinds come from a closed set: none is ever forgotten.
#[derive(Debug)]
pub struct Recurring<K> {
    kinds: BTreeMap<K, Unsaid>,
}

#[derive(Debug)]
struct Unsaid {
    count: u64,
    said_at: Instant,
}

/// What is to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saying {
    /// It happened for the first time: everything that is known about it.
    First,
    /// So many more, within this time.
    More {
        /// How many, this one included.
        count: u64,
        /// Since it was said last.
        within: Duration,
    },
    /// Nothing, yet.
    Nothing,
}

impl<K> Default for Recurring<K> {
    fn default() -> Self {
        Self { kinds: BTreeMap::new() }
    }
}

impl<K: Ord> Recurring<K> {
    /// Something of this kind has happened.
    pub fn happened(&mut self, now: Instant, kind: K) -> Saying {
        let Some(unsaid) = self.kinds.get_mut(&kind) else {
            self.kinds.insert(kind, Unsaid { count: 0, said_at: now });
            return Saying::First;
        };
        unsaid.count += 1;
        let within = now.duration_since(unsaid.said_at);
        if within < SAYING_INTERVAL {
            return Saying::Nothing;
        }
        let count = std::mem::take(&mut unsaid.count);
        unsaid.said_at = now;
        Saying::More { count, within }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_of_a_kind_is_said_and_the_others_once_a_minute() {
        let mut recurring = Recurring::default();
        let began = Instant::now();
        let mut said = Vec::new();
        for second in 0..130 {
            for kind in ["timeout", "error"] {
                said.push(recurring.happened(began + Duration::from_secs(second), kind));
            }
        }
        said.retain(|saying| *saying != Saying::Nothing);
        let more = Saying::More { count: 60, within: SAYING_INTERVAL };
        assert_eq!(said, [Saying::First, Saying::First, more, more, more, more]);
    }
}
