//! The actor's metrics: every name, description and label.
#![expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]

use std::time::Duration;

use engine::Totals;
use metrics::{counter, gauge, histogram};
use service::{Label, Metric};
use types::{EpisodeEnd, FailReason};

const FAIL_REASON: Label = Label::one_of("reason", FailReason::LABELS);
const EPISODE_END: Label = Label::one_of("end", EpisodeEnd::LABELS);
const CALL_PROBLEM: Label = Label::one_of("problem", &["lost", "late", "status", "answer"]);
const WAY: Label = Label::one_of("way", &["broadcast", "pull"]);

/// Every metric of the process.
pub const METRICS: &[Metric] = &[
    Metric::counter("rlhf_actor_tokens_generated_total", "Response tokens of finished rollouts."),
    Metric::counter("rlhf_actor_rollouts_finished_total", "Rollouts generated to their end."),
    Metric::counter(
        "rlhf_actor_rollouts_failed_total",
        "Attempts that this actor could not finish, by reason.",
    )
    .by(&[FAIL_REASON]),
    Metric::counter(
        "rlhf_actor_reward_overloads_total",
        "Rollouts that a reward server had no room for, each time.",
    ),
    Metric::counter(
        "rlhf_actor_rollouts_hedged_total",
        "Rollouts that a reward server took long with and a second one was given too.",
    ),
    Metric::counter(
        "rlhf_actor_weights_received_total",
        "Weight versions received, by way: broadcast or pull.",
    )
    .by(&[WAY]),
    Metric::counter("rlhf_actor_weights_failed_total", "Weight versions that did not arrive, by way.")
        .by(&[WAY]),
    Metric::gauge("rlhf_actor_policy_version", "The version that draws tokens now."),
    Metric::gauge("rlhf_actor_responses_running", "Responses being generated."),
    Metric::gauge("rlhf_actor_responses_free", "Responses that could be started now."),
    Metric::gauge("rlhf_actor_rollouts_unacknowledged", "Finished rollouts that no journal holds yet."),
    Metric::histogram(
        "rlhf_actor_weights_seconds",
        "Time from the order to the use of a weight version, by way.",
    )
    .by(&[WAY]),
    Metric::counter(
        "rlhf_actor_engine_calls_failed_total",
        "Calls that an external engine did not answer as it should, by problem.",
    )
    .by(&[CALL_PROBLEM]),
    Metric::histogram("rlhf_actor_response_tokens", "Length of generated responses."),
    Metric::counter(
        "rlhf_actor_episodes_ended_total",
        "Episodes that became rollouts, by why they had no further turn.",
    )
    .by(&[EPISODE_END]),
    Metric::counter("rlhf_actor_episode_turns_total", "Turns of these episodes."),
    Metric::counter(
        "rlhf_actor_observation_tokens_total",
        "Tokens that these episodes were given between turns.",
    ),
    Metric::counter(
        "rlhf_actor_episode_further_sequences_total",
        "Turns of these episodes that began a further sequence, because the chat template had rewritten what came before.",
    ),
    Metric::gauge("rlhf_actor_episodes_waiting", "Episodes that wait for their environment."),
    Metric::gauge("rlhf_actor_agents_waiting", "Agents that wait for an episode."),
    Metric::gauge("rlhf_actor_agent_episodes", "Episodes that agents play."),
    Metric::counter(
        "rlhf_actor_agent_calls_total",
        "Calls that agents made in episodes that became rollouts.",
    ),
    Metric::counter(
        "rlhf_actor_agent_further_sequences_total",
        "Calls among these that went on from none before, and so began a further sequence of their episode.",
    ),
    Metric::counter(
        "rlhf_actor_prefill_tokens_total",
        "Tokens of prompts and of turns before that were computed.",
    ),
    Metric::counter(
        "rlhf_actor_shared_tokens_total",
        "Tokens of prompts that were not computed, because a sibling had done it.",
    ),
    Metric::counter(
        "rlhf_actor_reused_tokens_total",
        "Tokens that were not computed, because the cache still held them: turns before, the same prompt.",
    ),
    Metric::counter(
        "rlhf_actor_cache_blocks_evicted_total",
        "Cache blocks kept for turns to come that were given up for responses under way.",
    ),
];

/// How weights came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Broadcast,
    Pull,
}

impl Way {
    fn label(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::Pull => "pull",
        }
    }
}

pub(crate) fn finished(tokens: usize) {
    counter!("rlhf_actor_rollouts_finished_total").increment(1);
    counter!("rlhf_actor_tokens_generated_total").increment(tokens as u64);
    histogram!("rlhf_actor_response_tokens").record(tokens as f64);
}

pub(crate) fn episode_ended(end: EpisodeEnd, turns: u32, given_tokens: usize) {
    counter!("rlhf_actor_episodes_ended_total", "end" => end.as_str()).increment(1);
    counter!("rlhf_actor_episode_turns_total").increment(u64::from(turns));
    counter!("rlhf_actor_observation_tokens_total").increment(given_tokens as u64);
}

pub(crate) fn episode_rewritten(further_sequences: usize) {
    counter!("rlhf_actor_episode_further_sequences_total").increment(further_sequences as u64);
}

pub(crate) fn agents((waiting, playing): (usize, usize)) {
    gauge!("rlhf_actor_agents_waiting").set(waiting as f64);
    gauge!("rlhf_actor_agent_episodes").set(playing as f64);
}

pub(crate) fn agent_episode(calls: u32, further_sequences: usize) {
    counter!("rlhf_actor_agent_calls_total").increment(u64::from(calls));
    counter!("rlhf_actor_agent_further_sequences_total").increment(further_sequences as u64);
}

pub(crate) fn episodes_waiting(count: usize) {
    gauge!("rlhf_actor_episodes_waiting").set(count as f64);
}

pub(crate) fn engine(totals: &Totals) {
    counter!("rlhf_actor_prefill_tokens_total").absolute(totals.prefill_tokens);
    counter!("rlhf_actor_shared_tokens_total").absolute(totals.shared_tokens);
    counter!("rlhf_actor_reused_tokens_total").absolute(totals.reused_tokens);
    counter!("rlhf_actor_cache_blocks_evicted_total").absolute(totals.evicted_blocks);
}

pub(crate) fn failed(reason: FailReason) {
    counter!("rlhf_actor_rollouts_failed_total", "reason" => reason.as_str()).increment(1);
}

pub(crate) fn engine_call_failed(problem: &'static str) {
    counter!("rlhf_actor_engine_calls_failed_total", "problem" => problem).increment(1);
}

pub(crate) fn overloaded() {
    counter!("rlhf_actor_reward_overloads_total").increment(1);
}

pub(crate) fn hedged() {
    counter!("rlhf_actor_rollouts_hedged_total").increment(1);
}

pub(crate) fn unacknowledged(count: usize) {
    gauge!("rlhf_actor_rollouts_unacknowledged").set(count as f64);
}

pub(crate) fn load(running: u32, free: u32) {
    gauge!("rlhf_actor_responses_running").set(f64::from(running));
    gauge!("rlhf_actor_responses_free").set(f64::from(free));
}

pub(crate) fn weights_in_use(way: Way, version: u64, took: Duration) {
    counter!("rlhf_actor_weights_received_total", "way" => way.label()).increment(1);
    histogram!("rlhf_actor_weights_seconds", "way" => way.label()).record(took.as_secs_f64());
    gauge!("rlhf_actor_policy_version").set(version as f64);
}

pub(crate) fn weights_failed(way: Way) {
    counter!("rlhf_actor_weights_failed_total", "way" => way.label()).increment(1);
}
