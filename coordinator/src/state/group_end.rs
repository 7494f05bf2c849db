//! What became of a group, for people: its responses and why each does or does not train.

use types::{BatchId, Ending, PromptId};

use super::fact::ScoreSummary;
use super::filter::{Decided, Filtered};
use super::groups::CompleteGroup;

/// A complete group and what was decided about it.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupEnd {
    /// The prompt.
    pub prompt: PromptId,
    /// The batch that was being filled.
    pub batch: BatchId,
    /// The scored responses, in the order of siblings.
    pub responses: Vec<EndedResponse>,
}

/// A scored response and what was decided about it.
#[derive(Debug, Clone, PartialEq)]
pub struct EndedResponse {
    /// The response.
    pub summary: ScoreSummary,
    /// Its weight in the policy loss; 0 where it does not train.
    pub weight: f32,
    /// Why it does not train; none where it does.
    pub ending: Option<Ending>,
}

impl GroupEnd {
    /// What the filtration of a group came to.
    pub(super) fn of(group: &CompleteGroup, batch: BatchId, filtered: &Filtered) -> Self {
        let mut responses = Vec::with_capacity(group.scored.len());
        for summary in &group.scored {
            let weight = filtered.weight(summary.id);
            let ending = (weight == 0.0).then_some(filtered.ending);
            responses.push(EndedResponse { summary: summary.clone(), weight, ending });
        }
        Self { prompt: group.prompt, batch, responses }
    }

    /// What a batch decided on one of its groups; what does not train of it ends like this.
    pub(super) fn decided(batch: BatchId, decided: &Decided, ending: Ending) -> Self {
        let mut responses = Vec::with_capacity(decided.scored.len());
        for (summary, weight) in decided.scored.iter().zip(&decided.weights) {
            let ending = (*weight == 0.0).then_some(ending);
            responses.push(EndedResponse { summary: summary.clone(), weight: *weight, ending });
        }
        Self { prompt: decided.prompt, batch, responses }
    }
}
