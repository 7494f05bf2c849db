//! The reward server's metrics: every name, description and label.
#![expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use sandbox::{Stats, Tier, Verdict};
use service::{Label, Metric};
use types::FailReason;

/// Lengths of responses by which failures are split, so that a bias against long ones is visible.
const LENGTH_BUCKETS: [(u32, &str); 5] =
    [(128, "0-127"), (512, "128-511"), (2048, "512-2047"), (8192, "2048-8191"), (u32::MAX, "8192-")];

const LENGTHS: [&str; LENGTH_BUCKETS.len()] = {
    let mut lengths = [""; LENGTH_BUCKETS.len()];
    let mut place = 0;
    while place < lengths.len() {
        lengths[place] = LENGTH_BUCKETS[place].1;
        place += 1;
    }
    lengths
};
const VERDICTS: [&str; Verdict::ALL.len()] = {
    let mut verdicts = [""; Verdict::ALL.len()];
    let mut place = 0;
    while place < verdicts.len() {
        verdicts[place] = Verdict::ALL[place].name();
        place += 1;
    }
    verdicts
};

const FAIL_REASON: Label = Label::one_of("reason", FailReason::LABELS);
const SCORER: Label = Label::described("scorer", "the kind of scorer, as configured");
const NETWORK: Label = Label::one_of("network", &["reward-model", "reference"]);

const TOOL: Label = Label::one_of("tool", &["python", "tools", "class", "http"]);

/// Every metric of the process.
pub const METRICS: &[Metric] = &[
    Metric::counter("rlhf_reward_offers_total", "Rollouts that actors offered, by what became of the offer.")
        .by(&[Label::one_of("answer", &["accepted", "attached", "overloaded", "paused", "draining"])]),
    Metric::counter("rlhf_reward_scored_total", "Rollouts scored."),
    Metric::counter(
        "rlhf_reward_failures_total",
        "Rollouts without a score, by reason and by length of the response in tokens.",
    )
    .by(&[FAIL_REASON, Label::one_of("length", &LENGTHS)]),
    Metric::counter("rlhf_reward_recorded_total", "Results that the coordinator's journal has."),
    Metric::counter("rlhf_reward_rejected_total", "Results that the coordinator could not accept."),
    Metric::counter("rlhf_reward_resent_total", "Results sent again after a reconnect."),
    Metric::counter("rlhf_reward_reconnects_total", "Streams to the coordinator that broke."),
    Metric::gauge(
        "rlhf_reward_queue_rollouts",
        "Rollouts in work, by whether their result waits to be recorded.",
    )
    .by(&[Label::one_of("state", &["scoring", "unrecorded"])]),
    Metric::gauge("rlhf_reward_queue_bytes", "Estimated bytes of the rollouts in work."),
    Metric::gauge("rlhf_reward_coordinator_connected", "1 while the stream to the coordinator is open."),
    Metric::histogram("rlhf_reward_rollout_seconds", "Time from a rollout's arrival until it is recorded."),
    Metric::histogram("rlhf_reward_scorer_seconds", "Time of a scorer for one response, waiting included.")
        .by(&[SCORER]),
    Metric::counter(
        "rlhf_reward_scorer_errors_total",
        "Responses for which a scorer has no number, by reason.",
    )
    .by(&[SCORER, FAIL_REASON]),
    Metric::counter(
        "rlhf_reward_outcomes_missing_total",
        "Scored responses whose tests could not be judged and decide nothing, by reason.",
    )
    .by(&[FAIL_REASON]),
    Metric::counter("rlhf_reward_batches_total", "Batches that torch computed, by network.").by(&[NETWORK]),
    Metric::counter("rlhf_reward_sequences_total", "Sequences in them.").by(&[NETWORK]),
    Metric::histogram("rlhf_reward_batch_tokens", "Tokens of a batch.").by(&[NETWORK]),
    Metric::histogram("rlhf_reward_batch_seconds", "Time to compute a batch.").by(&[NETWORK]),
    Metric::counter("rlhf_reward_verdicts_total", "Gradings in the sandbox, by verdict.")
        .by(&[Label::one_of("verdict", &VERDICTS)]),
    Metric::counter("rlhf_reward_verdicts_remembered_total", "Gradings answered from memory."),
    Metric::histogram("rlhf_reward_grading_seconds", "Time of a grading without waiting."),
    Metric::gauge("rlhf_reward_sandbox_tier_info", "Constant 1; the label names the sandbox's tier.")
        .by(&[Label::one_of("tier", &["a", "b"])]),
    Metric::gauge("rlhf_reward_sandbox_busy_workers", "Gradings under way."),
    Metric::counter("rlhf_reward_sandbox_runs_total", "Guests started."),
    Metric::counter("rlhf_reward_sandbox_retries_total", "Gradings repeated after an internal error."),
    Metric::counter("rlhf_reward_sandbox_start_failures_total", "Interpreters that could not be started."),
    Metric::counter("rlhf_reward_python_starts_total", "Worker processes of Python scorers started."),
    Metric::counter("rlhf_reward_http_attempts_total", "Requests to remote reward services, by result.")
        .by(&[Label::one_of("result", &["success", "failure"])]),
    Metric::gauge("rlhf_reward_http_breaker_open", "1 while nothing is sent to a remote service that fails."),
    Metric::gauge("rlhf_reward_environment_episodes", "Episodes under way."),
    Metric::histogram(
        "rlhf_reward_environment_step_seconds",
        "Time from a turn of an episode to what the environment says, waiting included.",
    ),
    Metric::counter(
        "rlhf_reward_environment_failures_total",
        "Episodes that the environment failed, by reason.",
    )
    .by(&[FAIL_REASON]),
    Metric::histogram("rlhf_reward_tool_seconds", "Time of a call of a tool, without waiting.").by(&[TOOL]),
    Metric::counter(
        "rlhf_reward_tool_left_out_bytes_total",
        "Bytes of what calls of tools returned that the policy was not shown.",
    )
    .by(&[TOOL]),
    Metric::counter("rlhf_reward_endpoint_requests_total", "Requests to /get_reward, by HTTP status.")
        .by(&[Label::described("status", "the HTTP status")]),
];

/// What an actor is told about its offer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OfferAnswer {
    /// It will be scored.
    Accepted,
    /// It is in work already.
    Attached,
    /// There is no room.
    Overloaded,
    /// A remote service is down.
    Paused,
    /// The server is leaving.
    Draining,
}

/// One offer of an actor.
pub(crate) fn offer(answer: OfferAnswer) {
    let answer = match answer {
        OfferAnswer::Accepted => "accepted",
        OfferAnswer::Attached => "attached",
        OfferAnswer::Overloaded => "overloaded",
        OfferAnswer::Paused => "paused",
        OfferAnswer::Draining => "draining",
    };
    counter!("rlhf_reward_offers_total", "answer" => answer).increment(1);
}

/// What is in work.
pub(crate) fn queue(scoring: usize, unrecorded: usize, bytes: usize) {
    gauge!("rlhf_reward_queue_rollouts", "state" => "scoring").set(scoring as f64);
    gauge!("rlhf_reward_queue_rollouts", "state" => "unrecorded").set(unrecorded as f64);
    gauge!("rlhf_reward_queue_bytes").set(bytes as f64);
}

/// A rollout was scored.
pub(crate) fn scored() {
    counter!("rlhf_reward_scored_total").increment(1);
}

/// A rollout has no score.
pub(crate) fn failed(reason: FailReason, response_tokens: u32) {
    let length =
        LENGTH_BUCKETS.iter().find(|(end, _)| response_tokens < *end).map_or("8192-", |(_, label)| label);
    counter!("rlhf_reward_failures_total", "reason" => reason.as_str(), "length" => length).increment(1);
}

/// The journal has a result.
pub(crate) fn recorded(took: Duration) {
    counter!("rlhf_reward_recorded_total").increment(1);
    histogram!("rlhf_reward_rollout_seconds").record(took.as_secs_f64());
}

/// The coordinator could not accept a result.
pub(crate) fn rejected() {
    counter!("rlhf_reward_rejected_total").increment(1);
}

/// The stream to the coordinator is open, and so many results go over it again.
pub(crate) fn connected(resent: usize) {
    gauge!("rlhf_reward_coordinator_connected").set(1.0);
    counter!("rlhf_reward_resent_total").increment(resent as u64);
}

/// The stream to the coordinator broke.
pub(crate) fn disconnected() {
    gauge!("rlhf_reward_coordinator_connected").set(0.0);
    counter!("rlhf_reward_reconnects_total").increment(1);
}

/// A scorer is done with a response.
pub(crate) fn scorer(scorer: &'static str, took: Duration, error: Option<FailReason>) {
    histogram!("rlhf_reward_scorer_seconds", "scorer" => scorer).record(took.as_secs_f64());
    if let Some(reason) = error {
        counter!("rlhf_reward_scorer_errors_total", "scorer" => scorer, "reason" => reason.as_str())
            .increment(1);
    }
}

/// The hidden tests of a scored response could not be judged.
pub(crate) fn outcome_missing(reason: FailReason) {
    counter!("rlhf_reward_outcomes_missing_total", "reason" => reason.as_str()).increment(1);
}

/// Torch has computed a batch.
pub(crate) fn batch(network: &'static str, sequences: usize, tokens: usize, took: Duration) {
    counter!("rlhf_reward_batches_total", "network" => network).increment(1);
    counter!("rlhf_reward_sequences_total", "network" => network).increment(sequences as u64);
    histogram!("rlhf_reward_batch_tokens", "network" => network).record(tokens as f64);
    histogram!("rlhf_reward_batch_seconds", "network" => network).record(took.as_secs_f64());
}

/// A grading has its verdict.
pub(crate) fn verdict(verdict: Verdict, wall: Duration) {
    counter!("rlhf_reward_verdicts_total", "verdict" => verdict.name()).increment(1);
    histogram!("rlhf_reward_grading_seconds").record(wall.as_secs_f64());
}

/// A grading was not needed.
pub(crate) fn verdict_remembered() {
    counter!("rlhf_reward_verdicts_remembered_total").increment(1);
}

/// The sandbox has proved its tier.
pub(crate) fn sandbox_tier(tier: Tier) {
    gauge!("rlhf_reward_sandbox_tier_info", "tier" => tier.name()).set(1.0);
}

/// The sandbox's own counts.
pub(crate) fn sandbox(stats: &Stats) {
    gauge!("rlhf_reward_sandbox_busy_workers").set(stats.busy as f64);
    counter!("rlhf_reward_sandbox_runs_total").absolute(stats.runs);
    counter!("rlhf_reward_sandbox_retries_total").absolute(stats.retries);
    counter!("rlhf_reward_sandbox_start_failures_total").absolute(stats.zygote_start_failures);
}

/// A worker process of a Python scorer was started.
pub(crate) fn python_started() {
    counter!("rlhf_reward_python_starts_total").increment(1);
}

/// An attempt at a remote service.
pub(crate) fn http_attempt<T, E>(result: &Result<T, E>) {
    let result = if result.is_ok() { "success" } else { "failure" };
    counter!("rlhf_reward_http_attempts_total", "result" => result).increment(1);
}

/// How long requests to a remote service are held back; none while they are not.
pub(crate) fn http_breaker(open_for: Option<Duration>) {
    gauge!("rlhf_reward_http_breaker_open").set(f64::from(u8::from(open_for.is_some())));
}

/// A request to the endpoint.
pub(crate) fn endpoint(status: &'static str) {
    counter!("rlhf_reward_endpoint_requests_total", "status" => status).increment(1);
}

/// Episodes under way.
pub(crate) fn episodes_under_way(count: usize) {
    gauge!("rlhf_reward_environment_episodes").set(count as f64);
}

/// An environment has answered a turn.
pub(crate) fn environment_stepped(took: Duration) {
    histogram!("rlhf_reward_environment_step_seconds").record(took.as_secs_f64());
}

/// An environment has failed an episode.
pub(crate) fn environment_failed(reason: FailReason) {
    counter!("rlhf_reward_environment_failures_total", "reason" => reason.as_str()).increment(1);
}

/// A tool was called.
pub(crate) fn tool_called(tool: &'static str, took: Duration, left_out: u64) {
    histogram!("rlhf_reward_tool_seconds", "tool" => tool).record(took.as_secs_f64());
    counter!("rlhf_reward_tool_left_out_bytes_total", "tool" => tool).increment(left_out);
}
