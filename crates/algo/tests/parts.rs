//! What must not depend on how a minibatch is divided or laid out: micro-batches, ranks, tokens that do not
//! count.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use algo::{
    Aggregation, ClipRange, Discount, ExplainedVariance, Gae, KlEstimator, KlTokens, Moments,
    PolicyObjective, PolicyTokens, RatioLevel, RatioSums, Responses, RewardShaping, ScoredTokens, Totals,
    ValueTokens, coefficients, policy_loss, whiten,
};
use proptest::prelude::*;

const AGGREGATIONS: [Aggregation; 5] = [
    Aggregation::TokenMean,
    Aggregation::SeqMeanTokenMean,
    Aggregation::SeqMeanTokenSum,
    Aggregation::SeqMeanTokenSumNorm,
    Aggregation::TokenSum,
];

const OBJECTIVES: [PolicyObjective; 4] = [
    clip(RatioLevel::Token),
    clip(RatioLevel::SequenceMean),
    clip(RatioLevel::SequenceProduct),
    PolicyObjective::Cispo { range: ClipRange { low: 1.0, high: 0.28 } },
];

const fn clip(level: RatioLevel) -> PolicyObjective {
    PolicyObjective::Clip { level, range: ClipRange { low: 0.2, high: 0.28 }, dual_clip: Some(3.0) }
}

/// A token: whether it counts, and its four numbers.
type Token = (bool, [f32; 4]);

#[derive(Debug, Clone, Default)]
struct Batch {
    lengths: Vec<usize>,
    weights: Vec<f32>,
    mask: Vec<bool>,
    columns: [Vec<f32>; 4],
}

impl Batch {
    fn of(responses: &[(f32, Vec<Token>)]) -> Self {
        let mut batch = Self::default();
        for (weight, tokens) in responses {
            batch.lengths.push(tokens.len());
            batch.weights.push(*weight);
            for (counts, numbers) in tokens {
                batch.mask.push(*counts);
                batch.columns.iter_mut().zip(numbers).for_each(|(column, number)| column.push(*number));
            }
        }
        batch
    }

    fn responses(&self) -> Responses<'_> {
        Responses::new(&self.lengths).unwrap().with_mask(&self.mask).unwrap()
    }

    fn totals(&self) -> Totals {
        Totals::of(self.responses(), &self.weights).unwrap()
    }

    /// Losses and the gradients of all four kinds of loss, one after the other.
    fn losses(&self, aggregation: Aggregation, totals: &Totals) -> (Vec<f64>, Vec<Vec<f32>>, RatioSums) {
        let responses = self.responses();
        let coefficients = &coefficients(aggregation, totals, 9, responses, &self.weights).unwrap();
        let [logprobs, old, advantages, other] = &self.columns;
        let mut result = (Vec::new(), Vec::new(), RatioSums::default());
        for objective in &OBJECTIVES {
            let tokens = PolicyTokens { responses, logprobs, old_logprobs: old, advantages, coefficients };
            let loss = policy_loss(objective, &tokens).unwrap();
            result.0.push(loss.loss);
            result.1.push(loss.gradient);
            result.2.merge(&loss.ratios);
        }
        let value =
            ValueTokens { responses, values: logprobs, old_values: old, returns: advantages, coefficients };
        let kl = KlTokens { responses, logprobs, ref_logprobs: other, coefficients };
        for term in [
            algo::value_loss(Some(0.2), &value).unwrap().term,
            algo::kl_loss(KlEstimator::K3, 0.1, &kl).unwrap(),
            algo::entropy_bonus(0.1, responses, other, coefficients).unwrap(),
            algo::negative_log_likelihood(responses, logprobs, coefficients).unwrap(),
        ] {
            result.0.push(term.loss);
            result.1.push(term.gradient);
        }
        result
    }

    fn gae(&self) -> algo::Advantages {
        let [rewards, values, ..] = &self.columns;
        algo::gae(
            Gae { discount: Discount::per_token(0.97), gae_lambda: 0.9 },
            self.responses(),
            rewards,
            values,
        )
        .unwrap()
    }
}

fn any_responses() -> impl Strategy<Value = Vec<(f32, Vec<Token>)>> {
    let token = (prop::bool::weighted(0.8), prop::array::uniform4(-2.0_f32..0.5));
    let weight = prop_oneof![Just(0.0_f32), Just(1.0), Just(2.0), 0.1_f32..3.0];
    prop::collection::vec((weight, prop::collection::vec(token, 0..7)), 1..8)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * a.abs().max(b.abs()).max(1.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Micro-batches and ranks: with the totals of the whole, the parts' losses add up and their gradients
    /// are the whole's, bit for bit.
    #[test]
    fn parts_of_a_minibatch_add_up(all in any_responses(), cuts in prop::collection::vec(0_usize..8, 0..4)) {
        let whole = Batch::of(&all);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(all.len())).chain([0, all.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<Batch> = cuts.windows(2).map(|cut| Batch::of(&all[cut[0]..cut[1]])).collect();
        let mut totals = Totals::default();
        parts.iter().for_each(|part| totals.merge(&part.totals()));
        prop_assert!(close(totals.tokens, whole.totals().tokens) && close(totals.responses, whole.totals().responses));
        // The coefficients must come from one and the same sum, as they do after an all-reduce.
        for aggregation in AGGREGATIONS {
            let (losses, gradients, ratios) = whole.losses(aggregation, &totals);
            let mut sums = vec![0.0; losses.len()];
            let mut joined = vec![Vec::new(); gradients.len()];
            let mut merged = RatioSums::default();
            for part in &parts {
                let (losses, gradients, ratios) = part.losses(aggregation, &totals);
                sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
                joined.iter_mut().zip(gradients).for_each(|(all, gradient)| all.extend(gradient));
                merged.merge(&ratios);
            }
            prop_assert!(losses.iter().zip(&sums).all(|(a, b)| close(*a, *b)), "{losses:?} {sums:?}");
            prop_assert_eq!(&gradients, &joined);
            prop_assert_eq!((ratios.tokens, ratios.clipped), (merged.tokens, merged.clipped));
            prop_assert_eq!(ratios.ratio_max, merged.ratio_max);
            prop_assert!(close(ratios.approx_kl, merged.approx_kl));
        }
    }

    /// Moments of ranks add up to those of the batch, and so does the explained variance.
    #[test]
    fn moments_of_ranks_add_up(all in any_responses(), cut in 0_usize..8) {
        let (left, right) = all.split_at(cut.min(all.len()));
        let of = |batch: &Batch| Moments::of_tokens("advantages", batch.responses(), &batch.columns[0]).unwrap();
        let explained = |batch: &Batch| {
            ExplainedVariance::of_tokens(batch.responses(), &batch.columns[0], &batch.columns[1]).unwrap()
        };
        let (whole, left, right) = (Batch::of(&all), Batch::of(left), Batch::of(right));
        let mut merged = of(&left);
        merged.merge(&of(&right));
        let expected = of(&whole);
        prop_assert!(close(merged.mean(), expected.mean()) && close(merged.variance(), expected.variance()));
        let mut merged = explained(&left);
        merged.merge(&explained(&right));
        match (merged.value(), explained(&whole).value()) {
            (Some(a), Some(b)) => prop_assert!((a - b).abs() < 1e-6 * a.abs().max(1.0)),
            (a, b) => prop_assert_eq!(a.is_some(), b.is_some()),
        }
    }

    /// Whatever stands on tokens that do not count (here NaN) changes nothing: the results are those of the
    /// batch without them.
    #[test]
    fn tokens_that_do_not_count_might_as_well_not_be_there(all in any_responses()) {
        let poisoned: Vec<_> = all.iter().map(|(weight, tokens)| {
            let poison = |&(counts, numbers): &Token| (counts, if counts { numbers } else { [f32::NAN; 4] });
            (*weight, tokens.iter().map(poison).collect::<Vec<_>>())
        }).collect();
        let packed: Vec<_> = all.iter().map(|(weight, tokens)| {
            (*weight, tokens.iter().copied().filter(|token| token.0).collect::<Vec<_>>())
        }).collect();
        let (poisoned, packed) = (Batch::of(&poisoned), Batch::of(&packed));
        let keep = |values: &[f32]| -> Vec<f32> {
            poisoned.responses().counted_tokens().map(|token| values[token]).collect()
        };
        for aggregation in AGGREGATIONS {
            let (losses, gradients, _) = poisoned.losses(aggregation, &poisoned.totals());
            let (expected, expected_gradients, _) = packed.losses(aggregation, &packed.totals());
            prop_assert_eq!(losses, expected);
            for (gradient, expected) in gradients.iter().zip(&expected_gradients) {
                prop_assert_eq!(&keep(gradient), expected);
                prop_assert!((0..gradient.len()).all(|i| poisoned.mask[i] || gradient[i] == 0.0));
            }
        }
        let (found, expected) = (poisoned.gae(), packed.gae());
        prop_assert_eq!(keep(&found.advantages), expected.advantages);
        prop_assert_eq!(keep(&found.returns), expected.returns);
    }

    /// Before the first update the ratio is exactly 1, nothing is clipped, and the KL is exactly 0.
    #[test]
    fn on_policy_ratios_are_exactly_one(all in any_responses()) {
        let mut batch = Batch::of(&all);
        batch.columns[1] = batch.columns[0].clone();
        let (_, _, ratios) = batch.losses(Aggregation::TokenMean, &batch.totals());
        if let Some(metrics) = ratios.metrics() {
            prop_assert_eq!((metrics.ratio_min, metrics.ratio_mean, metrics.ratio_max), (1.0, 1.0, 1.0));
            prop_assert_eq!((metrics.approx_kl, metrics.clip_fraction, metrics.dual_clip_fraction), (0.0, 0.0, 0.0));
        }
    }

    /// Whitened advantages have mean 0 and variance 1 over the tokens that count.
    #[test]
    fn whitened_advantages_are_standard(all in any_responses()) {
        let batch = Batch::of(&all);
        let mut advantages = batch.columns[0].clone();
        let moments = Moments::of_tokens("advantages", batch.responses(), &advantages).unwrap();
        whiten(&mut advantages, moments.mean(), moments.variance());
        let whitened = Moments::of_tokens("advantages", batch.responses(), &advantages).unwrap();
        prop_assert!(whitened.mean().abs() < 1e-5);
        if moments.variance() > 1e-2 {
            prop_assert!((whitened.variance() - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn a_mask_of_zeros_gives_zeros() {
    let tokens = vec![(false, [f32::NAN; 4]); 3];
    let batch = Batch::of(&[(1.0, tokens.clone()), (2.0, tokens)]);
    for aggregation in AGGREGATIONS {
        let (losses, gradients, ratios) = batch.losses(aggregation, &batch.totals());
        assert!(losses.iter().all(|&loss| loss == 0.0));
        assert!(gradients.iter().flatten().all(|&gradient| gradient == 0.0));
        assert_eq!(ratios.metrics(), None);
    }
}

#[test]
fn a_number_that_counts_and_is_not_finite_is_an_error_everywhere() {
    let mask = [true, true];
    let responses = Responses::new(&[2]).unwrap().with_mask(&mask).unwrap();
    let (good, bad) = ([0.5_f32, 0.5], [0.5_f32, f32::NAN]);
    let weights = [0.5, 0.5];
    for place in 0..3 {
        let column = |at: usize| if at == place { &bad } else { &good };
        let policy = PolicyTokens {
            responses,
            logprobs: column(0),
            old_logprobs: column(1),
            advantages: column(2),
            coefficients: &weights,
        };
        let value = ValueTokens {
            responses,
            values: column(0),
            old_values: column(1),
            returns: column(2),
            coefficients: &weights,
        };
        for objective in &OBJECTIVES {
            assert!(policy_loss(objective, &policy).unwrap_err().to_string().contains("[1] is NaN"));
        }
        assert!(algo::value_loss(None, &value).is_err());
    }
    let shaping = RewardShaping { kl_estimator: KlEstimator::K1, kl_coefficient: 0.1, score_clip: None };
    let tokens = ScoredTokens { responses, old_logprobs: &good, ref_logprobs: &bad, scores: &[0.0] };
    assert!(algo::token_rewards(&shaping, &tokens).is_err());
    assert!(
        algo::gae(Gae { discount: Discount::per_token(1.0), gae_lambda: 1.0 }, responses, &bad, &good)
            .is_err()
    );
    assert!(
        algo::gae(Gae { discount: Discount::per_token(1.1), gae_lambda: 1.0 }, responses, &good, &good)
            .is_err()
    );
    assert!(algo::returns_to_go(Discount::per_token(f64::NAN), responses, &good).is_err());
}
