//! What the run is: the part of the configuration that decisions depend on.

use std::time::Duration;

use algo::filtration::Filtration;
use serde::{Deserialize, Serialize};
use types::{RunId, Sampling};

/// The plan of a run. The journal holds the plan that it was written under.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The run's name.
    pub run: RunId,
    /// Seeds the order of prompts, the filtration's draws and every response's sampling.
    pub seed: u64,
    /// Prompts in the data set.
    pub prompts: u64,
    /// BLAKE3 of the data set's bytes, as text.
    pub data_hash: String,
    /// Responses per prompt, N.
    pub group_size: u16,
    /// Prompts per batch, B.
    pub batch_prompts: u64,
    /// Batches of the run: optimizer rounds, policy versions.
    pub batches: u64,
    /// How many versions a response may be behind when it trains, eta; 0 is synchronous and on-policy.
    pub max_staleness: u64,
    /// Most prompts in flight at a time.
    pub max_prompts_in_flight: u64,
    /// Most prompts in one lease. In deterministic mode leases have exactly this size and are never split.
    pub lease_prompts: u64,
    /// Fixed batch composition everywhere (design D7).
    pub deterministic: bool,
    /// What is not scored by then is issued anew.
    pub lease_timeout: Duration,
    /// A member silent for longer is taken for lost.
    pub heartbeat_timeout: Duration,
    /// How long a broadcast group may take to form, and a broadcast to arrive.
    pub broadcast_timeout: Duration,
    /// How long a drain waits for actors.
    pub drain_timeout: Duration,
    /// Attempts at one response before it counts as failed for good.
    pub max_attempts: u16,
    /// Smallest number of scored responses for which a group with failures is still filtered.
    pub min_group: u16,
    /// The filtration.
    pub filtration: Filtration,
    /// Whether filtered samples travel to the learner as well, with weight 0 (for whitening over all, or the critic).
    pub send_filtered: bool,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

impl Plan {
    /// How long after a failure the weight plane waits before it tries again.
    pub fn weights_retry_delay(&self) -> Duration {
        self.heartbeat_timeout / 10
    }

    /// Why this plan cannot continue a run that began under `began`: what would change the meaning of its journal.
    pub fn conflicts_with(&self, began: &Plan) -> Vec<String> {
        let changed = |name: &str, now: String, then: String| {
            (now != then).then(|| format!("{name} was {then} when the run began and is {now} now"))
        };
        [
            changed("run", self.run.to_string(), began.run.to_string()),
            changed("seed", self.seed.to_string(), began.seed.to_string()),
            changed("the data set's hash", self.data_hash.clone(), began.data_hash.clone()),
            changed("group_size", self.group_size.to_string(), began.group_size.to_string()),
            changed("batch_prompts", self.batch_prompts.to_string(), began.batch_prompts.to_string()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
