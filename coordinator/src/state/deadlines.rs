//! Moments at which something has to be looked at again.
//!
//! A moment that moves is not moved here: its owner says at the old one that it is later, and it is put in
//! again. So a sign of life costs nothing, however many members there are.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

use types::Timestamp;

/// At most one moment for each key.
#[derive(Debug, Clone)]
pub(super) struct Deadlines<K> {
    heap: BinaryHeap<Reverse<(Timestamp, K)>>,
    /// The moment that counts; others of the heap are void.
    current: HashMap<K, Timestamp>,
}

impl<K: Ord> Default for Deadlines<K> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), current: HashMap::new() }
    }
}

impl<K: Ord + Hash + Clone> Deadlines<K> {
    /// Looks at `key` at this moment, instead of any that was set for it before.
    pub(super) fn set(&mut self, key: &K, at: Timestamp) {
        if self.current.insert(key.clone(), at) != Some(at) {
            self.heap.push(Reverse((at, key.clone())));
        }
    }

    /// Looks at `key` at this moment, unless a moment is set for it.
    pub(super) fn set_once(&mut self, key: &K, at: Timestamp) {
        if !self.current.contains_key(key) {
            self.set(key, at);
        }
    }

    /// Does not look at `key` any more.
    pub(super) fn remove(&mut self, key: &K) {
        self.current.remove(key);
    }

    /// The next key whose moment has come; it has none any more.
    pub(super) fn pop_due(&mut self, now: Timestamp) -> Option<K> {
        while self.heap.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Reverse((at, key)) = self.heap.pop()?;
            if self.current.get(&key) == Some(&at) {
                self.current.remove(&key);
                return Some(key);
            }
        }
        None
    }

    /// The next moment; it may be void by now, and then nothing happens at it.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_moment_of_a_key_counts() {
        let mut deadlines = Deadlines::default();
        deadlines.set(&"a", Timestamp(5));
        deadlines.set(&"b", Timestamp(6));
        deadlines.set(&"a", Timestamp(9));
        deadlines.set_once(&"b", Timestamp(3));
        assert_eq!(deadlines.pop_due(Timestamp(4)), None);
        assert_eq!(deadlines.pop_due(Timestamp(8)), Some("b"));
        assert_eq!(deadlines.pop_due(Timestamp(8)), None);
        assert_eq!(deadlines.next(), Some(Timestamp(9)));
        deadlines.remove(&"a");
        assert_eq!(deadlines.pop_due(Timestamp(20)), None);
        assert_eq!(deadlines.next(), None);
    }
}
