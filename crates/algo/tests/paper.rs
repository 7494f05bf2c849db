//! One test per claim or golden number of the algorithms, named after it. Unless a test says otherwise, the
//! numbers come from executing the named reference implementations on the golden input below, in f64.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use algo::{
    Aggregation, ClipRange, Correction, Discount, Gae, GroupBaseline, GroupStatistics, KlEstimator, Kto,
    LabelledResponses, Moments, PolicyLoss, PolicyObjective, PolicyTokens, PreferenceObjective,
    PreferencePairs, RatioLevel, Responses, RewardShaping, ScorePairs, ScoredTokens, Totals, ValueTokens,
    coefficients, group_advantages, policy_loss, reweight, whiten,
};
const LENGTHS: [usize; 3] = [4, 3, 2];
const OLD: [f32; 9] = [-1.0, -0.5, -2.0, -0.3, -0.7, -1.2, -0.4, -0.2, -0.9];
const NEW: [f32; 9] = [-0.6, -0.9, -1.9, -0.3, -0.9, -0.6, -0.5, -0.25, -0.4];
const REF: [f32; 9] = [-1.1, -0.6, -1.7, -0.5, -0.6, -1.0, -0.9, -0.3, -1.0];
const ROLLOUT: [f32; 9] = [-1.3, -0.45, -2.2, -0.3, -0.7, -1.9, -0.35, -0.2, -0.8];
const ADVANTAGES: [f32; 9] = [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.5, 0.5];
const VALUES: [f32; 9] = [0.1, 0.2, 0.3, 0.4, 0.0, -0.1, 0.2, 0.5, 0.4];
const SCORES: [f32; 3] = [1.0, -0.5, 0.25];

fn responses() -> Responses<'static> {
    Responses::new(&LENGTHS).unwrap()
}

/// Coefficients with all weights 1; the constant norm is the padded length of the golden input.
fn unweighted(aggregation: Aggregation) -> Vec<f64> {
    let totals = Totals::of(responses(), &[1.0; 3]).unwrap();
    coefficients(aggregation, &totals, 4, responses(), &[1.0; 3]).unwrap()
}

fn assert_number(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected}");
}

fn assert_close<T: Copy + Into<f64>>(found: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (place, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let found = found.into();
        assert!((found - expected).abs() <= tolerance, "at {place}: found {found}, expected {expected}");
    }
}

const ASYMMETRIC: ClipRange = ClipRange { low: 0.2, high: 0.28 };
const SYMMETRIC: ClipRange = ClipRange { low: 0.2, high: 0.2 };

const SHAPING: RewardShaping =
    RewardShaping { kl_estimator: KlEstimator::K1, kl_coefficient: 0.1, score_clip: None };

fn clip(level: RatioLevel, range: ClipRange, dual_clip: Option<f64>) -> PolicyObjective {
    PolicyObjective::Clip { level, range, dual_clip }
}

fn golden_loss(objective: PolicyObjective, logprobs: &[f32], coefficients: &[f64]) -> PolicyLoss {
    let tokens = PolicyTokens {
        responses: responses(),
        logprobs,
        old_logprobs: &OLD,
        advantages: &ADVANTAGES,
        coefficients,
    };
    policy_loss(&objective, &tokens).unwrap()
}

fn ppo(range: ClipRange, aggregation: Aggregation) -> PolicyLoss {
    golden_loss(clip(RatioLevel::Token, range, None), &NEW, &unweighted(aggregation))
}

fn golden_rewards() -> Vec<f32> {
    let tokens =
        ScoredTokens { responses: responses(), old_logprobs: &OLD, ref_logprobs: &REF, scores: &SCORES };
    algo::token_rewards(&SHAPING, &tokens).unwrap().rewards
}

fn golden_gae() -> algo::Advantages {
    let parameters = Gae { discount: Discount::per_token(1.0), gae_lambda: 0.95 };
    algo::gae(parameters, responses(), &golden_rewards(), &VALUES).unwrap()
}

#[test]
fn s7_1_kl_estimators() {
    let row = |estimator: KlEstimator, tokens: std::ops::Range<usize>| -> Vec<f64> {
        tokens.map(|token| estimator.value(f64::from(OLD[token]) - f64::from(REF[token]))).collect()
    };
    assert_close(&row(KlEstimator::K1, 0..4), &[0.1, 0.1, -0.3, 0.2], 1e-6);
    assert_close(&row(KlEstimator::Abs, 0..4), &[0.1, 0.1, 0.3, 0.2], 1e-6);
    assert_close(&row(KlEstimator::K2, 0..4), &[0.005, 0.005, 0.045, 0.02], 1e-6);
    for estimator in [KlEstimator::K3, KlEstimator::K3Plus] {
        assert_close(&row(estimator, 0..4), &[0.004_837, 0.004_837, 0.049_859, 0.018_731], 1e-6);
        assert_close(&row(estimator, 4..7), &[0.005_171, 0.021_403, 0.106_531], 1e-6);
    }
}

#[test]
fn s7_1_k3_plus_has_the_value_of_k3_and_the_gradient_of_k2() {
    for log_ratio in [-3.0, -0.3, 0.0, 0.2, 5.0] {
        assert_eq!(KlEstimator::K3Plus.value(log_ratio), KlEstimator::K3.value(log_ratio));
        assert_eq!(KlEstimator::K3Plus.gradient(log_ratio), KlEstimator::K2.gradient(log_ratio));
    }
}

#[test]
fn s7_2_token_rewards() {
    let expected = [-0.01, -0.01, 0.03, 0.98, 0.01, 0.02, -0.55, -0.01, 0.24];
    assert_close(&golden_rewards(), &expected, 1e-6);
}

#[test]
fn s7_2_scores_are_clipped() {
    let shaping = RewardShaping { score_clip: Some(0.5), ..SHAPING };
    let tokens =
        ScoredTokens { responses: responses(), old_logprobs: &OLD, ref_logprobs: &REF, scores: &SCORES };
    let result = algo::token_rewards(&shaping, &tokens).unwrap();
    assert_close(&result.rewards, &[-0.01, -0.01, 0.03, 0.48, 0.01, 0.02, -0.55, -0.01, 0.24], 1e-6);
    assert_number(result.kl.sum, 0.1 + 0.1 - 0.3 + 0.2 - 0.1 - 0.2 + 0.5 + 0.1 + 0.1, 1e-6);
    assert_eq!((result.kl.count, result.unplaced_scores), (9.0, 0));
}

#[test]
fn s7_3_gae() {
    let result = golden_gae();
    let advantages = [0.790_102, 0.736_950, 0.681, 0.58, -0.462_875, -0.3925, -0.75, -0.262, -0.16];
    let returns = [0.890_102, 0.936_950, 0.981, 0.98, -0.462_875, -0.4925, -0.55, 0.238, 0.24];
    assert_close(&result.advantages, &advantages, 1e-6);
    assert_close(&result.returns, &returns, 1e-6);
}

#[test]
fn s7_3_whitening_with_the_biased_variance_as_openrlhf() {
    let mut advantages = golden_gae().advantages;
    let moments = Moments::of_tokens("advantages", responses(), &advantages).unwrap();
    whiten(&mut advantages, moments.mean(), moments.variance());
    let expected = [
        1.236_981, 1.143_797, 1.045_710, 0.868_643, -0.959_656, -0.836_279, -1.463_024, -0.607_495,
        -0.428_676,
    ];
    assert_close(&advantages, &expected, 1e-6);
}

#[test]
fn s7_3_whitening_with_the_unbiased_variance_as_verl() {
    let mut advantages = golden_gae().advantages;
    let moments = Moments::of_tokens("advantages", responses(), &advantages).unwrap();
    whiten(&mut advantages, moments.mean(), moments.unbiased_variance());
    let expected = [
        1.166_237, 1.078_382, 0.985_904, 0.818_965, -0.904_772, -0.788_452, -1.379_353, -0.572_752,
        -0.404_159,
    ];
    assert_close(&advantages, &expected, 1e-6);
}

#[test]
fn s7_4_ppo_clip_in_every_aggregation() {
    for (aggregation, expected) in [
        (Aggregation::TokenMean, -0.180_602_078_317_466),
        (Aggregation::SeqMeanTokenSum, -0.541_806_234_952_398),
        (Aggregation::SeqMeanTokenMean, -0.129_928_146_200_261),
        (Aggregation::SeqMeanTokenSumNorm, -0.135_451_558_738_100),
        (Aggregation::TokenSum, -0.180_602_078_317_466 * 9.0),
    ] {
        assert_number(ppo(ASYMMETRIC, aggregation).loss, expected, 1e-6);
    }
    assert_number(ppo(SYMMETRIC, Aggregation::TokenMean).loss, -0.167_268_744_984_135, 1e-6);
    assert_number(ppo(SYMMETRIC, Aggregation::SeqMeanTokenMean).loss, -0.116_594_812_916_928, 1e-6);
}

#[test]
fn s7_4_ppo_clip_gradient_leaves_bad_tokens_with_a_large_ratio_unclipped() {
    let result = ppo(ASYMMETRIC, Aggregation::TokenMean);
    let expected =
        [0.0, -0.074_480, -0.122_797, -0.111_111, 0.090_970, 0.202_458, 0.100_537, -0.052_846, 0.0];
    assert_close(&result.gradient, &expected, 1e-6);
    let metrics = result.ratios.metrics().unwrap();
    assert_number(metrics.clip_fraction, 2.0 / 9.0, 1e-12);
    assert_number(metrics.ratio_max, 1.822_119, 1e-6);
    assert_number(metrics.ratio_min, 0.670_320, 1e-6);
    // Not from a reference: mean of (ratio - 1) - log ratio over the nine ratios of the golden input.
    let approx_kl =
        [0.091_825, 0.070_320, 0.005_171, 0.0, 0.018_731, 0.222_119, 0.004_837, 0.001_229, 0.148_721];
    assert_number(metrics.approx_kl, approx_kl.iter().sum::<f64>() / 9.0, 1e-6);
}

#[test]
fn s7_4_dual_clip_bounds_bad_tokens_whose_ratio_is_huge() {
    let mut logprobs = NEW;
    logprobs[5] = 0.3;
    let weights = unweighted(Aggregation::TokenMean);
    let dual = golden_loss(clip(RatioLevel::Token, ASYMMETRIC, Some(3.0)), &logprobs, &weights);
    assert_number(dual.loss, -0.049_726_389_471_967, 1e-6);
    assert_eq!(dual.gradient[5], 0.0);
    assert_eq!(dual.ratios.dual_clipped, 1.0);
    let single = golden_loss(clip(RatioLevel::Token, ASYMMETRIC, None), &logprobs, &weights);
    assert_number(single.loss, 0.114_905_729_454_485, 1e-6);
    assert!(single.gradient[5] > 0.0);
}

#[test]
fn s7_5_value_loss() {
    let returns = golden_gae().returns;
    let values = [0.5, 0.1, 0.35, 0.9, 0.3, -0.2, 0.1, 0.45, 0.8];
    for (aggregation, expected) in [
        (Aggregation::TokenMean, 0.168_880_321_035_069),
        (Aggregation::SeqMeanTokenMean, 0.156_738_942_382_205),
    ] {
        let weights = unweighted(aggregation);
        let tokens = ValueTokens {
            responses: responses(),
            values: &values,
            old_values: &VALUES,
            returns: &returns,
            coefficients: &weights,
        };
        assert_number(algo::value_loss(Some(0.2), &tokens).unwrap().term.loss, expected, 1e-6);
    }
}

/// The advantages of four responses with the scores of the golden numbers.
fn of_a_group(baseline: GroupBaseline) -> Vec<f32> {
    let group = GroupStatistics::of(&[1.0, 0.0, 0.5, 0.0]);
    group_advantages(baseline, &[1.0, 0.0, 0.5, 0.0], &[group; 4]).unwrap()
}

#[test]
fn s7_6_grpo_advantages() {
    let advantages = of_a_group(GroupBaseline::MeanStd { epsilon: 1e-6 });
    assert_close(&advantages, &[1.305_580, -0.783_348, 0.261_116, -0.783_348], 1e-6);
}

#[test]
fn s7_6_grpo_objective_is_the_seq_mean_of_clip_plus_beta_k3() {
    let weights = unweighted(Aggregation::SeqMeanTokenMean);
    let tokens =
        algo::KlTokens { responses: responses(), logprobs: &NEW, ref_logprobs: &REF, coefficients: &weights };
    let kl = algo::kl_loss(KlEstimator::K3, 0.04, &tokens).unwrap();
    let k3 = |token: usize| {
        let log_ratio = f64::from(NEW[token]) - f64::from(REF[token]);
        (-log_ratio).exp() - 1.0 + log_ratio
    };
    let row = |tokens: std::ops::Range<usize>| tokens.clone().map(k3).sum::<f64>() / tokens.len() as f64;
    assert_number(kl.loss, 0.04 * (row(0..4) + row(4..7) + row(7..9)) / 3.0, 1e-12);
}

#[test]
fn s7_7_dr_grpo_advantages() {
    let advantages = of_a_group(GroupBaseline::Mean);
    assert_close(&advantages, &[0.625, -0.375, 0.125, -0.375], 1e-6);
}

#[test]
fn s7_8_rloo_advantages_are_those_of_dr_grpo_times_four_thirds() {
    let advantages = of_a_group(GroupBaseline::LeaveOneOut);
    assert_close(&advantages, &[0.833_333, -0.5, 0.166_667, -0.5], 1e-6);
}

#[test]
fn s7_8_rloo_folds_the_kl_into_the_score_of_the_response() {
    let returns = algo::response_returns(responses(), &golden_rewards()).unwrap();
    assert_close(&returns, &[1.0 - 0.01, -0.5 - 0.02, 0.25 - 0.02], 1e-6);
}

/// With one action per response, the gradient on-policy is REINFORCE's: `-A_i / B` for every token of the
/// response.
#[test]
fn s7_8_rloo_on_policy_is_reinforce_on_whole_responses() {
    let objective = clip(RatioLevel::SequenceProduct, SYMMETRIC, None);
    let loss = golden_loss(objective, &OLD, &unweighted(Aggregation::SeqMeanTokenMean));
    let expected: Vec<f64> = ADVANTAGES.iter().map(|&advantage| -f64::from(advantage) / 3.0).collect();
    assert_close(&loss.gradient, &expected, 1e-6);
}

#[test]
fn s7_9_reinforce_plus_plus() {
    let mut returns = algo::returns_to_go(Discount::per_token(1.0), responses(), &golden_rewards()).unwrap();
    assert_close(&returns, &[0.99, 1.0, 1.01, 0.98, -0.52, -0.53, -0.55, 0.23, 0.24], 1e-6);
    // The golden numbers are verl's, which whitens with the unbiased variance.
    let moments = Moments::of_tokens("returns", responses(), &returns).unwrap();
    whiten(&mut returns, moments.mean(), moments.unbiased_variance());
    let expected = [
        0.949_582, 0.963_685, 0.977_787, 0.935_479, -1.179_926, -1.194_029, -1.222_234, -0.122_223,
        -0.108_121,
    ];
    assert_close(&returns, &expected, 1e-6);
}

#[test]
fn s7_9_reinforce_plus_plus_baseline() {
    let responses = algo::Responses::new(&[3; 4]).unwrap();
    let centred = of_a_group(GroupBaseline::Mean);
    let mut advantages = algo::broadcast(responses, &centred).unwrap();
    let moments = Moments::of_tokens("advantages", responses, &advantages).unwrap();
    whiten(&mut advantages, moments.mean(), moments.unbiased_variance());
    for (response, expected) in [1.443_376, -0.866_025, 0.288_675, -0.866_025].into_iter().enumerate() {
        assert_close(&advantages[3 * response..3 * response + 3], &[expected; 3], 1e-6);
    }
}

#[test]
fn s7_10_dapo_overlong_penalty() {
    for (length, expected) in [(100, 0.0), (16_384, 0.0), (18_432, -0.5), (20_480, -1.0), (30_000, -1.0)] {
        assert_number(algo::overlong_penalty(length, 20_480, 4096).unwrap(), expected, 1e-12);
    }
}

#[test]
fn s7_11_gspo() {
    let gspo = |range, aggregation| {
        golden_loss(clip(RatioLevel::SequenceMean, range, None), &NEW, &unweighted(aggregation))
    };
    let wide = gspo(ASYMMETRIC, Aggregation::SeqMeanTokenMean);
    assert_number(wide.loss, -0.182_101_852_844_841, 1e-6);
    let (a, b, c) = (-0.085_443, 0.122_797, -0.104_360);
    assert_close(&wide.gradient[..4], &[a; 4], 1e-6);
    assert_close(&wide.gradient[4..7], &[b; 3], 1e-6);
    assert_close(&wide.gradient[7..], &[c; 2], 1e-6);
    let metrics = wide.ratios.metrics().unwrap();
    assert_number(metrics.ratio_min, 1.025_315, 1e-6);
    assert_number(metrics.ratio_max, 1.252_323, 1e-6);
    assert_number(gspo(ASYMMETRIC, Aggregation::TokenMean).loss, -0.226_452_271_562_515, 1e-6);
    let narrow = gspo(ClipRange { low: 3e-4, high: 4e-4 }, Aggregation::SeqMeanTokenMean);
    assert_number(narrow.loss, -0.131_809_693_535_419, 1e-6);
}

#[test]
fn s7_12_cispo() {
    let objective = PolicyObjective::Cispo { range: ClipRange { low: 1.0, high: 0.28 } };
    let loss = golden_loss(objective, &NEW, &unweighted(Aggregation::TokenMean));
    assert_number(loss.loss, 0.243_193_341_894_470, 1e-6);
    let expected = [
        -0.142_222, -0.074_480, -0.122_797, -0.111_111, 0.090_970, 0.142_222, 0.100_537, -0.052_846,
        -0.071_111,
    ];
    assert_close(&loss.gradient, &expected, 1e-6);
    assert!(loss.gradient.iter().all(|gradient| *gradient != 0.0), "no token loses its gradient");
    assert_eq!(loss.ratios.clipped, 3.0);
}

fn corrected(correction: Correction, range: ClipRange) -> f64 {
    let mut weights = unweighted(Aggregation::TokenMean);
    let correction = correction.weights(responses(), &OLD, &ROLLOUT).unwrap();
    reweight(responses(), &mut weights, &correction.weights).unwrap();
    golden_loss(clip(RatioLevel::Token, range, None), &NEW, &weights).loss
}

#[test]
fn s7_13_decoupled_ppo() {
    for (correction, expected) in [
        (Correction::Token, -0.030_788_856_574_372),
        (Correction::TokenTruncate { max: 2.0 }, -0.033_573_147_329_011),
        (Correction::TokenMask { min: 0.0, max: 1.3 }, -0.258_507_268_193_515),
        (Correction::None, -0.167_268_744_984_135),
    ] {
        assert_number(corrected(correction, SYMMETRIC), expected, 1e-6);
    }
}

#[test]
fn s7_14_engine_mismatch_weights() {
    let weights = Correction::Token.weights(responses(), &OLD, &ROLLOUT).unwrap().weights;
    let expected = [1.349_859, 0.951_229, 1.221_403, 1.0, 1.0, 2.013_753, 0.951_229, 1.0, 0.904_837];
    assert_close(&weights, &expected, 1e-6);
}

#[test]
fn s7_14_engine_mismatch_losses() {
    for (correction, expected) in [
        (Correction::TokenTruncate { max: 2.0 }, -0.049_593_395_822_708),
        (Correction::TokenMask { min: 0.5, max: 1.5 }, -0.454_508_684_798_377),
        (Correction::SequenceMask { min: 0.9, max: 1.2 }, -0.641_112_988_076_493),
        (Correction::SequenceTruncate { max: 2.0 }, -0.064_201_963_566_349),
    ] {
        assert_number(corrected(correction, ASYMMETRIC), expected, 1e-6);
    }
}

#[test]
fn s7_15_bradley_terry() {
    let pairs = ScorePairs { chosen_scores: &[1.2], rejected_scores: &[0.4], margins: None, total: 1 };
    assert_number(algo::bradley_terry(&pairs).unwrap().loss, 0.371_100_665_947_778, 1e-6);
}

fn golden_pair(objective: PreferenceObjective) -> f64 {
    let pairs = PreferencePairs {
        chosen_logprobs: &[-12.0],
        rejected_logprobs: &[-15.0],
        ref_chosen_logprobs: &[-12.5],
        ref_rejected_logprobs: &[-14.2],
        chosen_lengths: &[5],
        rejected_lengths: &[8],
        total: 1,
    };
    algo::preference_loss(&objective, &pairs).unwrap().loss
}

#[test]
fn s7_15_dpo_and_cdpo() {
    let beta = 0.1;
    assert_number(golden_pair(PreferenceObjective::Dpo { beta }), 0.630_258_194_681_691, 1e-6);
    let cdpo = PreferenceObjective::Cdpo { beta, label_smoothing: 0.1 };
    assert_number(golden_pair(cdpo), 0.643_258_194_681_691, 1e-6);
}

#[test]
fn s7_15_ipo_in_both_conventions() {
    let ipo = |length_average| golden_pair(PreferenceObjective::Ipo { tau: 0.1, length_average });
    assert_number(ipo(false), 13.69, 1e-5);
    assert_number(ipo(true), 23.04, 1e-5);
}

#[test]
fn s7_15_kto() {
    let kto = Kto { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 };
    let loss = |log_ratio: f32, desirable: bool| {
        let examples = LabelledResponses {
            logprobs: &[log_ratio],
            ref_logprobs: &[0.0],
            desirable: &[desirable],
            total: 1,
        };
        algo::kto_loss(&kto, 0.3, &examples).unwrap().loss
    };
    assert_number(loss(0.5, true), 0.495_000_166_66, 1e-6);
    assert_number(loss(-0.8, false), 0.472_527_695_655_406, 1e-6);
}

#[test]
fn s7_15_kto_reference_point_is_never_negative() {
    let moments = |values: &[f64]| values.iter().copied().collect::<Moments>();
    assert_eq!(algo::kto_reference_point(&moments(&[0.5, 1.5])), 1.0);
    assert_eq!(algo::kto_reference_point(&moments(&[-0.5, 0.25])), 0.0);
    assert_eq!(algo::kto_reference_point(&moments(&[])), 0.0);
}

/// Section 7.0: the ratios the other numbers rest on.
#[test]
fn s7_0_ratios_of_the_golden_input() {
    let expected =
        [1.491_825, 0.670_320, 1.105_171, 1.0, 0.818_731, 1.822_119, 0.904_837, 0.951_229, 1.648_721];
    let found: Vec<f64> =
        NEW.iter().zip(&OLD).map(|(new, old)| (f64::from(*new) - f64::from(*old)).exp()).collect();
    assert_close(&found, &expected, 1e-6);
}

/// GRPO divides by the deviation of a group (Shao et al., 2024): one that rounding makes would be noise.
#[test]
fn equal_returns_have_no_deviation_whatever_their_mean_rounds_to() {
    // 0.1 + 0.1 + 0.1 is 0.30000000000000004.
    let equal = GroupStatistics::of(&[0.1; 3]);
    assert_eq!((equal.size, equal.mean, equal.std), (3, 0.1, 0.0));
    let some = GroupStatistics::of(&[1.0, 2.0, 4.0, 1.0]);
    assert_eq!((some.size, some.mean, some.std), (4, 2.0, 2.0_f64.sqrt()));
}
