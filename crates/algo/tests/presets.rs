//! Every algorithm, with its defaults, from scores to a gradient.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use algo::{
    AdvantageEstimator, Aggregation, Algorithm, ClipRange, Correction, Discount, Gae, GroupBaseline,
    GroupStatistics, KlEstimator, KlPlacement, KlTokens, Moments, PolicyObjective, PolicyTokens, RatioLevel,
    Responses, RewardShaping, ScoredTokens, Totals, Whiten, coefficients, kl_loss, policy_loss, reweight,
    whiten,
};

const LENGTHS: [usize; 4] = [3, 1, 2, 4];
const GROUPS: [usize; 4] = [0, 0, 1, 1];
const SCORES: [f32; 4] = [1.0, -1.0, 0.0, 1.0];
const WEIGHTS: [f32; 4] = [1.0, 1.0, 2.0, 1.0];
const ROLLOUT: [f32; 10] = [-1.0, -0.5, -2.0, -0.3, -0.7, -1.2, -0.4, -0.2, -0.9, -1.1];
const REF: [f32; 10] = [-1.2, -0.4, -1.9, -0.5, -0.8, -1.2, -0.6, -0.1, -0.8, -1.0];
const VALUES: [f32; 10] = [0.1, 0.2, 0.3, -0.4, 0.0, -0.1, 0.2, 0.5, 0.4, 0.3];

/// The gradient of the first step on fresh rollouts: π_θ = π_old = π_rollout.
fn first_gradient(algorithm: Algorithm) -> Vec<f32> {
    let defaults = algorithm.defaults();
    let responses = Responses::new(&LENGTHS).unwrap();
    let (kl_estimator, kl_coefficient) = match defaults.kl {
        KlPlacement::Reward { estimator, coefficient } => (estimator, coefficient),
        KlPlacement::None | KlPlacement::Loss { .. } => (KlEstimator::K1, 0.0),
    };
    let shaping = RewardShaping { kl_estimator, kl_coefficient, score_clip: None };
    let scored = ScoredTokens { responses, old_logprobs: &ROLLOUT, ref_logprobs: &REF, scores: &SCORES };
    let rewards = algo::token_rewards(&shaping, &scored).unwrap().rewards;
    let mut advantages = match defaults.advantage {
        AdvantageEstimator::Gae => {
            assert!(defaults.needs_critic());
            algo::gae(
                Gae { discount: Discount::per_token(1.0), gae_lambda: 0.95 },
                responses,
                &rewards,
                &VALUES,
            )
            .unwrap()
            .advantages
        }
        AdvantageEstimator::ReturnToGo => {
            algo::returns_to_go(Discount::per_token(1.0), responses, &rewards).unwrap()
        }
        AdvantageEstimator::OwnKl => {
            let scored = ScoredTokens { scores: &[0.0; 4], ..scored };
            algo::token_rewards(&shaping, &scored).unwrap().rewards
        }
        AdvantageEstimator::Group(baseline) => {
            let returns = algo::response_returns(responses, &rewards).unwrap();
            let group = |members: &[f32]| {
                GroupStatistics::of(&members.iter().copied().map(f64::from).collect::<Vec<_>>())
            };
            let pairs = [group(&returns[..2]), group(&returns[2..])];
            let groups = GROUPS.map(|group| pairs[group]);
            let per_response = algo::group_advantages(baseline, &returns, &groups).unwrap();
            algo::broadcast(responses, &per_response).unwrap()
        }
    };
    if defaults.whiten != Whiten::Off {
        let moments = Moments::of_tokens("advantages", responses, &advantages).unwrap();
        whiten(&mut advantages, moments.mean(), moments.variance());
    }
    let totals = Totals::of(responses, &WEIGHTS).unwrap();
    let mut coefficients = coefficients(defaults.aggregation, &totals, 4, responses, &WEIGHTS).unwrap();
    let correction = defaults.correction.weights(responses, &ROLLOUT, &ROLLOUT).unwrap();
    reweight(responses, &mut coefficients, &correction.weights).unwrap();
    let tokens = PolicyTokens {
        responses,
        logprobs: &ROLLOUT,
        old_logprobs: &ROLLOUT,
        advantages: &advantages,
        coefficients: &coefficients,
    };
    let mut gradient = policy_loss(&defaults.objective, &tokens).unwrap().gradient;
    if let KlPlacement::Loss { estimator, coefficient } = defaults.kl {
        let tokens =
            KlTokens { responses, logprobs: &ROLLOUT, ref_logprobs: &REF, coefficients: &coefficients };
        let kl = kl_loss(estimator, coefficient, &tokens).unwrap().gradient;
        gradient.iter_mut().zip(kl).for_each(|(gradient, kl)| *gradient += kl);
    }
    gradient
}

/// On fresh rollouts every clip and correction is idle, so that each algorithm's gradient is that of `-Σ c A
/// log π` plus its KL.
#[test]
fn every_algorithm_takes_its_first_step() {
    for algorithm in Algorithm::ALL {
        let gradient = first_gradient(algorithm);
        assert!(gradient.iter().all(|gradient| gradient.is_finite()), "{algorithm:?}");
        if algorithm.defaults().advantage == AdvantageEstimator::OwnKl {
            // What the teacher holds for likelier becomes likelier, whatever the score.
            let mut told = gradient.iter().zip(REF.iter().zip(ROLLOUT));
            assert!(told.all(|(gradient, (teacher, own))| gradient * (own - teacher) >= 0.0), "{gradient:?}");
            assert_eq!(gradient[5], 0.0, "both say the same of it");
            continue;
        }
        // The best response of each group becomes likelier, the worst less likely.
        let slope = |tokens: std::ops::Range<usize>| gradient[tokens].iter().sum::<f32>();
        assert!(slope(0..3) < 0.0 && slope(3..4) > 0.0, "{algorithm:?}: {gradient:?}");
    }
}

#[test]
fn algorithms_that_differ_only_off_policy_agree_on_fresh_rollouts() {
    assert_eq!(first_gradient(Algorithm::DecoupledPpo), first_gradient(Algorithm::Ppo));
    assert_eq!(first_gradient(Algorithm::Cispo), first_gradient(Algorithm::Dapo));
}

/// The claims of section 7 about what each algorithm is.
#[test]
fn defaults_are_those_of_the_papers() {
    use GroupBaseline::{LeaveOneOut, Mean, MeanStd};
    let grpo = AdvantageEstimator::Group(MeanStd { epsilon: 1e-6 });
    let reward = KlPlacement::Reward { estimator: KlEstimator::K1, coefficient: 0.01 };
    let teacher = KlPlacement::Reward { estimator: KlEstimator::K1, coefficient: 1.0 };
    let loss = |estimator, coefficient| KlPlacement::Loss { estimator, coefficient };
    let clip = |level, low, high, dual_clip| PolicyObjective::Clip {
        level,
        range: ClipRange { low, high },
        dual_clip,
    };
    let ppo = clip(RatioLevel::Token, 0.2, 0.2, None);
    let sequence = clip(RatioLevel::SequenceMean, 3e-4, 4e-4, None);
    let dapo = clip(RatioLevel::Token, 0.2, 0.28, Some(10.0));
    let cispo = PolicyObjective::Cispo { range: ClipRange { low: 1.0, high: 4.0 } };
    let product = clip(RatioLevel::SequenceProduct, 0.2, 0.2, None);
    let (token_mean, seq_mean) = (Aggregation::TokenMean, Aggregation::SeqMeanTokenMean);
    let mean = AdvantageEstimator::Group(Mean);
    let none = KlPlacement::None;
    let (off, after, before) = (Whiten::Off, Whiten::AfterFilter, Whiten::BeforeFilter);
    for (algorithm, advantage, whiten, kl, objective, aggregation) in [
        (Algorithm::PfPpo, AdvantageEstimator::Gae, after, reward, ppo, token_mean),
        (Algorithm::PfPpoPaper, AdvantageEstimator::Gae, before, reward, ppo, seq_mean),
        (Algorithm::Ppo, AdvantageEstimator::Gae, after, reward, ppo, token_mean),
        (Algorithm::Grpo, grpo, off, loss(KlEstimator::K3, 0.04), ppo, seq_mean),
        (Algorithm::DrGrpo, mean, off, none, ppo, Aggregation::SeqMeanTokenSumNorm),
        (Algorithm::Rloo, AdvantageEstimator::Group(LeaveOneOut), off, reward, product, seq_mean),
        (Algorithm::ReinforcePlusPlus, AdvantageEstimator::ReturnToGo, before, reward, ppo, token_mean),
        (Algorithm::ReinforcePlusPlusBaseline, mean, before, loss(KlEstimator::K2, 0.01), ppo, token_mean),
        (Algorithm::Dapo, grpo, off, none, dapo, token_mean),
        (Algorithm::Gspo, grpo, off, none, sequence, seq_mean),
        (Algorithm::Cispo, grpo, off, none, cispo, token_mean),
        (Algorithm::DecoupledPpo, AdvantageEstimator::Gae, after, reward, ppo, token_mean),
        (Algorithm::OnPolicyDistillation, AdvantageEstimator::OwnKl, off, teacher, ppo, token_mean),
    ] {
        let defaults = algorithm.defaults();
        let found =
            (defaults.advantage, defaults.whiten, defaults.kl, defaults.objective, defaults.aggregation);
        assert_eq!(found, (advantage, whiten, kl, objective, aggregation), "{algorithm:?}");
        let corrected = defaults.correction != Correction::None;
        assert_eq!(corrected, algorithm == Algorithm::DecoupledPpo);
    }
}

/// Dr.GRPO weighs tokens alike whatever the length of their response; GRPO gives those of short responses
/// more.
#[test]
fn dr_grpo_has_no_length_bias() {
    let defaults = |algorithm: Algorithm| algorithm.defaults().aggregation;
    let weight_of = |aggregation: Aggregation| {
        let responses = Responses::new(&LENGTHS).unwrap();
        let totals = Totals::of(responses, &[1.0; 4]).unwrap();
        coefficients(aggregation, &totals, 4, responses, &[1.0; 4]).unwrap()
    };
    let dr_grpo = weight_of(defaults(Algorithm::DrGrpo));
    assert!(dr_grpo.iter().all(|weight| *weight == dr_grpo[0]));
    let grpo = weight_of(defaults(Algorithm::Grpo));
    assert_eq!(grpo[3], 3.0 * grpo[0]);
}

#[test]
fn every_algorithm_names_its_paper() {
    let papers = [
        "2409.06957 and",
        "2409.06957 as",
        "1707.06347",
        "2402.03300",
        "2503.20783",
        "2402.14740",
        "2501.03262 (k1",
        "2501.03262, baseline",
        "2503.14476",
        "2507.18071",
        "2506.13585",
        "2110.00641",
    ];
    for (algorithm, paper) in Algorithm::ALL.into_iter().zip(papers) {
        assert!(algorithm.defaults().source.starts_with(&format!("arXiv {paper}")), "{algorithm:?}");
    }
}
