//! The coordinator's metrics: every name, description and label.
#![expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]

use std::time::Duration;

use metrics::{counter, gauge, histogram};
use service::{Label, Metric};
use types::Ending;

use crate::state::{
    Detector, EvaluationRecord, Event, FiltrationFigures, RefusalCause, RewardEvent, Role, State, StepRecord,
};

const REASONS: &str = "empty for trained; why it was filtered, dropped or failed (`types::Ending`)";

const SET: Label = Label::described("set", "the name of one of several data sets");

/// Every metric of the process.
pub const METRICS: &[Metric] = &[
    Metric::counter("rlhf_coordinator_responses_issued_total", "Response attempts issued to actors."),
    Metric::counter(
        "rlhf_coordinator_responses_ended_total",
        "Response attempts by their one ending: trained, evaluated, filtered (intended), dropped or failed \
             (not intended).",
    )
    .by(&[
        Label::one_of("outcome", &["trained", "evaluated", "filtered", "dropped", "failed"]),
        Label::described("reason", REASONS),
    ]),
    Metric::counter("rlhf_rollouts_dropped_total", "Scored responses that did not train, by reason.").by(&[
        Label::described("reason", "of filtering or dropping, as above"),
        Label::one_of("intentional", &["true", "false"]),
    ]),
    Metric::counter("rlhf_coordinator_late_results_total", "Results of attempts that had ended before."),
    Metric::gauge("rlhf_coordinator_responses_in_flight", "Response attempts issued and not ended."),
    Metric::gauge("rlhf_samples_unaccounted", "Issued minus ended minus in flight: 0, or there is a bug."),
    Metric::gauge("rlhf_coordinator_policy_version", "The newest policy version."),
    Metric::gauge("rlhf_coordinator_batches_trained", "Batches trained."),
    Metric::gauge("rlhf_coordinator_batches_checkpointed", "Batches that a checkpoint holds."),
    Metric::gauge("rlhf_coordinator_members_connected", "Members connected, by role.")
        .by(&[Label::one_of("role", &["actor", "reward-server", "learner"])]),
    Metric::counter(
        "rlhf_coordinator_reports_rejected_total",
        "Reports that could not be accepted, by role.",
    )
    .by(&[Label::one_of("role", &["actor", "reward-server", "learner"])]),
    Metric::counter(
        "rlhf_coordinator_members_refused_total",
        "Members that were not let in or were sent away for good: they work for another run, have another's name, \
         weights that the run never had, or another tokenizer than the policy.",
    )
    .by(&[
        Label::one_of("role", &["actor", "reward-server", "learner"]),
        Label::one_of("reason", &RefusalCause::NAMES),
    ]),
    Metric::counter("rlhf_coordinator_members_gone_total", "Members that have left and are forgotten."),
    Metric::gauge("rlhf_coordinator_prompts_open", "Prompts with a response awaited."),
    Metric::gauge("rlhf_coordinator_last_step_timestamp_seconds", "When the last step was trained."),
    Metric::histogram("rlhf_coordinator_journal_commit_seconds", "Time to make events durable."),
    Metric::gauge("rlhf_coordinator_journal_free_bytes", "Room on the journal's disk."),
    Metric::gauge(
        "rlhf_coordinator_journal_full",
        "1 while the journal's disk is full and the run waits for room, else 0.",
    ),
    Metric::gauge(
        "rlhf_coordinator_admission_stopped",
        "1 while nothing new is begun because the journal's disk is short of room, else 0.",
    ),
    Metric::histogram("rlhf_coordinator_response_tokens", "Length of scored responses."),
    Metric::histogram("rlhf_coordinator_staleness_versions", "Versions that a trained batch was behind."),
    Metric::gauge("rlhf_step_policy_loss", "Policy loss of the last step."),
    Metric::gauge("rlhf_step_value_loss", "Value loss of the last step."),
    Metric::gauge("rlhf_step_entropy", "Entropy of the policy, nats."),
    Metric::gauge("rlhf_step_approx_kl", "Approximate KL between the policy before and during the update."),
    Metric::gauge(
        "rlhf_step_rollout_approx_kl",
        "Approximate KL between learner and actor on the same tokens; 0 on-policy.",
    ),
    Metric::gauge(
        "rlhf_step_rollout_logprob_diff",
        "Mean absolute difference of learner's and actor's log-probs.",
    ),
    Metric::gauge("rlhf_step_clip_fraction", "Share of tokens at which the clip was active."),
    Metric::gauge("rlhf_step_explained_variance", "Explained variance of the returns by the critic."),
    Metric::gauge("rlhf_step_score_mean", "Mean score of all responses to the batch's prompts."),
    Metric::gauge("rlhf_step_outcome_mean", "Mean outcome of the responses to the batch's prompts."),
    Metric::gauge("rlhf_eval_version", "The version that was evaluated last on held-out prompts."),
    Metric::gauge("rlhf_eval_best_version", "The best version so far on held-out prompts."),
    Metric::gauge("rlhf_eval_score_mean", "Mean score of the last responses to held-out prompts."),
    Metric::gauge("rlhf_eval_outcome_mean", "Their mean outcome."),
    Metric::counter("rlhf_eval_response_tokens_total", "Response tokens that evaluations have cost."),
    Metric::histogram("rlhf_eval_seconds", "Time from an evaluation's first lease to its last score."),
    Metric::gauge("rlhf_step_kl_to_ref", "KL between the policy and the reference, per response."),
    Metric::gauge(
        "rlhf_step_scorer_contribution",
        "What a scorer added to the score, in the mean; none where there is one scorer.",
    )
    .by(&[Label::described("scorer", "a scorer's kind; of several of one kind with a number behind it")]),
    Metric::gauge("rlhf_step_set_groups", "Complete groups of a data set since the batch before.").by(&[SET]),
    Metric::gauge("rlhf_step_set_score_mean", "Mean score of all responses to a data set's prompts.").by(&[SET]),
    Metric::gauge("rlhf_step_set_outcome_mean", "Mean outcome of the hidden tests on a data set's prompts.")
        .by(&[SET]),
    Metric::gauge(
        "rlhf_coordinator_detector_level",
        "How much there is of a sign that the reward is gamed: its alarm is raised at 1 and ends below 0.6. \
         None while there is not enough to look at.",
    )
    .by(&[Label::one_of("detector", &Detector::NAMES)]),
    Metric::gauge(
        "rlhf_coordinator_detector_firing",
        "1 while the alarm of a sign that the reward is gamed is raised.",
    )
    .by(&[Label::one_of("detector", &Detector::NAMES)]),
    Metric::counter(
        "rlhf_coordinator_worst_not_written_total",
        "Times that the highest scores with failed tests could not be written to worst.json.",
    ),
    Metric::gauge(
        "rlhf_step_filtration_r_squared",
        "R squared of outcome on score, unfiltered and filtered.",
    )
    .by(&[Label::one_of("pool", &["unfiltered", "filtered"])]),
    Metric::gauge(
        "rlhf_step_filtration_strategy_r_squared",
        "R squared of outcome on score for what each strategy would train on, with equal draws: the estimate, its \
         95 % interval over prompts, and its ceiling (docs/filtration.md).",
    )
    .by(&[
        Label::described("strategy", "a strategy with its parameters"),
        Label::one_of("bound", &["estimate", "low", "high", "ceiling"]),
    ]),
    Metric::gauge(
        "rlhf_step_filtration_kept_fraction",
        "Share of the scored responses that train, of the last batch and over a window of batches.",
    )
    .by(&[Label::one_of("over", &["batch", "window"])]),
    Metric::gauge(
        "rlhf_step_filtration_effective_samples",
        "Effective sample size of the weights of what trains, of the last batch and over a window of batches.",
    )
    .by(&[Label::one_of("over", &["batch", "window"])]),
    Metric::gauge(
        "rlhf_step_filtration_kept_by_rank",
        "Responses of the last batch that train, by the rank of their score in the group, 1 the best.",
    )
    .by(&[Label::described("rank", "from 1 to the group's size, 32 at most")]),
    Metric::counter(
        "rlhf_coordinator_refill_groups_total",
        "Groups of which nothing trains, of trained batches: others were generated in their place.",
    ),
    Metric::counter("rlhf_coordinator_refill_tokens_total", "Response tokens of those groups."),
    Metric::counter(
        "rlhf_coordinator_short_batches_total",
        "Batches that went on with fewer groups because their refills were used up.",
    ),
    Metric::counter(
        "rlhf_coordinator_strategy_changes_total",
        "Times that another filtration strategy was chosen.",
    ),
];

/// What a coordinator knows at its start: each way in which a response can end, with nothing that did so, and
/// what its journal has of the last step and of the evaluations.
pub(crate) fn begin(state: &State) {
    let reasons = types::FilterReason::ALL.iter().copied().map(Ending::Filtered);
    let reasons = reasons.chain(types::DropReason::ALL.iter().copied().map(Ending::Dropped));
    let reasons = reasons.chain(types::FailReason::ALL.iter().copied().map(Ending::Failed));
    for ending in [Ending::Trained, Ending::Evaluated].into_iter().chain(reasons) {
        ended(ending, 0);
    }
    self::state(state);
    state.history().steps().last().into_iter().for_each(last_step);
    state.evaluations().for_each(last_evaluation);
}

/// So many responses have ended in this way since the run began.
fn ended(ending: Ending, count: u64) {
    let (outcome, reason) = ending.labels();
    counter!("rlhf_coordinator_responses_ended_total", "outcome" => outcome, "reason" => reason)
        .absolute(count);
    if matches!(ending, Ending::Filtered(_) | Ending::Dropped(_)) {
        let intentional = if outcome == "filtered" { "true" } else { "false" };
        counter!("rlhf_rollouts_dropped_total", "reason" => reason, "intentional" => intentional)
            .absolute(count);
    }
}

/// One event.
pub(crate) fn event(event: &Event) {
    if let Event::Reward { event: RewardEvent::Scored(summary), .. } = event {
        histogram!("rlhf_coordinator_response_tokens").record(f64::from(summary.tokens));
    }
}

/// A report could not be accepted.
pub(crate) fn rejected(role: Role) {
    counter!("rlhf_coordinator_reports_rejected_total", "role" => role.name()).increment(1);
}

/// A member cannot take part.
pub(crate) fn member_refused(role: Role, cause: RefusalCause) {
    counter!("rlhf_coordinator_members_refused_total", "role" => role.name(), "reason" => cause.name())
        .increment(1);
}

/// The worst responses could not be written.
pub(crate) fn worst_not_written() {
    counter!("rlhf_coordinator_worst_not_written_total").increment(1);
}

/// One write of the journal.
pub(crate) fn journal_commit(took: Duration) {
    histogram!("rlhf_coordinator_journal_commit_seconds").record(took.as_secs_f64());
}

/// The room on the journal's disk.
pub(crate) fn journal_room(free_bytes: u64) {
    gauge!("rlhf_coordinator_journal_free_bytes").set(free_bytes as f64);
}

/// Whether the journal waits for room.
pub(crate) fn journal_full(full: bool) {
    gauge!("rlhf_coordinator_journal_full").set(f64::from(u8::from(full)));
}

/// The state after some events.
pub(crate) fn state(state: &State) {
    let account = state.account();
    counter!("rlhf_coordinator_responses_issued_total").absolute(account.issued());
    counter!("rlhf_coordinator_late_results_total").absolute(account.late_results());
    account.endings().for_each(|(ending, count)| ended(ending, count));
    gauge!("rlhf_coordinator_responses_in_flight").set(state.in_flight() as f64);
    gauge!("rlhf_samples_unaccounted").set(state.unaccounted() as f64);
    gauge!("rlhf_coordinator_policy_version").set(state.version().0 as f64);
    gauge!("rlhf_coordinator_batches_trained").set(state.batches().trained().0 as f64);
    gauge!("rlhf_coordinator_batches_checkpointed").set(state.batches().checkpointed().0 as f64);
    gauge!("rlhf_coordinator_prompts_open").set(state.open_prompts() as f64);
    let stopped = state.short_of_room().is_some();
    gauge!("rlhf_coordinator_admission_stopped").set(f64::from(u8::from(stopped)));
    let members = state.members();
    let actors = members.connected_actor_count();
    let servers = members.connected_reward_server_count();
    let learners = u64::from(members.connected_learner().is_some());
    counter!("rlhf_coordinator_members_gone_total").absolute(members.gone());
    for (role, count) in [("actor", actors), ("reward-server", servers), ("learner", learners)] {
        gauge!("rlhf_coordinator_members_connected", "role" => role).set(count as f64);
    }
    let findings = state.history().detectors().findings();
    for detector in Detector::ALL {
        let (name, finding) = (detector.name(), findings.get(&detector));
        let firing = finding.is_some_and(|finding| finding.firing);
        gauge!("rlhf_coordinator_detector_firing", "detector" => name).set(f64::from(u8::from(firing)));
        if let Some(finding) = finding {
            gauge!("rlhf_coordinator_detector_level", "detector" => name).set(finding.level);
        }
    }
}

/// One evaluation.
pub(crate) fn evaluated(record: &EvaluationRecord) {
    counter!("rlhf_eval_response_tokens_total").increment(record.response_tokens);
    histogram!("rlhf_eval_seconds").record(record.seconds);
    last_evaluation(record);
}

/// What the last evaluation found.
pub(crate) fn last_evaluation(record: &EvaluationRecord) {
    gauge!("rlhf_eval_version").set(record.version.0 as f64);
    if record.is_best {
        gauge!("rlhf_eval_best_version").set(record.version.0 as f64);
    }
    if record.responses > 0 {
        gauge!("rlhf_eval_score_mean").set(record.score_mean);
    }
    if let Some(mean) = record.outcome_mean {
        gauge!("rlhf_eval_outcome_mean").set(mean);
    }
}

/// One training step.
pub(crate) fn step(step: &StepRecord) {
    histogram!("rlhf_coordinator_staleness_versions").record(step.metrics.staleness);
    counter!("rlhf_coordinator_refill_groups_total").increment(step.refill.groups);
    counter!("rlhf_coordinator_refill_tokens_total").increment(step.refill.tokens);
    last_step(step);
}

/// What the last step was like, which a coordinator that starts again knows from its journal.
pub(crate) fn last_step(step: &StepRecord) {
    let m = &step.metrics;
    gauge!("rlhf_coordinator_last_step_timestamp_seconds").set(step.time.0 as f64 / 1000.0);
    for (name, value) in [
        ("rlhf_step_policy_loss", m.policy_loss),
        ("rlhf_step_value_loss", m.value_loss),
        ("rlhf_step_entropy", m.entropy),
        ("rlhf_step_approx_kl", m.approx_kl),
        ("rlhf_step_rollout_approx_kl", m.rollout_approx_kl),
        ("rlhf_step_rollout_logprob_diff", m.rollout_logprob_diff),
        ("rlhf_step_clip_fraction", m.clip_fraction),
        ("rlhf_step_explained_variance", m.explained_variance),
        ("rlhf_step_score_mean", Some(step.score_mean)),
        ("rlhf_step_outcome_mean", step.outcome_mean),
        ("rlhf_step_kl_to_ref", m.kl_to_ref),
    ] {
        if let Some(value) = value {
            gauge!(name).set(value);
        }
    }
    for (scorer, mean) in &step.contributions {
        gauge!("rlhf_step_scorer_contribution", "scorer" => scorer.clone()).set(*mean);
    }
    for (set, figures) in &step.sets {
        gauge!("rlhf_step_set_groups", "set" => set.clone()).set(figures.groups as f64);
        gauge!("rlhf_step_set_score_mean", "set" => set.clone()).set(figures.score_mean);
        if let Some(outcome) = figures.outcome_mean {
            gauge!("rlhf_step_set_outcome_mean", "set" => set.clone()).set(outcome);
        }
    }
    filtration(&step.filtration);
    for (pool, r_squared) in
        [("unfiltered", step.reliability.unfiltered), ("filtered", step.reliability.filtered)]
    {
        if let Some(r_squared) = r_squared {
            gauge!("rlhf_step_filtration_r_squared", "pool" => pool).set(r_squared);
        }
    }
}

/// What the filtration did.
fn filtration(figures: &FiltrationFigures) {
    for (over, selection) in [("batch", &figures.batch), ("window", &figures.window)] {
        gauge!("rlhf_step_filtration_kept_fraction", "over" => over).set(selection.kept_fraction);
        gauge!("rlhf_step_filtration_effective_samples", "over" => over).set(selection.effective_samples);
    }
    for (rank, kept) in &figures.batch.kept_by_rank {
        gauge!("rlhf_step_filtration_kept_by_rank", "rank" => rank.to_string()).set(*kept);
    }
    for (strategy, found) in &figures.r_squared {
        for (bound, value) in [
            ("estimate", found.r_squared),
            ("low", found.low),
            ("high", found.high),
            ("ceiling", found.ceiling),
        ] {
            gauge!("rlhf_step_filtration_strategy_r_squared", "strategy" => strategy.clone(), "bound" => bound)
                .set(value);
        }
    }
}

/// A batch has fewer groups than others.
pub(crate) fn batch_short() {
    counter!("rlhf_coordinator_short_batches_total").increment(1);
}

/// Another filtration strategy was chosen.
pub(crate) fn strategy_changed() {
    counter!("rlhf_coordinator_strategy_changes_total").increment(1);
}
