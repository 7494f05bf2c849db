//! What may change of a plan while its run goes on. Everything else is refused by name.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

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

/// What differs between two plans, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PlanChanges {
    /// What may change, and has.
    pub(crate) allowed: Vec<String>,
    /// What would change the meaning of the journal.
    pub(crate) refused: Vec<String>,
}

impl RunPlan {
    /// Why this plan cannot continue a run that began under `began`: what would change the meaning of its
    /// journal.
    pub fn conflicts_with(&self, began: &Self) -> Vec<String> {
        self.changes_since(began).refused
    }

    /// What has changed since a run began under `began`.
    pub(crate) fn changes_since(&self, began: &Self) -> PlanChanges {
        let (then, now) = (began.fields(), self.fields());
        let mut changes = PlanChanges::default();
        for (name, value) in &now {
            let before = then.get(name).map_or("absent", String::as_str);
            if before == value {
                continue;
            }
            let change = format!("{name} was {before} when the run began and is {value} now");
            let fixed = self.deterministic && FIXED_IN_DETERMINISTIC_MODE.contains(&name.as_str());
            if MAY_CHANGE.contains(&name.as_str()) && !fixed {
                changes.allowed.push(change);
            } else {
                changes.refused.push(change);
            }
        }
        changes
    }

    /// Every value by its key.
    fn fields(&self) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        if let Ok(Value::Object(plan)) = serde_json::to_value(self) {
            for (name, value) in plan {
                flatten(name, value, &mut fields);
            }
        }
        fields
    }
}

fn flatten(name: String, value: Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(parts) => match serde_json::from_value::<Duration>(Value::Object(parts.clone())) {
            Ok(duration) => drop(fields.insert(name, format!("{duration:?}"))),
            Err(_) => {
                for (part, value) in parts {
                    flatten(format!("{name}.{part}"), value, fields);
                }
            }
        },
        Value::String(text) => drop(fields.insert(name, text)),
        other => drop(fields.insert(name, other.to_string())),
    }
}
