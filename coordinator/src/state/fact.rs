//! Facts: what changes what a run is, and so is journaled (`docs/decisions.md`, D14).
//!
//! A fact carries everything that its consequences depend on: facts in order lead to the same [`Durable`]
//! state whenever they are replayed. Load, signs of life and who is connected are no facts: who comes back
//! after a restart says them again.
//!
//! [`Durable`]: super::durable::Durable

use std::collections::BTreeMap;
use std::time::Duration;

use algo::filtration::Strategy;
use serde::{Deserialize, Serialize};
use types::link::learner::{RecentSteps, StepMetrics};
use types::{
    BatchId, FailReason, Incarnation, MemberId, PolicyVersion, RolloutId, ScoredRollout, WeightHash,
};

use super::plan::RunPlan;

/// Something that is so from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A coordinator has started over the journal, with this plan.
    Started(Box<RunPlan>),
    /// The coordinator did nothing for this long, while somebody worked on a lease or a batch waited: that is
    /// not counted against them.
    WasAway(Duration),
    /// The learner has come, with these weights.
    LearnerJoined(Box<LearnerFacts>),
    /// An actor is given the next lease.
    Leased {
        /// The actor.
        member: MemberId,
        /// What it may hold.
        bounds: LeaseBounds,
    },
    /// A response was scored.
    Scored(ScoreSummary),
    /// An attempt has failed for good: nobody works on it, and nobody holds its response.
    Failed {
        /// The attempt.
        id: RolloutId,
        /// Why.
        reason: FailReason,
    },
    /// Attempts are issued anew, because their actor is lost or their lease has run out. Their responses may
    /// come all the same.
    Lapsed {
        /// The attempts.
        ids: Vec<RolloutId>,
        /// Why.
        reason: FailReason,
    },
    /// A batch is part of the weights.
    Trained {
        /// The batch.
        batch: BatchId,
        /// The weights that it made.
        weights: (PolicyVersion, WeightHash),
        /// What the step measured.
        metrics: Box<StepMetrics>,
    },
    /// A checkpoint that holds this batch is complete on disk.
    Checkpointed(BatchId),
    /// A batch does not wait for older groups any more, though it was the last one that they could train in.
    WaitEnded(BatchId),
    /// Groups that are complete from now on are filtered by this strategy.
    StrategyChosen {
        /// The strategy.
        strategy: Strategy,
        /// Why, for people.
        reason: String,
    },
}

/// What the next lease may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseBounds {
    /// Groups that the actor has room for.
    pub room: u64,
    /// Prompts that may be begun.
    pub capacity: u64,
    /// What the actor generates with: no response of the lease will be older.
    #[serde(default)]
    pub version: PolicyVersion,
    /// Whether it is of held-out prompts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held_out: bool,
}

/// What a learner that has come says of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnerFacts {
    /// Its name.
    pub member: MemberId,
    /// Tells its processes from the ones before.
    pub incarnation: Incarnation,
    /// The last batch in its weights.
    pub trained: BatchId,
    /// The last batch in its newest checkpoint.
    pub checkpointed: BatchId,
    /// Its weights.
    pub weights: (PolicyVersion, WeightHash),
    /// What its last steps measured.
    pub steps: RecentSteps,
}

/// What decisions need to know of a scored rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreSummary {
    /// The response.
    pub id: RolloutId,
    /// Its score.
    pub score: f32,
    /// Share of hidden tests passed, if it has any.
    pub outcome: Option<f32>,
    /// Response tokens.
    pub tokens: u32,
    /// The oldest version that drew one of them.
    pub oldest: PolicyVersion,
    /// Whether the response was cut off by the length limit.
    pub truncated: bool,
    /// Turns of the policy: more than one where it is an episode that has gone on.
    #[serde(default = "one_turn", skip_serializing_if = "is_one_turn")]
    pub turns: u32,
    /// Each scorer's own number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, f64>,
    /// What each scorer added to the score; empty where there is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contributions: BTreeMap<String, f64>,
    /// A hash of its tokens, by which siblings that say the same are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<u64>,
}

fn one_turn() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_one_turn(turns: &u32) -> bool {
    *turns == 1
}

impl ScoreSummary {
    /// Whether it has hidden tests, and not all of them passed.
    pub(crate) fn fails_tests(&self) -> bool {
        self.outcome.is_some_and(|outcome| outcome < 1.0)
    }

    /// The summary of a scored rollout.
    pub fn of(scored: &ScoredRollout) -> Self {
        let rollout = scored.rollout();
        Self {
            id: rollout.id(),
            score: scored.score(),
            outcome: scored.outcome(),
            tokens: u32::try_from(rollout.response_tokens().len()).unwrap_or(u32::MAX),
            oldest: rollout.oldest_version(),
            truncated: rollout.finish_reason() == types::FinishReason::Length,
            turns: u32::try_from(rollout.observations().len()).unwrap_or(u32::MAX).saturating_add(1),
            numbers: scored.remarks().numbers.clone(),
            contributions: scored.remarks().contributions.clone(),
            digest: Some(digest(rollout.response_tokens())),
        }
    }
}

/// The first bytes of the BLAKE3 hash of some tokens.
fn digest(tokens: &[u32]) -> u64 {
    // At once: the hash of many short pieces takes five times as long.
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
    u64::from_le_bytes(first)
}
