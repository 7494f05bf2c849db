//! The log's words for what the state noticed: WARN where the run has recovered from something, or
//! cannot.

use crate::metrics;
use crate::state::{Alarm, Notice};

/// Logs a notice.
pub(crate) fn log(notice: &Notice) {
    match notice {
        Notice::ActorLost { member, timeout } => {
            tracing::warn!(%member, seconds = timeout.as_secs_f64(), "actor lost: silent for too long");
        }
        Notice::LeaseExpired { lease, member, attempts } => {
            tracing::warn!(%lease, %member, attempts, "lease expired: issuing its prompts anew");
        }
        Notice::WeightsFailed { member, version, detail } => {
            tracing::warn!(%member, %version, detail, "actor did not get the weights");
        }
        Notice::BroadcastGroupFailed { group, member, detail } => {
            tracing::warn!(%group, %member, detail, "broadcast group failed");
        }
        Notice::BroadcastGroupEnded { group, member } => {
            tracing::warn!(%group, %member, "broadcast group ended: a member did not receive");
        }
        Notice::BroadcastThroughHosts { group, reason } => {
            tracing::warn!(%group, reason, "weights are broadcast through the hosts' memory and not from GPU to GPU");
        }
        Notice::BroadcastGroupUnformed { group, absent, timeout } => {
            tracing::warn!(%group, ?absent, seconds = timeout.as_secs_f64(), "broadcast group not formed in time");
        }
        Notice::BroadcastFailed { version, detail } => {
            tracing::warn!(%version, detail, "broadcast failed");
        }
        Notice::BroadcastUnconfirmed { version, silent, timeout } => {
            tracing::warn!(%version, ?silent, seconds = timeout.as_secs_f64(), "broadcast not confirmed in time");
        }
        Notice::PlanChanged { changes } => {
            for change in changes {
                tracing::info!(change, "the run goes on under another plan");
            }
        }
        Notice::WaitEnded { batch, timeout } => {
            tracing::warn!(%batch, seconds = timeout.as_secs_f64(), "the batch waits no longer for its oldest groups");
        }
        Notice::RefillLimit { batch, groups: 0, of, in_vain } => {
            tracing::warn!(%batch, of, in_vain, "no group of the batch can be trained: it waits for others");
        }
        Notice::RefillLimit { batch, groups, of, in_vain } => {
            metrics::batch_short();
            tracing::warn!(%batch, groups, of, in_vain, "refills are used up: the batch goes on with fewer groups");
        }
        Notice::StrategyChosen { before, strategy, reason } => {
            metrics::strategy_changed();
            tracing::info!(%before, %strategy, reason, "another filtration strategy was chosen");
        }
        Notice::VocabularyUnsaid { role, member } => {
            let advice = "as older versions do not: whether it reads the policy's tokens is not checked";
            tracing::warn!(role = role.name(), %member, advice, "does not say which tokenizer it has");
        }
        Notice::FirstFailure { reason, role, member, detail } => {
            let role = role.name();
            tracing::warn!(role, %reason, %member, detail, "an attempt failed; others of its kind are counted");
        }
        Notice::MoreFailures { reason, role, count, within } => {
            let (role, seconds) = (role.name(), within.as_secs());
            tracing::warn!(role, %reason, count, seconds, "more attempts failed");
        }
        Notice::Alarm(Alarm { detector, raised: true, detail }) => {
            let detector = detector.name();
            let advice = "the highest scores with failed tests are on the page (Samples) and in worst.json";
            tracing::warn!(detector, detail, advice, "the reward may be gamed");
        }
        Notice::Alarm(Alarm { detector, raised: false, detail }) => {
            tracing::info!(
                detector = detector.name(),
                detail,
                "the reward no longer looks gamed in this way"
            );
        }
        Notice::Hopeless { cause, timeout } => {
            tracing::warn!(%cause, ends_after = ?timeout, "the run cannot go on like this");
        }
        Notice::GivenUp { cause } => tracing::error!(%cause, "the run is given up: stopping"),
        Notice::GroupStale { prompt, oldest, batch } => {
            tracing::info!(%prompt, drawn_at = %oldest, %batch, "group dropped: too old for its batch");
        }
    }
}
