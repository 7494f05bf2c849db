//! The gradient of every loss against central finite differences.
//!
//! The losses are f64 functions of f32 inputs, so a step of 2^-11 is exact in the input and the quotient is
//! good to about 1e-7; gradients come back in f32. Random inputs are seeded; their distance from the kinks of
//! clips is then a fixed fact.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use algo::{
    Aggregation, ClipRange, KlEstimator, KlTokens, Kto, LabelledResponses, PolicyObjective, PolicyTokens,
    PreferenceObjective, PreferencePairs, RatioLevel, Responses, ScorePairs, Totals, ValueTokens,
    coefficients, policy_loss,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LENGTHS: [usize; 4] = [5, 1, 7, 3];
const TOKENS: usize = 16;
const WEIGHTS: [f32; 4] = [1.0, 2.0, 0.5, 1.5];
const SEEDS: std::ops::Range<u64> = 0..20;

struct Batch {
    mask: Vec<bool>,
    coefficients: Vec<f64>,
    rng: ChaCha8Rng,
}

impl Batch {
    fn new(seed: u64, aggregation: Aggregation) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mask: Vec<bool> = (0..TOKENS).map(|_| rng.next_u32() % 5 != 0).collect();
        let responses = Responses::new(&LENGTHS).unwrap().with_mask(&mask).unwrap();
        let totals = Totals::of(responses, &WEIGHTS).unwrap();
        let coefficients = coefficients(aggregation, &totals, 8, responses, &WEIGHTS).unwrap();
        Self { mask, coefficients, rng }
    }

    fn responses(&self) -> Responses<'_> {
        Responses::new(&LENGTHS).unwrap().with_mask(&self.mask).unwrap()
    }

    /// `count` numbers spread evenly over `centre ± spread`.
    fn draw(&mut self, count: usize, centre: f32, spread: f32) -> Vec<f32> {
        let unit = |rng: &mut ChaCha8Rng| (rng.next_u32() >> 8) as f32 / (1_u32 << 24) as f32;
        (0..count).map(|_| centre + spread * (2.0 * unit(&mut self.rng) - 1.0)).collect()
    }
}

/// Compares `gradient` with the finite differences of `loss` at `x`.
fn assert_gradient(x: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    assert_eq!(x.len(), gradient.len());
    for place in 0..x.len() {
        let at = |step: f32| {
            let mut x = x.to_vec();
            x[place] += step;
            (loss(&x), f64::from(x[place]))
        };
        let step = 1.0 / 2048.0;
        let ((above, x_above), (below, x_below)) = (at(step), at(-step));
        let expected = (above - below) / (x_above - x_below);
        let found = f64::from(gradient[place]);
        assert!((found - expected).abs() < 2e-6 * expected.abs().max(1.0), "at {place}: {found} {expected}");
    }
}

#[test]
fn clipped_policy_losses() {
    let mut clipped = 0.0;
    for level in [RatioLevel::Token, RatioLevel::SequenceMean, RatioLevel::SequenceProduct] {
        for dual_clip in [None, Some(1.5)] {
            for seed in SEEDS {
                let mut batch = Batch::new(seed, Aggregation::SeqMeanTokenMean);
                let logprobs = batch.draw(TOKENS, -1.0, 0.8);
                let old_logprobs = batch.draw(TOKENS, -1.0, 0.8);
                let advantages = batch.draw(TOKENS, 0.0, 2.0);
                let objective =
                    PolicyObjective::Clip { level, range: ClipRange { low: 0.2, high: 0.28 }, dual_clip };
                let loss = |logprobs: &[f32]| {
                    let tokens = PolicyTokens {
                        responses: batch.responses(),
                        logprobs,
                        old_logprobs: &old_logprobs,
                        advantages: &advantages,
                        coefficients: &batch.coefficients,
                    };
                    policy_loss(&objective, &tokens).unwrap()
                };
                let result = loss(&logprobs);
                clipped += result.ratios.clipped;
                assert_gradient(&logprobs, &result.gradient, |x| loss(x).loss);
            }
        }
    }
    assert!(clipped > 100.0, "the clipped branch was hardly tried");
}

/// CISPO's clipped ratio is detached, so its loss is compared with the weights held at their values.
#[test]
fn cispo_with_its_weights_held_constant() {
    for seed in SEEDS {
        let mut batch = Batch::new(seed, Aggregation::TokenMean);
        let logprobs = batch.draw(TOKENS, -1.0, 0.8);
        let old_logprobs = batch.draw(TOKENS, -1.0, 0.8);
        let advantages = batch.draw(TOKENS, 0.0, 2.0);
        let tokens = PolicyTokens {
            responses: batch.responses(),
            logprobs: &logprobs,
            old_logprobs: &old_logprobs,
            advantages: &advantages,
            coefficients: &batch.coefficients,
        };
        let range = ClipRange { low: 0.3, high: 0.28 };
        let result = policy_loss(&PolicyObjective::Cispo { range }, &tokens).unwrap();
        let weights: Vec<f64> = (0..TOKENS)
            .map(|i| (f64::from(logprobs[i]) - f64::from(old_logprobs[i])).exp().clamp(0.7, 1.28))
            .collect();
        let surrogate = |logprobs: &[f32]| {
            let term = |i: usize| {
                batch.coefficients[i] * weights[i] * f64::from(advantages[i]) * f64::from(logprobs[i])
            };
            -batch.responses().counted_tokens().map(term).sum::<f64>()
        };
        assert!((surrogate(&logprobs) - result.loss).abs() < 1e-12);
        assert_gradient(&logprobs, &result.gradient, surrogate);
    }
}

#[test]
fn kl_terms() {
    for estimator in
        [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3, KlEstimator::Abs, KlEstimator::K3Plus]
    {
        for seed in SEEDS {
            let mut batch = Batch::new(seed, Aggregation::TokenMean);
            let logprobs = batch.draw(TOKENS, -1.0, 1.0);
            let ref_logprobs = batch.draw(TOKENS, -1.0, 1.0);
            let loss = |estimator: KlEstimator, logprobs: &[f32]| {
                let tokens = KlTokens {
                    responses: batch.responses(),
                    logprobs,
                    ref_logprobs: &ref_logprobs,
                    coefficients: &batch.coefficients,
                };
                algo::kl_loss(estimator, 0.3, &tokens).unwrap()
            };
            let differentiated = if estimator == KlEstimator::K3Plus { KlEstimator::K2 } else { estimator };
            let gradient = loss(estimator, &logprobs).gradient;
            assert_gradient(&logprobs, &gradient, |x| loss(differentiated, x).loss);
        }
    }
}

#[test]
fn value_losses() {
    for value_clip in [None, Some(0.2)] {
        for seed in SEEDS {
            let mut batch = Batch::new(seed, Aggregation::TokenMean);
            let values = batch.draw(TOKENS, 0.0, 1.0);
            let old_values = batch.draw(TOKENS, 0.0, 1.0);
            let returns = batch.draw(TOKENS, 0.0, 1.0);
            let loss = |values: &[f32]| {
                let tokens = ValueTokens {
                    responses: batch.responses(),
                    values,
                    old_values: &old_values,
                    returns: &returns,
                    coefficients: &batch.coefficients,
                };
                algo::value_loss(value_clip, &tokens).unwrap().term
            };
            assert_gradient(&values, &loss(&values).gradient, |x| loss(x).loss);
        }
    }
}

#[test]
fn entropy_bonus_and_likelihood() {
    let mut batch = Batch::new(1, Aggregation::SeqMeanTokenSumNorm);
    let x = batch.draw(TOKENS, 1.0, 1.0);
    let (responses, coefficients) = (batch.responses(), &batch.coefficients);
    let bonus = |x: &[f32]| algo::entropy_bonus(0.01, responses, x, coefficients).unwrap();
    assert_gradient(&x, &bonus(&x).gradient, |x| bonus(x).loss);
    assert!(bonus(&x).loss < 0.0, "entropy lowers the loss");
    let likelihood = |x: &[f32]| algo::negative_log_likelihood(responses, x, coefficients).unwrap();
    assert_gradient(&x, &likelihood(&x).gradient, |x| likelihood(x).loss);
}

#[test]
fn bradley_terry() {
    for margin in [false, true] {
        let mut batch = Batch::new(2, Aggregation::TokenMean);
        let (chosen, rejected) = (batch.draw(6, 0.5, 3.0), batch.draw(6, 0.0, 3.0));
        let margins = batch.draw(6, 0.5, 0.5);
        let loss = |chosen_scores: &[f32], rejected_scores: &[f32]| {
            let margins = margin.then_some(margins.as_slice());
            algo::bradley_terry(&ScorePairs { chosen_scores, rejected_scores, margins, total: 9 }).unwrap()
        };
        let result = loss(&chosen, &rejected);
        assert_gradient(&chosen, &result.chosen_gradient, |x| loss(x, &rejected).loss);
        assert_gradient(&rejected, &result.rejected_gradient, |x| loss(&chosen, x).loss);
    }
}

#[test]
fn preference_losses() {
    let lengths = [3, 1, 12, 5, 2, 9];
    for objective in [
        PreferenceObjective::Dpo { beta: 0.1 },
        PreferenceObjective::Cdpo { beta: 0.5, label_smoothing: 0.2 },
        PreferenceObjective::Ipo { tau: 0.3, length_average: false },
        PreferenceObjective::Ipo { tau: 0.3, length_average: true },
    ] {
        let mut batch = Batch::new(3, Aggregation::TokenMean);
        let mut draw = || batch.draw(6, -10.0, 3.0);
        let (chosen, rejected, ref_chosen, ref_rejected) = (draw(), draw(), draw(), draw());
        let loss = |chosen_logprobs: &[f32], rejected_logprobs: &[f32]| {
            let pairs = PreferencePairs {
                chosen_logprobs,
                rejected_logprobs,
                ref_chosen_logprobs: &ref_chosen,
                ref_rejected_logprobs: &ref_rejected,
                chosen_lengths: &lengths,
                rejected_lengths: &[4; 6],
                total: 8,
            };
            algo::preference_loss(&objective, &pairs).unwrap()
        };
        let result = loss(&chosen, &rejected);
        assert_gradient(&chosen, &result.chosen_gradient, |x| loss(x, &rejected).loss);
        assert_gradient(&rejected, &result.rejected_gradient, |x| loss(&chosen, x).loss);
    }
}

#[test]
fn kto_with_its_reference_point_held_constant() {
    let kto = Kto { beta: 0.4, desirable_weight: 1.0, undesirable_weight: 1.3 };
    let mut batch = Batch::new(4, Aggregation::TokenMean);
    let (logprobs, ref_logprobs) = (batch.draw(6, -10.0, 3.0), batch.draw(6, -10.0, 3.0));
    let loss = |logprobs: &[f32]| {
        let examples = LabelledResponses {
            logprobs,
            ref_logprobs: &ref_logprobs,
            desirable: &[true, false, false, true, true, false],
            total: 7,
        };
        algo::kto_loss(&kto, 0.3, &examples).unwrap()
    };
    assert_gradient(&logprobs, &loss(&logprobs).gradient, |x| loss(x).loss);
}
