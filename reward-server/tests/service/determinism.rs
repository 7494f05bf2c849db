//! Deterministic mode: the numbers of a rollout depend on nothing but the rollout.

use std::collections::BTreeMap;

use reward_server::Config;
use types::Rollout;

use crate::tiny;
use crate::world::{World, networks, scored};

/// The bits of score and log-probs by ordinal.
type Bits = BTreeMap<u64, (u32, Vec<u32>)>;

async fn score(rollouts: &[Rollout], together: bool) -> Bits {
    let mut world = World::start(Config { deterministic: true, ..networks() }).await;
    let mut bits = Bits::new();
    let mut take = |scored: types::ScoredRollout| {
        let logprobs = scored.ref_logprobs().iter().map(|logprob| logprob.to_bits()).collect();
        bits.insert(scored.rollout().id().prompt.ordinal, (scored.score().to_bits(), logprobs));
    };
    for rollout in rollouts {
        world.actor.offer(rollout).await;
        if !together {
            take(scored(world.session.result().await));
        }
    }
    if together {
        for _ in rollouts {
            take(scored(world.session.result().await));
        }
    }
    bits
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_are_the_same_bits_whatever_arrives_together() {
    let rollouts: Vec<Rollout> =
        (0..48).map(|n| tiny::with_tokens(n, &tiny::tokens(n, 1 + (n as usize * 13) % 90), "")).collect();
    let alone = score(&rollouts, false).await;
    let together = score(&rollouts, true).await;
    let backwards: Vec<Rollout> = rollouts.iter().rev().cloned().collect();
    assert_eq!(alone.len(), rollouts.len());
    assert_eq!(alone, together);
    assert_eq!(alone, score(&backwards, true).await);
}
