//! Agents with a loop of their own (`docs/decisions.md`, D24): a program leases an episode, plays it with
//! calls of OpenAI's interface, and says that it is over. What the policy drew in these calls is the episode.
//!
//! ```text
//!   agent --POST /v1/episodes--> table <--offer-- rollout loop <--leases-- coordinator
//!     |                            |
//!     +--calls--> engine --record--+
//!     |                            |
//!     +--finish------------------->+--AgentEvent--> rollout loop --rollout--> reward server
//! ```
//!
//! Tokens are never encoded again: a call whose conversation goes on from one before is computed from the
//! tokens that were drawn and given there ([`record`]). An agent that falls silent, gives up or overruns its
//! deadline has failed the attempt; nothing of that is a reward.
//!
//! Bounds: episodes open on an actor, calls, drawn tokens and sequences of each, bytes of a request, agents
//! that wait, and how many episodes that are over are remembered.

mod ended;
pub(crate) mod pages;
mod record;
pub(crate) mod recorder;
mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use types::{EpisodeEnd, FailReason, PromptContent, RolloutId, RolloutParts, Sampling};

use table::Table;

/// Episodes that agents play with loops of their own, leased at `serve.listen`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AgentsConfig {
    /// Whether every response is an episode that an agent plays. Needs `serve.enabled`, which a recipe need
    /// not say.
    pub enabled: bool,
    /// Most episodes that an actor has at a time, those included that no agent has taken yet. At least
    /// `coordinator.group_size`.
    pub episodes: usize,
    /// The responses of a prompt, which are leased together: an actor asks for so many where an agent waits,
    /// or for as many as agents wait. Follows from `coordinator.group_size` in a recipe.
    pub group_size: usize,
    /// An agent that has said nothing for so long, and has no call under way, is lost: its attempt has failed
    /// and is made again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub heartbeat_timeout: Duration,
    /// Longest time of an episode. It has nine tenths of its lease at most, so that it can be scored.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub wall: Duration,
    /// Most calls of an episode.
    pub calls: u32,
    /// Most tokens that the policy may draw in an episode.
    pub max_tokens: u32,
    /// Most sequences of an episode: calls that do not go on from one before begin another.
    pub sequences: usize,
    /// Largest body of a request, in bytes.
    pub request_bytes: usize,
    /// Whether fields of a call that say how tokens are drawn (`temperature`, `seed`, ..) are passed over
    /// where they are not as the run has them. Otherwise such a call is refused.
    pub ignore_sampling: bool,
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            episodes: 64,
            group_size: 5,
            heartbeat_timeout: Duration::from_secs(60),
            wall: Duration::from_secs(900),
            calls: 64,
            max_tokens: 16_384,
            sequences: 8,
            request_bytes: 4 << 20,
            ignore_sampling: false,
        }
    }
}

impl AgentsConfig {
    /// Everything that makes the values unusable.
    pub fn problems(&self) -> Vec<String> {
        let counts = [
            ("episodes", self.episodes as u64, 1 << 16),
            ("group_size", self.group_size as u64, self.episodes as u64),
            ("calls", u64::from(self.calls), 1 << 16),
            ("max_tokens", u64::from(self.max_tokens), types::MAX_SEQUENCE_TOKENS as u64),
            ("sequences", self.sequences as u64, 1 << 10),
            ("request_bytes", self.request_bytes as u64, 64 << 20),
        ];
        let out_of_range = counts.into_iter().filter(|(_, value, most)| !(1..=*most).contains(value));
        let mut problems: Vec<String> = out_of_range
            .map(|(name, value, most)| format!("{name} is {value}, must be 1 to {most}"))
            .collect();
        for (name, time) in [("heartbeat_timeout", self.heartbeat_timeout), ("wall", self.wall)] {
            if time.is_zero() || time > Duration::from_secs(7 * 24 * 3600) {
                problems.push(format!("{name} is {time:?}, must be above 0 and at most 7 days"));
            }
        }
        problems
    }
}

/// An attempt that waits for an agent.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The response that it is.
    pub id: RolloutId,
    /// What it begins with.
    pub prompt: PromptContent,
    /// How its tokens are drawn.
    pub sampling: Arc<Sampling>,
    /// The run's seed.
    pub run_seed: u64,
    /// The end of its lease.
    pub deadline: Instant,
}

/// What became of an episode.
#[derive(Debug)]
pub enum AgentEvent {
    /// It is over.
    Played(Box<Played>),
    /// It brought no response.
    Failed {
        /// The attempt.
        id: RolloutId,
        /// The reason as it is counted.
        reason: FailReason,
        /// What happened, for a person.
        detail: String,
        /// Tokens that were drawn.
        tokens: usize,
    },
    /// Agents wait for episodes, or wait no more.
    Waiting,
}

/// An episode that an agent has played to its end.
#[derive(Debug)]
pub struct Played {
    /// What was recorded.
    pub rollout: RolloutParts,
    /// Why there was no further call.
    pub end: EpisodeEnd,
    /// Calls that were recorded.
    pub calls: u32,
    /// Its sequences.
    pub sequences: usize,
    /// Tokens that the policy was given between its turns.
    pub given_tokens: usize,
}

/// The episodes of an actor's agents: a handle to them.
#[derive(Debug, Clone)]
pub struct Agents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    /// Something is to be told to the rollout loop.
    told: Notify,
    /// Something was offered to those who wait, or nothing will be any more.
    offered: Notify,
}

impl Agents {
    /// No episodes.
    pub fn new(config: AgentsConfig) -> Self {
        let table = Mutex::new(Table::new(config));
        Self(Arc::new(Inner { table, told: Notify::new(), offered: Notify::new() }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the table, and wakes the rollout loop where it is to be told of something.
    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.table();
        let result = change(&mut table);
        let has_events = table.has_events();
        drop(table);
        if has_events {
            self.0.told.notify_one();
        }
        result
    }

    /// Offers an attempt to agents.
    pub fn offer(&self, offer: Offer) {
        self.change(|table| table.offer(offer, Instant::now()));
        self.0.offered.notify_waiters();
    }

    /// How many more attempts are wanted: none where no agent waits for one.
    pub fn room(&self) -> usize {
        self.table().room()
    }

    /// Agents that wait for an episode, and episodes that agents play.
    pub fn counts(&self) -> (usize, usize) {
        self.table().counts()
    }

    /// An attempt is nobody's any more.
    pub fn close(&self, id: RolloutId, why: &str) {
        self.change(|table| table.close(id, why));
    }

    /// Nothing is offered any more; what is being played may end.
    pub fn leave(&self) {
        self.change(Table::leave);
        self.0.offered.notify_waiters();
    }

    /// Waits for what happens next. The future may be dropped at any time.
    pub async fn next(&self) -> AgentEvent {
        loop {
            let due = {
                let mut table = self.table();
                table.expire(Instant::now());
                if let Some(event) = table.next_event() {
                    return event;
                }
                table.next_due()
            };
            let told = self.0.told.notified();
            match due {
                None => told.await,
                // Whichever comes first: the table is looked at again.
                Some(due) => drop(tokio::time::timeout_at(due, told).await),
            }
        }
    }
}
