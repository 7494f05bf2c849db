//! The figures of a run in words: what its last step did, how fast it goes, and what became of its responses.
//! What was not measured is left out.

use coordinator::state::{EvaluationRecord, StepRecord};
use coordinator::{AccountStatus, FailureStatus, Status};

use crate::decimal::{decimal, signed};

/// How the last step went: `score +0.120, length 23.4 (cut off 12 %), entropy 0.53, ...`.
pub(crate) fn of_step(step: &StepRecord) -> String {
    let m = &step.metrics;
    let parts = [
        Some(format!("score {}", signed(step.score_mean, 3))),
        step.outcome_mean.map(|outcome| format!("pass@1 {:.1} %", 100.0 * outcome)),
        m.kl_to_ref.map(|kl| format!("KL {}", decimal(kl, 3))),
        Some(format!("length {:.1}", step.response_tokens_mean)),
        (step.truncated > 0.0).then(|| format!("cut off {}", share(step.truncated))),
        (step.several_turns > 0.0).then(|| format!("several turns {}", share(step.several_turns))),
        (step.without_signal > 0.0).then(|| format!("groups without signal {}", share(step.without_signal))),
        m.entropy.map(|entropy| format!("entropy {}", decimal(entropy, 2))),
        m.clip_fraction.map(|clipped| format!("clipped {}", share(clipped))),
        m.policy_grad_norm.map(|norm| format!("gradient {norm:.2}")),
        (m.skipped_steps > 0).then(|| format!("{} optimizer steps skipped", m.skipped_steps)),
        (m.staleness > 0.0).then(|| format!("staleness {:.1}", m.staleness)),
        Some(format!("{:.2} s/step", m.step_seconds)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What an evaluation on held-out prompts found: `held-out v12: score +0.310, pass@1 31.2 % (best so far)`.
pub(crate) fn of_evaluation(evaluation: &EvaluationRecord) -> String {
    let EvaluationRecord {
        version, score_mean, outcome_mean, failed, is_best, ends_run, several_turns, ..
    } = evaluation;
    let parts = [
        Some(format!("held-out {version}: score {}", signed(*score_mean, 3))),
        outcome_mean.map(|outcome| format!("pass@1 {:.1} %", 100.0 * outcome)),
        (*several_turns > 0.0).then(|| format!("several turns {}", share(*several_turns))),
        (*failed > 0).then(|| format!("{failed} responses failed")),
    ];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    match (is_best, ends_run) {
        (_, true) => format!("{text} (no better for too long: the run ends)"),
        (true, false) => format!("{text} (best so far)"),
        (false, false) => text,
    }
}

/// How fast it goes.
pub(crate) fn of_pace(status: &Status) -> String {
    let to_go = match status.eta_seconds {
        None => String::new(),
        Some(seconds) if seconds < 90.0 => format!(", {seconds:.0} s to go"),
        Some(seconds) if seconds < 5400.0 => format!(", {:.0} min to go", seconds / 60.0),
        Some(seconds) => format!(", {:.1} h to go", seconds / 3600.0),
    };
    format!("{:.0} tokens/s{to_go}", status.tokens_per_second)
}

/// What became of responses that did not train: `filtered 20 % (no_signal 12 %, strategy 8 %), failed 3 %
/// (unsupported 3 %)`; empty where all of them did.
pub(crate) fn of_losses(account: &AccountStatus) -> String {
    let ended: u64 = account.endings.values().sum();
    let mut kinds = Vec::new();
    for kind in ["filtered", "dropped", "failed"] {
        let mut reasons = Vec::new();
        let mut all = 0;
        for (ending, count) in &account.endings {
            if let Some(reason) = ending.strip_prefix(kind) {
                all += count;
                let reason = reason.trim_matches(['{', '}']);
                reasons.push(format!("{reason} {}", share(*count as f64 / ended as f64)));
            }
        }
        if all > 0 {
            kinds.push(format!("{kind} {} ({})", share(all as f64 / ended as f64), reasons.join(", ")));
        }
    }
    kinds.join(", ")
}

/// A failure in full: `42 failed at the reward-server (unsupported), the first: ...`.
pub(crate) fn of_failure(failure: &FailureStatus) -> String {
    let FailureStatus { role, reason, count, detail } = failure;
    format!("{count} failed at the {role} ({reason}); the first: {detail}")
}

fn share(share: f64) -> String {
    let percent = 100.0 * share;
    if percent > 0.0 && percent < 0.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn account(endings: &[(&str, u64)]) -> AccountStatus {
        let endings: BTreeMap<String, u64> =
            endings.iter().map(|(ending, count)| ((*ending).to_owned(), *count)).collect();
        AccountStatus { issued: 0, in_flight: 0, endings, unaccounted: 0, late_results: 0 }
    }

    #[test]
    fn what_did_not_train_is_said_in_shares() {
        let losses = of_losses(&account(&[
            ("trained", 700),
            ("filtered{no_signal}", 100),
            ("filtered{strategy}", 198),
            ("failed{unsupported}", 2),
        ]));
        assert_eq!(losses, "filtered 30 % (no_signal 10 %, strategy 20 %), failed 0.2 % (unsupported 0.2 %)");
        assert_eq!(of_losses(&account(&[("trained", 5)])), "");
        assert_eq!(of_losses(&account(&[])), "");
    }

    #[test]
    fn an_evaluation_is_one_line() {
        let mut evaluation: EvaluationRecord = serde_json::from_value(serde_json::json!({
            "version": 12, "drawn_by": 12.0, "time": 0, "seconds": 1.0, "prompts": 8, "responses": 8, "failed": 0,
            "response_tokens": 80, "score_mean": 0.31, "score_deviation": 0.1, "outcome_mean": 0.3125,
            "truncated": 0.0, "is_best": true, "ends_run": false
        }))
        .unwrap();
        assert_eq!(of_evaluation(&evaluation), "held-out v12: score +0.310, pass@1 31.2 % (best so far)");
        (evaluation.outcome_mean, evaluation.failed, evaluation.ends_run) = (None, 2, true);
        evaluation.several_turns = 0.25;
        let text = of_evaluation(&evaluation);
        assert_eq!(
            text,
            "held-out v12: score +0.310, several turns 25 %, 2 responses failed (no better for too long: the run ends)"
        );
    }

    #[test]
    fn what_was_not_measured_is_not_a_figure() {
        let step = serde_json::json!({
            "batch": 1, "time": 0, "prompts": 1, "responses": 2, "score_mean": 0.5, "outcome_mean": null,
            "response_tokens_mean": 7.0, "truncated": 0.0, "reliability": {"unfiltered": null, "filtered": null},
            "metrics": {"entropy": 0.5, "clip_fraction": 0.031, "policy_grad_norm": 1.5, "step_seconds": 0.25}
        });
        let mut step: StepRecord = serde_json::from_value(step).unwrap();
        assert_eq!(
            of_step(&step),
            "score +0.500, length 7.0, entropy 0.50, clipped 3 %, gradient 1.50, 0.25 s/step"
        );
        step.metrics.kl_to_ref = Some(-0.0004);
        step.several_turns = 0.5;
        assert!(of_step(&step).contains("KL 0.000, length 7.0, several turns 50 %"), "{}", of_step(&step));
        step.several_turns = 0.0;
        step.metrics = serde_json::from_value(serde_json::json!({"skipped_steps": 2})).unwrap();
        assert_eq!(
            of_step(&step),
            "score +0.500, length 7.0, 2 optimizer steps skipped, 0.00 s/step",
            "a batch that was skipped has no figures"
        );
    }
}
