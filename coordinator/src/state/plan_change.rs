//! What may change of a plan while its run goes on. Everything else is refused by name.

use std::collections::{BTreeMap, BTreeSet};

use service::config::fields_of;

use super::plan::RunPlan;

/// Keys that may change: how much is done at a time, how long is waited, and how far the run goes. A change
/// is in force from the restart on.
const MAY_CHANGE: [&str; 22] = [
    "batches",
    "broadcast_members",
    "broadcast_timeout",
    "drain_timeout",
    "evaluation.every",
    "evaluation.stop_after",
    "filtration.auto.margin",
    "filtration.auto.min_groups",
    "filtration.auto.windows",
    "heartbeat_timeout",
    "hopeless_groups",
    "hopeless_timeout",
    "lease_prompts",
    "lease_timeout",
    "max_attempts",
    "max_prompts_in_flight",
    "max_refill_batches",
    "max_staleness",
    "min_group",
    "sampling.max_new_tokens",
    "standstill_timeout",
    "straggler_timeout",
];
/// Of these, the ones that deterministic mode fixes.
const FIXED_IN_DETERMINISTIC_MODE: [&str; 8] = [
    "filtration.auto.margin",
    "filtration.auto.min_groups",
    "filtration.auto.windows",
    "lease_prompts",
    "max_refill_batches",
    "max_staleness",
    "min_group",
    "sampling.max_new_tokens",
];

/// Of what the other roles are told: keys, or what all keys below a section begin with, and when a change of
/// them takes effect; none where it cannot, because the run goes on from its checkpoints and journal. The
/// longest that fits decides; what none fits may not change.
const OTHER_ROLES: [(&str, Option<&str>); 16] = [
    ("actor.", Some("for responses that are begun from now on")),
    ("learner.broadcast_timeout", Some("from now on")),
    ("learner.checkpoint_every", Some("from now on")),
    ("learner.connect_timeout", Some("from now on")),
    ("learner.device", Some("from now on")),
    ("learner.heartbeat_interval", Some("from now on")),
    ("learner.join_timeout", Some("from now on")),
    ("learner.keep_checkpoints", Some("from now on")),
    ("learner.rank_timeout", Some("from now on")),
    ("learner.threads", Some("from now on")),
    ("learner.ppo.", Some("from the next batch on")),
    ("learner.ppo.algorithm", None),
    ("learner.ppo.lora", None),
    ("reward_server.", Some("for responses that are scored from now on")),
    ("reward_server.deterministic", None),
    ("reward_server.tokenizer", None),
];

/// What differs between two plans, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PlanChanges {
    /// What may change, and has.
    pub(crate) allowed: Vec<String>,
    /// What would change the meaning of the journal, or have no effect.
    pub(crate) refused: Vec<String>,
}

impl RunPlan {
    /// Why this plan cannot continue a run that began under `began`: what would change the meaning of its
    /// journal, or have no effect.
    pub fn conflicts_with(&self, began: &Self) -> Vec<String> {
        self.changes_since(began).refused
    }

    /// What has changed since a run began under `began`.
    pub(crate) fn changes_since(&self, began: &Self) -> PlanChanges {
        let mut changes = PlanChanges::default();
        for (name, before, now) in differences(&began.fields(), &self.fields()) {
            let change = format!("{name} was {before} when the run began and is {now} now");
            let fixed = self.deterministic && FIXED_IN_DETERMINISTIC_MODE.contains(&name);
            if MAY_CHANGE.contains(&name) && !fixed {
                changes.allowed.push(change);
            } else {
                changes.refused.push(change);
            }
        }
        // A journal of an older release does not know what they were told.
        let (then, now) =
            if began.told.is_empty() { (&self.told, &self.told) } else { (&began.told, &self.told) };
        for (name, before, now) in differences(then, now) {
            let change = format!("{name} was {before} when the run began and is {now} now");
            match effect_of(name) {
                Some(effect) => changes.allowed.push(format!("{change}: {effect}")),
                // A key that the release before did not have.
                None if before == ABSENT => changes.allowed.push(change),
                None => changes.refused.push(change),
            }
        }
        changes
    }

    /// Every value of its own by its key.
    fn fields(&self) -> BTreeMap<String, String> {
        fields_of("", &Self { told: BTreeMap::new(), ..self.clone() })
    }
}

/// What a key is that one side does not have.
const ABSENT: &str = "absent";

/// Keys whose values differ, with both.
fn differences<'a>(
    then: &'a BTreeMap<String, String>,
    now: &'a BTreeMap<String, String>,
) -> Vec<(&'a str, &'a str, &'a str)> {
    fn value<'a>(of: &'a BTreeMap<String, String>, name: &str) -> &'a str {
        of.get(name).map_or(ABSENT, String::as_str)
    }
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let both = names.into_iter().map(|name| (name.as_str(), value(then, name), value(now, name)));
    both.filter(|(_, then, now)| then != now).collect()
}

/// Whether a key is this one or below it.
fn is_within(name: &str, key: &str) -> bool {
    let rest = name.strip_prefix(key);
    rest.is_some_and(|rest| key.ends_with('.') || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// When a change of what another role is told takes effect; none where it must not change.
fn effect_of(name: &str) -> Option<&'static str> {
    let rules = OTHER_ROLES.iter().filter(|(key, _)| is_within(name, key));
    rules.max_by_key(|(key, _)| key.len()).and_then(|(_, effect)| *effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_key_that_fits_decides() {
        assert_eq!(effect_of("learner.ppo.policy_lr"), Some("from the next batch on"));
        assert_eq!(effect_of("learner.ppo.lora.rank"), None);
        assert_eq!(effect_of("learner.ppo.algorithm"), None);
        assert_eq!(effect_of("learner.policy"), None, "it goes on from its checkpoint");
        assert_eq!(effect_of("learner.threads"), Some("from now on"));
        assert_eq!(effect_of("learner.threads_more"), None);
        assert_eq!(effect_of("reward_server.tokenizer"), None);
        assert!(effect_of("reward_server.scorers[1].weight").is_some());
    }
}
