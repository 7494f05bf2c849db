//! The examples of a file as sequences, and what is learnt from them.

use super::mixture::Portion;
use super::objective::Objective;
use crate::microbatch::Sequence;
use crate::microbatch_split::SplitItem;

/// Examples of equally many sequences each.
#[derive(Debug)]
pub(crate) struct ExampleSequences {
    /// The first example's sequences, then the second's.
    pub(crate) sequences: Vec<Sequence>,
    /// Sequences of an example.
    pub(crate) per_example: usize,
    /// Which examples are taken how often in a pass.
    pub(crate) portions: Vec<Portion>,
}

/// Examples and what is learnt from them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dataset<'a> {
    pub(crate) examples: &'a ExampleSequences,
    pub(crate) objective: &'a Objective,
}

impl ExampleSequences {
    /// Number of examples.
    pub(crate) fn len(&self) -> usize {
        self.sequences.len() / self.per_example
    }

    /// The first `count` sequences of each of these examples.
    pub(crate) fn first_of<'a>(&'a self, examples: &[usize], count: usize) -> Vec<&'a Sequence> {
        examples
            .iter()
            .flat_map(|example| self.sequences[example * self.per_example..].iter().take(count))
            .collect()
    }

    /// Examples with the tokens of their first `count` sequences.
    pub(crate) fn split_items(&self, examples: &[usize], count: usize) -> Vec<SplitItem> {
        let mut items = Vec::with_capacity(examples.len());
        for index in examples {
            let tokens = self.first_of(&[*index], count).iter().map(|sequence| sequence.tokens()).sum();
            items.push(SplitItem { index: *index, tokens });
        }
        items
    }
}

impl Dataset<'_> {
    /// Sequences of an example that gradients are taken of. KTO's second is only for the reference point.
    pub(crate) fn trained_sequences(&self) -> usize {
        match self.objective {
            Objective::Labelled { .. } => 1,
            Objective::Likelihood { .. } | Objective::BradleyTerry { .. } | Objective::Preferences { .. } => {
                self.examples.per_example
            }
        }
    }
}

/// Wanted rows of each sequence.
pub(crate) fn wanted_rows(sequences: &[&Sequence]) -> Vec<usize> {
    sequences.iter().map(|sequence| sequence.wanted()).collect()
}
