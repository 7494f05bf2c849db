//! What the run is: the part of the configuration that decisions depend on.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::link::actor::ActorWelcome;
use types::link::learner::LearnerCommand;
use types::{BatchId, LearnerTerm, RunId, Sampling, Timestamp};

use super::evaluation_plan::EvaluationPlan;
use super::filtration_plan::FiltrationPlan;
use super::mixture::SetPlan;
use super::schedule::Schedule;

/// The plan of a run. The journal holds the plan that it was written under.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPlan {
    /// The run's name.
    pub run: RunId,
    /// Seeds the order of prompts, the filtration's draws and every response's sampling.
    pub seed: u64,
    /// Prompts in the data set, or in all of them.
    pub prompts: u64,
    /// Several data sets, in the order of their prompts' ordinals; none where there is one.
    #[serde(default)]
    pub sets: Vec<SetPlan>,
    /// BLAKE3 of the data set's bytes, as text.
    pub data_hash: String,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Which prompts come next.
    pub schedule: Schedule,
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
    /// Fixed batch composition everywhere (`docs/decisions.md`, D7).
    pub deterministic: bool,
    /// What is not scored within this span of its lease is issued anew.
    pub lease_timeout: Duration,
    /// A member silent for longer is lost.
    pub heartbeat_timeout: Duration,
    /// How long a broadcast group may take to form, and a broadcast to arrive.
    pub broadcast_timeout: Duration,
    /// Most actors that receive a version together; the others pull it.
    pub broadcast_members: usize,
    /// How long a drain waits for actors.
    pub drain_timeout: Duration,
    /// How long a cause that cannot go away by itself may hold before the run ends.
    pub hopeless_timeout: Duration,
    /// Groups in a row of which nothing can be trained, from which on nobody expects another.
    pub hopeless_groups: u64,
    /// How long nothing may move; a run with slow steps is given several times what they usually take.
    pub standstill_timeout: Duration,
    /// How long a batch that has enough groups waits for older ones that would be too old afterwards. A
    /// journal of before never waited.
    #[serde(default)]
    pub straggler_timeout: Duration,
    /// Attempts at one response before it counts as failed for good.
    pub max_attempts: u16,
    /// Smallest number of scored responses for which a group with failures is still filtered.
    pub min_group: u16,
    /// Which responses train.
    pub filtration: FiltrationPlan,
    /// How many batches' worth of groups may be generated in the place of groups of which nothing trains, for
    /// one batch; as many as it takes where not given.
    #[serde(default)]
    pub max_refill_batches: Option<u64>,
    /// Whether filtered samples travel to the learner as well, with weight 0 (for whitening over all, or the
    /// critic).
    pub send_filtered: bool,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// What is asked now and then and not learnt from.
    #[serde(default)]
    pub evaluation: Option<EvaluationPlan>,
    /// Responses are episodes of several turns.
    #[serde(default)]
    pub episodes: bool,
    /// What the other roles are told, by dotted key. Nothing here depends on it; what of it changes between
    /// two starts is recorded or refused.
    #[serde(default)]
    pub told: BTreeMap<String, String>,
}

/// A member belongs to another run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("belongs to run {theirs}, this is run {ours}; point it at its own coordinator")]
pub(super) struct OtherRun {
    theirs: RunId,
    ours: RunId,
}

impl RunPlan {
    /// The number of the run's last batch.
    pub fn last_batch(&self) -> BatchId {
        BatchId(self.batches)
    }

    /// The data set that a prompt is of, where there are several.
    pub(super) fn set_of(&self, ordinal: u64) -> Option<&SetPlan> {
        let mut end = 0;
        self.sets.iter().find(|set| {
            end += set.prompts;
            ordinal < end
        })
    }

    /// Groups that may be generated in vain for one batch.
    pub(super) fn refill_limit(&self) -> Option<u64> {
        self.max_refill_batches.map(|batches| batches.saturating_mul(self.batch_prompts))
    }

    /// How long after a failure the weight plane waits before it tries again.
    pub(crate) fn weights_retry_delay(&self) -> Duration {
        self.heartbeat_timeout / 10
    }

    /// How long nobody has to come or leave before a broadcast group of the others is formed.
    pub(super) fn membership_delay(&self) -> Duration {
        self.weights_retry_delay() / 10
    }

    /// Checks that a member that worked for `theirs` before may take part.
    pub(super) fn check_run(&self, theirs: Option<&RunId>) -> Result<(), OtherRun> {
        match theirs {
            Some(theirs) if *theirs != self.run => {
                Err(OtherRun { theirs: theirs.clone(), ours: self.run.clone() })
            }
            _ => Ok(()),
        }
    }

    /// What an actor has to know.
    pub(super) fn actor_welcome(&self) -> ActorWelcome {
        ActorWelcome {
            run: self.run.clone(),
            seed: self.seed,
            sampling: self.sampling.clone(),
            deterministic: self.deterministic,
            heartbeat_timeout: self.heartbeat_timeout,
            episodes: self.episodes,
        }
    }

    /// What the learner has to know.
    pub(super) fn learner_welcome(&self, term: LearnerTerm, run_began: Timestamp) -> LearnerCommand {
        LearnerCommand::Welcome {
            run: self.run.clone(),
            last_batch: self.last_batch(),
            sampling: self.sampling.clone(),
            term,
            run_began,
        }
    }
}

#[cfg(test)]
impl RunPlan {
    /// That of a run whose journal is kept: batches of 5 prompts, groups of 4.
    pub(crate) fn recorded() -> Self {
        let journal = include_str!("../../tests/data/journal-5-facts.txt");
        let snapshot = journal.lines().next().and_then(|head| serde_json::from_str(head).ok());
        let mut snapshot: serde_json::Value = snapshot.unwrap();
        serde_json::from_value(snapshot["state"]["plan"].take()).unwrap()
    }
}
