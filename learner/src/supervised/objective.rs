//! From the outputs of a network's head to the loss's gradient in them: one function for each supervised
//! objective.

use algo::{
    Aggregation, Kto, LabelledResponses, Moments, PairLoss, PreferenceObjective, PreferencePairs, Responses,
    ScorePairs, Totals, bradley_terry, coefficients, kto_loss, negative_log_likelihood, preference_loss,
};

use crate::error::FormulaResult;
use crate::trainable_model::{HeadGradients, HeadOutputs};

/// What a minibatch measures; parts add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ObjectiveSums {
    /// The loss of the minibatch.
    pub(crate) loss: f64,
    /// Pairs whose chosen response is ahead, or examples on the right side of the reference point.
    pub(crate) correct: f64,
    /// Pairs or examples that were counted for `correct`.
    pub(crate) judged: f64,
    /// Sum of how far the chosen responses are ahead.
    pub(crate) margin: f64,
    /// Pairs, and the sum of the chosen responses' side of the margins.
    pub(crate) pairs: f64,
    pub(crate) chosen: f64,
    /// Tokens that the network saw.
    pub(crate) tokens: f64,
    /// The scores of responses, of a reward model.
    pub(crate) scores: Moments,
}

impl ObjectiveSums {
    /// What ranks add up.
    pub(crate) fn to_array(self) -> [f64; 10] {
        let Self { loss, correct, judged, margin, pairs, chosen, tokens, scores } = self;
        let Moments { count, sum, sum_of_squares } = scores;
        [loss, correct, judged, margin, pairs, chosen, tokens, count, sum, sum_of_squares]
    }

    /// The sums of all ranks.
    pub(crate) fn from_array(sums: [f64; 10]) -> Self {
        let [loss, correct, judged, margin, pairs, chosen, tokens, count, sum, sum_of_squares] = sums;
        let scores = Moments { count, sum, sum_of_squares };
        Self { loss, correct, judged, margin, pairs, chosen, tokens, scores }
    }

    /// Share of pairs or examples on the right side, if any were judged.
    pub(crate) fn accuracy(&self) -> Option<f64> {
        (self.judged > 0.0).then(|| self.correct / self.judged)
    }

    /// Mean of how far the right side is ahead, if any were judged.
    pub(crate) fn mean_margin(&self) -> Option<f64> {
        (self.judged > 0.0).then(|| self.margin / self.judged)
    }

    /// Mean rewards of the chosen and of the rejected responses of pairs, if there were any.
    pub(crate) fn mean_rewards(&self) -> Option<[f64; 2]> {
        (self.pairs > 0.0).then(|| [self.chosen, self.chosen - self.margin].map(|sum| sum / self.pairs))
    }

    fn add_pairs(&mut self, loss: &PairLoss) {
        let Moments { count, sum, .. } = loss.margins;
        self.loss += loss.loss;
        self.correct += loss.correct;
        self.judged += count;
        self.margin += sum;
        self.pairs += loss.chosen.count;
        self.chosen += loss.chosen.sum;
    }
}

/// An objective with what it knows of every example of its data set. An example has one sequence, or two of
/// which the first is preferred.
#[derive(Debug)]
pub(crate) enum Objective {
    /// Negative log-likelihood of responses.
    Likelihood { aggregation: Aggregation },
    /// Bradley-Terry on the scores of pairs, with a margin for each.
    BradleyTerry { margins: Vec<f32> },
    /// A loss on pairs, with the reference's summed log-probs of chosen and rejected responses.
    Preferences { objective: PreferenceObjective, reference: Vec<[f32; 2]> },
    /// KTO. An example's sequences are its response, and another example's response to its prompt, which only
    /// the reference point is taken from; the reference's summed log-probs are of both.
    Labelled { kto: Kto, desirable: Vec<bool>, reference: Vec<[f32; 2]> },
}

/// What is the same for all micro-batches of a minibatch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MinibatchTotals {
    /// Examples in the minibatch.
    pub(crate) examples: usize,
    /// Denominators of token losses.
    pub(crate) tokens: Totals,
    /// KTO's reference point.
    pub(crate) reference_point: f64,
}

/// A micro-batch as an objective sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObjectiveInput<'a> {
    pub(crate) minibatch: &'a MinibatchTotals,
    /// The numbers of the micro-batch's examples in the data set.
    pub(crate) examples: &'a [usize],
    /// Wanted rows of each of their sequences, one example after the other.
    pub(crate) lengths: &'a [usize],
    /// The outputs at those rows.
    pub(crate) outputs: &'a HeadOutputs,
}

impl Objective {
    /// The gradient of the loss of a micro-batch in the head's outputs; what it measures is added to `sums`.
    ///
    /// # Errors
    /// Outputs that are no numbers.
    pub(crate) fn gradient(
        &self,
        input: ObjectiveInput<'_>,
        sums: &mut ObjectiveSums,
    ) -> FormulaResult<HeadGradients> {
        let values = match self {
            Self::Likelihood { aggregation } => likelihood_gradient(*aggregation, input, sums)?,
            Self::BradleyTerry { margins } => bradley_terry_gradient(margins, input, sums)?,
            Self::Preferences { objective, reference } => {
                preference_gradient(objective, reference, input, sums)?
            }
            Self::Labelled { kto, desirable, reference } => {
                let desirable: Vec<bool> = input.examples.iter().map(|example| desirable[*example]).collect();
                let reference: Vec<f32> =
                    input.examples.iter().map(|example| reference[*example][0]).collect();
                kto_gradient(kto, &desirable, &reference, input, sums)?
            }
        };
        Ok(HeadGradients { values, entropies: None })
    }
}

/// In the log-probs of responses, `[tokens]`: `L = −Σ_it c_it log π(y_it | x_i, y_i<t)`.
fn likelihood_gradient(
    aggregation: Aggregation,
    input: ObjectiveInput<'_>,
    sums: &mut ObjectiveSums,
) -> FormulaResult<Vec<f32>> {
    let responses = Responses::new(input.lengths)?;
    let weights = vec![1.0; input.lengths.len()];
    let coefficients = coefficients(aggregation, &input.minibatch.tokens, 1, responses, &weights)?;
    let term = negative_log_likelihood(responses, &input.outputs.values, &coefficients)?;
    sums.loss += term.loss;
    Ok(term.gradient)
}

/// In the scores of pairs, `[pairs * 2]`: the mean of `−log σ(r_chosen − r_rejected − margin)`
/// (PF-PPO, arXiv 2409.06957, Eq. 2).
fn bradley_terry_gradient(
    margins: &[f32],
    input: ObjectiveInput<'_>,
    sums: &mut ObjectiveSums,
) -> FormulaResult<Vec<f32>> {
    let scores = &input.outputs.values;
    let [chosen_scores, rejected_scores] = alternate(scores);
    let margins: Vec<f32> = input.examples.iter().map(|example| margins[*example]).collect();
    let loss = bradley_terry(&ScorePairs {
        chosen_scores: &chosen_scores,
        rejected_scores: &rejected_scores,
        margins: Some(&margins),
        total: input.minibatch.examples,
    })?;
    sums.add_pairs(&loss);
    scores.iter().for_each(|score| sums.scores.push(f64::from(*score)));
    Ok(interleave(&loss))
}

/// In the log-probs of pairs, `[tokens]`: DPO, cDPO or IPO on the log-ratios of whole responses against the
/// reference.
fn preference_gradient(
    objective: &PreferenceObjective,
    reference: &[[f32; 2]],
    input: ObjectiveInput<'_>,
    sums: &mut ObjectiveSums,
) -> FormulaResult<Vec<f32>> {
    let [chosen_logprobs, rejected_logprobs] = alternate(&summed(input.lengths, &input.outputs.values));
    let [chosen_lengths, rejected_lengths] = alternate(input.lengths);
    let reference: Vec<f32> = input.examples.iter().flat_map(|example| reference[*example]).collect();
    let [ref_chosen_logprobs, ref_rejected_logprobs] = alternate(&reference);
    let loss = preference_loss(
        objective,
        &PreferencePairs {
            chosen_logprobs: &chosen_logprobs,
            rejected_logprobs: &rejected_logprobs,
            ref_chosen_logprobs: &ref_chosen_logprobs,
            ref_rejected_logprobs: &ref_rejected_logprobs,
            chosen_lengths: &chosen_lengths,
            rejected_lengths: &rejected_lengths,
            total: input.minibatch.examples,
        },
    )?;
    sums.add_pairs(&loss);
    Ok(spread(input.lengths, &interleave(&loss)))
}

/// In the log-probs of labelled responses, `[tokens]`: KTO (arXiv 2402.01306, Eq. 8). `desirable` and
/// `ref_logprobs` are those of the micro-batch.
fn kto_gradient(
    kto: &Kto,
    desirable: &[bool],
    ref_logprobs: &[f32],
    input: ObjectiveInput<'_>,
    sums: &mut ObjectiveSums,
) -> FormulaResult<Vec<f32>> {
    let reference_point = input.minibatch.reference_point;
    let logprobs = summed(input.lengths, &input.outputs.values);
    let loss = kto_loss(
        kto,
        reference_point,
        &LabelledResponses { logprobs: &logprobs, ref_logprobs, desirable, total: input.minibatch.examples },
    )?;
    sums.loss += loss.loss;
    for ((logprob, reference), desirable) in logprobs.iter().zip(ref_logprobs).zip(desirable) {
        let ahead = f64::from(*logprob) - f64::from(*reference) - reference_point;
        sums.correct += f64::from(u8::from((ahead > 0.0) == *desirable));
        sums.margin += if *desirable { ahead } else { -ahead };
        sums.judged += 1.0;
    }
    Ok(spread(input.lengths, &loss.gradient))
}

/// The sum over the rows of each sequence, `[sequences]`.
pub(crate) fn summed(lengths: &[usize], values: &[f32]) -> Vec<f32> {
    let mut rest = values;
    let mut sums = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (own, others) = rest.split_at(*length);
        rest = others;
        sums.push(own.iter().map(|value| f64::from(*value)).sum::<f64>() as f32);
    }
    sums
}

/// Gives every row of a sequence its sequence's number, `[rows]`.
fn spread(lengths: &[usize], sequences: &[f32]) -> Vec<f32> {
    let rows = lengths.iter().zip(sequences);
    rows.flat_map(|(length, value)| std::iter::repeat_n(*value, *length)).collect()
}

/// The elements at even places, and those at odd ones: of chosen and of rejected responses.
fn alternate<T: Copy>(values: &[T]) -> [Vec<T>; 2] {
    [0, 1].map(|first| values.iter().skip(first).step_by(2).copied().collect())
}

/// The gradients in chosen and rejected responses in turn.
fn interleave(loss: &PairLoss) -> Vec<f32> {
    let pairs = loss.chosen_gradient.iter().zip(&loss.rejected_gradient);
    pairs.flat_map(|(chosen, rejected)| [*chosen, *rejected]).collect()
}
