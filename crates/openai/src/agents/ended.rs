//! Episodes that are over.

use std::collections::{BTreeMap, VecDeque};

/// How many are remembered, for agents that say their end again or ask for it.
const LIMIT: usize = 4096;

/// How an episode ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ended {
    /// It is a response.
    Played(Summary),
    /// The agent has given it up.
    GivenUp,
    /// It was taken from the agent.
    Taken { why: String },
}

/// What an agent is told of an episode that is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub(super) reward: Option<f32>,
    pub(super) calls: u32,
    pub(super) sequences: usize,
    pub(super) tokens: usize,
}

/// What an agent says of an episode that is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Finished { reward: Option<f32> },
    Failed { why: String },
}

/// The last of them, by the session's name.
#[derive(Debug, Default)]
pub(super) struct EndedEpisodes {
    ended: BTreeMap<String, Ended>,
    /// Their names, the oldest first.
    order: VecDeque<String>,
}

impl EndedEpisodes {
    pub(super) fn get(&self, name: &str) -> Option<&Ended> {
        self.ended.get(name)
    }

    /// One more is over.
    pub(super) fn remember(&mut self, name: String, ended: Ended) {
        self.ended.insert(name.clone(), ended);
        self.order.push_back(name);
        if self.order.len() > LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let mut ended = EndedEpisodes::default();
        for number in 0..=LIMIT {
            ended.remember(number.to_string(), Ended::GivenUp);
        }
        assert_eq!(ended.get("0"), None);
        assert_eq!((ended.get("1"), ended.ended.len()), (Some(&Ended::GivenUp), LIMIT));
    }
}
