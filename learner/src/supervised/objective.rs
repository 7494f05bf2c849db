//! From the network's numbers to the gradient in them, for each supervised objective.

use algo::{
    Aggregation, Kto, LabelledResponses, Moments, PairLoss, PreferenceObjective, PreferencePairs, Responses,
    ScorePairs, Totals, bradley_terry, coefficients, kto_loss, negative_log_likelihood, preference_loss,
};

use crate::microbatch::Sequence;
use crate::trainee::{NumberGradients, Numbers};

/// What a minibatch measures; parts add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sums {
    /// The loss.
    pub(crate) loss: f64,
    /// Pairs whose chosen response is ahead, or examples on the right side of the reference point.
    pub(crate) correct: f64,
    /// Pairs or examples that were counted for `correct`.
    pub(crate) judged: f64,
    /// Sum of how far the chosen responses are ahead.
    pub(crate) margin: f64,
    /// Tokens that the network saw.
    pub(crate) tokens: f64,
    /// The scores of responses, of a reward model.
    pub(crate) scores: Moments,
}

impl Sums {
    /// What ranks add up.
    pub(crate) fn numbers(&self) -> [f64; 8] {
        let Moments { count, sum, sum_of_squares } = self.scores;
        [self.loss, self.correct, self.judged, self.margin, self.tokens, count, sum, sum_of_squares]
    }

    /// The sums of all ranks.
    pub(crate) fn from_numbers(numbers: [f64; 8]) -> Self {
        let [loss, correct, judged, margin, tokens, count, sum, sum_of_squares] = numbers;
        let scores = Moments { count, sum, sum_of_squares };
        Self { loss, correct, judged, margin, tokens, scores }
    }

    /// Share of pairs or examples on the right side, if any were judged.
    pub(crate) fn accuracy(&self) -> Option<f64> {
        (self.judged > 0.0).then(|| self.correct / self.judged)
    }

    /// Mean of how far the right side is ahead, if any were judged.
    pub(crate) fn mean_margin(&self) -> Option<f64> {
        (self.judged > 0.0).then(|| self.margin / self.judged)
    }
}

/// An objective with what it knows of every item; an item is an example or a pair.
#[derive(Debug)]
pub(crate) enum Objective {
    /// Negative log-likelihood of responses.
    Likelihood { aggregation: Aggregation },
    /// Bradley-Terry on the scores of pairs, with a margin for each.
    Scores { margins: Vec<f32> },
    /// A loss on pairs, with the reference's summed log-probs of chosen and rejected responses.
    Pairs { objective: PreferenceObjective, reference: Vec<[f32; 2]> },
    /// KTO. An item's sequences are its response, and another item's response to its prompt, which only the reference point
    /// is taken from; the reference's summed log-probs are of both.
    Labelled { kto: Kto, desirable: Vec<bool>, reference: Vec<[f32; 2]> },
}

/// What is the same for all micro-batches of a minibatch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Whole {
    /// Items in the minibatch.
    pub(crate) items: usize,
    /// Denominators of token losses.
    pub(crate) totals: Totals,
    /// KTO's reference point.
    pub(crate) reference_point: f64,
}

/// The items of a micro-batch with the lengths of their wanted rows.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(crate) items: &'a [usize],
    /// Of all their sequences, one item after the other.
    pub(crate) lengths: Vec<usize>,
}

impl<'a> Part<'a> {
    pub(crate) fn new(items: &'a [usize], sequences: &[&Sequence]) -> Self {
        Self { items, lengths: sequences.iter().map(|sequence| sequence.wanted()).collect() }
    }
}

impl Objective {
    /// The gradient of the loss of a micro-batch in the network's numbers.
    pub(crate) fn gradient(
        &self,
        whole: &Whole,
        part: &Part<'_>,
        numbers: &Numbers,
        sums: &mut Sums,
    ) -> Result<NumberGradients, algo::Error> {
        let values = match self {
            Self::Likelihood { aggregation } => {
                let responses = Responses::new(&part.lengths)?;
                let weights = vec![1.0; part.lengths.len()];
                let coefficients = coefficients(*aggregation, &whole.totals, 1, responses, &weights)?;
                let term = negative_log_likelihood(responses, &numbers.values, &coefficients)?;
                sums.loss += term.loss;
                term.gradient
            }
            Self::Scores { margins } => {
                let [chosen_scores, rejected_scores] = alternate(&numbers.values);
                let margins: Vec<f32> = part.items.iter().map(|item| margins[*item]).collect();
                let loss = bradley_terry(&ScorePairs {
                    chosen_scores: &chosen_scores,
                    rejected_scores: &rejected_scores,
                    margins: Some(&margins),
                    total: whole.items,
                })?;
                sums.count(&loss);
                numbers.values.iter().for_each(|score| sums.scores.push(f64::from(*score)));
                interleave(&loss)
            }
            Self::Pairs { objective, reference } => {
                let [chosen, rejected] = alternate(&summed(&part.lengths, &numbers.values));
                let [chosen_lengths, rejected_lengths] = alternate(&part.lengths);
                let of_reference: Vec<f32> = part.items.iter().flat_map(|item| reference[*item]).collect();
                let [ref_chosen, ref_rejected] = alternate(&of_reference);
                let loss = preference_loss(
                    objective,
                    &PreferencePairs {
                        chosen_logprobs: &chosen,
                        rejected_logprobs: &rejected,
                        ref_chosen_logprobs: &ref_chosen,
                        ref_rejected_logprobs: &ref_rejected,
                        chosen_lengths: &chosen_lengths,
                        rejected_lengths: &rejected_lengths,
                        total: whole.items,
                    },
                )?;
                sums.count(&loss);
                spread(&part.lengths, &interleave(&loss))
            }
            Self::Labelled { kto, desirable, reference } => {
                let logprobs = summed(&part.lengths, &numbers.values);
                let ref_logprobs: Vec<f32> = part.items.iter().map(|item| reference[*item][0]).collect();
                let desirable: Vec<bool> = part.items.iter().map(|item| desirable[*item]).collect();
                let loss = kto_loss(
                    kto,
                    whole.reference_point,
                    &LabelledResponses {
                        logprobs: &logprobs,
                        ref_logprobs: &ref_logprobs,
                        desirable: &desirable,
                        total: whole.items,
                    },
                )?;
                sums.loss += loss.loss;
                for ((logprob, reference), desirable) in logprobs.iter().zip(&ref_logprobs).zip(&desirable) {
                    let ahead = f64::from(*logprob) - f64::from(*reference) - whole.reference_point;
                    sums.correct += f64::from(u8::from((ahead > 0.0) == *desirable));
                    sums.margin += if *desirable { ahead } else { -ahead };
                    sums.judged += 1.0;
                }
                spread(&part.lengths, &loss.gradient)
            }
        };
        Ok(NumberGradients { values, entropies: None })
    }
}

impl Sums {
    fn count(&mut self, loss: &PairLoss) {
        let Moments { count, sum, .. } = loss.margins;
        self.loss += loss.loss;
        self.correct += loss.correct;
        self.judged += count;
        self.margin += sum;
    }
}

/// The sum over the rows of each sequence.
pub(crate) fn summed(lengths: &[usize], values: &[f32]) -> Vec<f32> {
    let mut rest = values;
    let sum = |length: &usize| {
        let (own, others) = rest.split_at(*length);
        rest = others;
        own.iter().map(|value| f64::from(*value)).sum::<f64>() as f32
    };
    lengths.iter().map(sum).collect()
}

/// Gives every row of a sequence its sequence's number.
fn spread(lengths: &[usize], of_sequences: &[f32]) -> Vec<f32> {
    lengths
        .iter()
        .zip(of_sequences)
        .flat_map(|(length, value)| std::iter::repeat_n(*value, *length))
        .collect()
}

/// The elements at even places, and those at odd ones.
fn alternate<T: Copy>(values: &[T]) -> [Vec<T>; 2] {
    let every_second = |first| values.iter().skip(first).step_by(2).copied().collect();
    [every_second(0), every_second(1)]
}

fn interleave(loss: &PairLoss) -> Vec<f32> {
    loss.chosen_gradient
        .iter()
        .zip(&loss.rejected_gradient)
        .flat_map(|(chosen, rejected)| [*chosen, *rejected])
        .collect()
}
