//! Vectors from the unit tests of other systems: same behaviour on the same numbers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use algo::{Aggregation, Discount, Gae, Moments, Responses, Totals, ValueTokens, coefficients, gae, whiten};

fn advantages(gamma: f64, gae_lambda: f64, rewards: &[f32], values: &[f32]) -> algo::Advantages {
    gae(
        Gae { discount: Discount::per_token(gamma), gae_lambda },
        Responses::new(&[rewards.len()]).unwrap(),
        rewards,
        values,
    )
    .unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{found:?} {expected:?}");
}

/// NeMo RL, `tests/unit/algorithms/test_ppo.py`.
#[test]
fn nemo_lambda_zero_is_the_one_step_difference() {
    assert_eq!(advantages(1.0, 0.0, &[0.0, 0.0, 5.0], &[1.0, 2.0, 3.0]).advantages, [1.0, 1.0, 2.0]);
}

/// NeMo RL, the same file.
#[test]
fn nemo_lambda_one_is_monte_carlo_minus_value() {
    let (rewards, values) = ([0.5, -1.0, 2.0, 0.25], [1.0, 0.5, -0.5, 3.0]);
    let gamma: f32 = 0.5;
    let monte_carlo = |from: usize| -> f32 {
        rewards[from..].iter().enumerate().map(|(ahead, reward)| gamma.powi(ahead as i32) * reward).sum()
    };
    let expected: Vec<f32> = (0..4).map(|token| monte_carlo(token) - values[token]).collect();
    assert_close(&advantages(0.5, 1.0, &rewards, &values).advantages, &expected, 1e-6);
}

/// SkyRL, `tests/backends/skyrl_train/utils/test_ppo_utils.py`.
#[test]
fn skyrl_returns() {
    let (rewards, values) = ([1.0, 2.0, 3.0], [0.5, 1.0, 1.5]);
    assert_eq!(advantages(1.0, 1.0, &rewards, &values).returns, [6.0, 5.0, 3.0]);
    assert_eq!(advantages(0.5, 1.0, &rewards, &values).returns, [2.75, 3.5, 3.0]);
}

/// SkyRL, the same file: whitened (unbiased) over the mask, applied to all.
#[test]
fn skyrl_whitening_under_a_mask() {
    let mut advantages = advantages(1.0, 1.0, &[1.0, 2.0, 3.0], &[0.5, 1.0, 1.5]).advantages;
    let mask = [true, false, true];
    let responses = Responses::new(&[3]).unwrap().with_mask(&mask).unwrap();
    let moments = Moments::of_tokens("advantages", responses, &advantages).unwrap();
    whiten(&mut advantages, moments.mean(), moments.unbiased_variance());
    // Theirs: 0.7071, 0.1768, -0.7071.
    let root = std::f32::consts::FRAC_1_SQRT_2;
    assert_close(&advantages, &[root, root / 4.0, -root], 1e-6);
}

/// TRL, `tests/experimental/test_ppo_trainer.py`: only the two middle numbers enter.
#[test]
fn trl_whitening_under_a_mask() {
    let mut values = [1.0, 2.0, 3.0, 4.0];
    let mask = [false, true, true, false];
    let responses = Responses::new(&[4]).unwrap().with_mask(&mask).unwrap();
    let moments = Moments::of_tokens("values", responses, &values).unwrap();
    assert_eq!((moments.mean(), moments.variance()), (2.5, 0.25));
    whiten(&mut values, moments.mean(), moments.variance());
    assert_close(&values, &[-3.0, -1.0, 1.0, 3.0], 1e-6);
}

/// verl, `tests/trainer/ppo/test_core_algos_on_cpu.py`: values at observation tokens change neither
/// advantages nor returns.
#[test]
fn verl_values_of_observations_do_not_matter() {
    let mask = [true, true, false, false, true, true, false];
    let responses = Responses::new(&[7]).unwrap().with_mask(&mask).unwrap();
    let rewards = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
    let with = |observed: f32| {
        let values = [0.1, 0.2, observed, -observed, 0.3, 0.4, observed];
        gae(Gae { discount: Discount::per_token(0.9), gae_lambda: 0.95 }, responses, &rewards, &values)
            .unwrap()
    };
    assert_eq!(with(0.0), with(123.0));
    // The last token before the observation looks at the first one after it, one discount away.
    let delta: f64 = 0.9 * 0.3 - 0.2;
    let after = with(0.0).advantages[4];
    let expected = delta + 0.9 * 0.95 * f64::from(after);
    assert!((f64::from(with(0.0).advantages[1]) - expected).abs() < 1e-6);
}

/// OpenRLHF, `tests/test_loss_aggregation.py`, and verl, `test_loss_aggregation_on_cpu.py`: the global mean,
/// and responses whose tokens are all masked are in no denominator. The token losses are the values of a
/// value loss of ½ V².
#[test]
fn openrlhf_and_verl_aggregation() {
    let aggregate = |aggregation, lengths: &[usize], mask: &[bool], losses: &[f32]| {
        let responses = Responses::new(lengths).unwrap().with_mask(mask).unwrap();
        let weights = vec![1.0; lengths.len()];
        let totals = Totals::of(responses, &weights).unwrap();
        let coefficients = coefficients(aggregation, &totals, 1, responses, &weights).unwrap();
        let values: Vec<f32> = losses.iter().map(|loss| (2.0 * loss).sqrt()).collect();
        let zeros = vec![0.0; losses.len()];
        let tokens = ValueTokens {
            responses,
            values: &values,
            old_values: &zeros,
            returns: &zeros,
            coefficients: &coefficients,
        };
        algo::value_loss(None, &tokens).unwrap().term.loss
    };
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    let losses = [1.0, 2.0, 3.0, 4.0, 5.0, 7.0];
    close(aggregate(Aggregation::TokenMean, &[2, 3, 1], &[true; 6], &losses), 22.0 / 6.0);
    let losses = [1.0, 3.0, 2.0, 4.0, 8.0];
    close(aggregate(Aggregation::SeqMeanTokenMean, &[2, 2, 1], &[true; 5], &losses), 13.0 / 3.0);
    let mask = [true, true, false, false];
    close(aggregate(Aggregation::SeqMeanTokenMean, &[2, 2], &mask, &[1.0, 3.0, 5.0, 7.0]), 2.0);
}
