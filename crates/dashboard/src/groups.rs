//! The filter at work: how siblings rank by score, and which of them it keeps.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::samples::Window;

/// Groups that are shown one by one.
const SHOWN: usize = 40;

/// The answer.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Groups {
    /// Groups that were looked at.
    groups: usize,
    /// By rank within the group, the best first.
    ranks: Vec<Rank>,
    /// The newest groups, newest first.
    newest: Vec<Group>,
    /// Responses by why they were not kept.
    reasons: BTreeMap<String, usize>,
}

/// The siblings of one rank in all groups.
#[derive(Debug, Clone, Default, Serialize)]
struct Rank {
    responses: usize,
    kept: usize,
    score_mean: f64,
    /// Of those that have one.
    outcome_mean: Option<f64>,
    #[serde(skip)]
    outcomes: Vec<f64>,
}

/// The siblings of a prompt, the best score first.
#[derive(Debug, Serialize)]
struct Group {
    prompt: String,
    batch: Option<f64>,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Sibling {
    score: f64,
    kept: bool,
    outcome: Option<f64>,
}

impl Groups {
    /// Of the newest samples.
    pub(crate) fn of(window: &Window) -> Self {
        let mut order = Vec::new();
        let mut by_key: BTreeMap<String, Group> = BTreeMap::new();
        let mut this = Self::default();
        for sample in window.samples() {
            let (Some(key), Some(score)) = (key(&sample), sample.get("score").and_then(Value::as_f64)) else {
                continue;
            };
            let (kept, reason) = fate(&sample);
            if let Some(reason) = reason {
                *this.reasons.entry(reason).or_default() += 1;
            }
            let group = by_key.entry(key).or_insert_with_key(|key| {
                order.push(key.clone());
                let prompt = sample.get("prompt").and_then(Value::as_str).unwrap_or_default();
                Group {
                    prompt: prompt.chars().take(200).collect(),
                    batch: sample.get("batch").and_then(Value::as_f64),
                    siblings: Vec::new(),
                }
            });
            group.siblings.push(Sibling { score, kept, outcome: outcome(&sample) });
        }
        for key in order {
            let Some(mut group) = by_key.remove(&key) else { continue };
            group.siblings.sort_by(|one, other| other.score.total_cmp(&one.score));
            this.add(&group);
            if this.newest.len() < SHOWN {
                this.newest.push(group);
            }
        }
        for rank in &mut this.ranks {
            rank.score_mean /= rank.responses.max(1) as f64;
            let count = rank.outcomes.len();
            rank.outcome_mean = (count > 0).then(|| rank.outcomes.iter().sum::<f64>() / count as f64);
        }
        this
    }

    fn add(&mut self, group: &Group) {
        self.groups += 1;
        if self.ranks.len() < group.siblings.len() {
            self.ranks.resize(group.siblings.len(), Rank::default());
        }
        for (rank, sibling) in self.ranks.iter_mut().zip(&group.siblings) {
            rank.responses += 1;
            rank.kept += usize::from(sibling.kept);
            rank.score_mean += sibling.score;
            rank.outcomes.extend(sibling.outcome);
        }
    }
}

/// What siblings have in common: their prompt.
fn key(sample: &Value) -> Option<String> {
    sample.get("prompt_id").and_then(Value::as_str).map(str::to_owned)
}

/// Whether it trains, and else why not.
fn fate(sample: &Value) -> (bool, Option<String>) {
    match sample.get("fate").and_then(Value::as_str) {
        Some("trains") => (true, None),
        other => (false, other.map(str::to_owned)),
    }
}

fn outcome(sample: &Value) -> Option<f64> {
    sample.get("outcome").and_then(Value::as_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_rank_by_score_and_the_kept_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let mut lines = String::new();
        for (prompt, score, fate, outcome) in [
            ("e0-p1", 0.5, "trains", 1),
            ("e0-p1", -1.0, "trains", 0),
            ("e0-p1", 0.1, "filtered{strategy}", 0),
            ("e0-p2", 2.0, "trains", 1),
            ("e0-p2", 1.0, "filtered{strategy}", 1),
        ] {
            lines += &format!(
                "{{\"prompt_id\":\"{prompt}\",\"prompt\":null,\"score\":{score},\"outcome\":{outcome},\
                 \"fate\":\"{fate}\"}}\n"
            );
        }
        lines += "{\"no\": \"sample\"}\n";
        std::fs::write(&path, lines).unwrap();
        let groups = Groups::of(&Window::read(&path).unwrap());
        assert_eq!(groups.groups, 2);
        let ranks: Vec<(usize, usize, f64, Option<f64>)> = groups
            .ranks
            .iter()
            .map(|rank| (rank.responses, rank.kept, rank.score_mean, rank.outcome_mean))
            .collect();
        assert_eq!(ranks, [(2, 2, 1.25, Some(1.0)), (2, 0, 0.55, Some(0.5)), (1, 1, -1.0, Some(0.0))]);
        assert_eq!(groups.reasons["filtered{strategy}"], 2);
        assert_eq!(groups.newest[0].siblings[0].score, 2.0, "the newest group first, its best first");
    }
}
