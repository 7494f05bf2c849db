//! Policy filtration: the claims of the paper (PF-PPO, arXiv 2409.06957) and what a batch can rely on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::collections::HashSet;

use algo::filtration::{
    Candidate, Choice, Diagnostics, Error, Filtration, Group, GroupDecision, Mode, NoSignal, Strategy,
    filter_group, rank_weights,
};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

const ALL: [Strategy; 8] = [
    Strategy::None,
    Strategy::BestOfN,
    Strategy::BestRandom,
    Strategy::BestWorst,
    Strategy::Power { k: 2.0 },
    Strategy::Top { threshold: 0.3 },
    Strategy::TopRandom { threshold: 0.3 },
    Strategy::TopBottom { low: -0.3, high: 0.3 },
];

const RESAMPLE: Mode = Mode::Resample { draws: 2 };

fn by(strategy: Strategy, mode: Mode) -> Filtration {
    Filtration { strategy, mode, no_signal: NoSignal::default() }
}

fn filter(filtration: Filtration, seed: u64, prompt_id: &str, scores: &[(&str, f64)]) -> GroupDecision {
    let rollouts: Vec<_> =
        scores.iter().map(|&(rollout_id, score)| Candidate { rollout_id, score }).collect();
    filter_group(&filtration, seed, &Group { prompt_id, rollouts: &rollouts }).unwrap()
}

fn weights(decision: &GroupDecision) -> Vec<f64> {
    match decision {
        GroupDecision::Choices(choices) => choices.iter().map(|choice| choice.weight).collect(),
        GroupDecision::NoSignal => panic!("no signal"),
    }
}

const FIVE: [(&str, f64); 5] = [("a", 0.1), ("b", 0.9), ("c", -0.7), ("d", 0.4), ("e", -0.2)];

fn five(strategy: Strategy, mode: Mode, seed: u64) -> Vec<f64> {
    weights(&filter(by(strategy, mode), seed, "p", &FIVE))
}

#[test]
fn s2_1_weights_by_rank() {
    assert_eq!(rank_weights(Strategy::BestOfN, 5).unwrap(), [1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(rank_weights(Strategy::BestRandom, 5).unwrap(), [0.5, 0.125, 0.125, 0.125, 0.125]);
    assert_eq!(rank_weights(Strategy::BestWorst, 5).unwrap(), [0.5, 0.0, 0.0, 0.0, 0.5]);
    assert_eq!(rank_weights(Strategy::None, 5).unwrap(), [0.2; 5]);
    assert_eq!(rank_weights(Strategy::Power { k: 1.0 }, 5), None);
    for strategy in [Strategy::None, Strategy::BestOfN, Strategy::BestRandom, Strategy::BestWorst] {
        assert_eq!(rank_weights(strategy, 1).unwrap(), [1.0]);
        assert_eq!(rank_weights(strategy, 0), None);
        for size in 2..30 {
            let sum: f64 = rank_weights(strategy, size).unwrap().iter().sum();
            assert!((sum - 1.0).abs() < 1e-12);
        }
    }
}

/// "PF-PPO selects 2 out of the N=5 responses" (Table 4): select keeps exactly two, the best always among
/// them.
#[test]
fn s2_1_best_random_and_best_worst_select_exactly_two_of_five() {
    assert_eq!(five(Strategy::BestWorst, Mode::Select, 0), [0.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(five(Strategy::BestOfN, Mode::Select, 0), [0.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(five(Strategy::None, Mode::Select, 0), [1.0; 5]);
    let mut others = [0; 5];
    for seed in 0..2000 {
        let weights = five(Strategy::BestRandom, Mode::Select, seed);
        assert_eq!((weights[1], weights.iter().sum::<f64>()), (1.0, 2.0));
        weights.iter().zip(&mut others).for_each(|(weight, count)| *count += *weight as u32);
    }
    // 500 each, standard deviation 19.4.
    assert!([0, 2, 3, 4].iter().all(|&place| (400..600).contains(&others[place])), "{others:?}");
}

/// Draws follow the paper's w: over 4000 prompts and two draws, each share within five standard deviations.
#[test]
fn s2_1_resampling_draws_from_cat_w() {
    for strategy in ALL {
        let filtration = by(strategy, RESAMPLE);
        let expected = filtration.expected_weights(&FIVE.map(|(_, score)| score)).unwrap().unwrap();
        let mut counts = [0.0; 5];
        for prompt in 0..4000 {
            let drawn = weights(&filter(filtration, 7, &format!("prompt {prompt}"), &FIVE));
            assert_eq!(drawn.iter().sum::<f64>(), 2.0);
            counts.iter_mut().zip(drawn).for_each(|(count, weight)| *count += weight);
        }
        for (count, expected) in counts.iter().zip(expected) {
            let share = expected / 2.0;
            let deviation = (8000.0 * share * (1.0 - share)).sqrt();
            assert!((count - 8000.0 * share).abs() <= 5.0 * deviation, "{strategy}: {counts:?}");
        }
    }
}

#[test]
fn s2_2_power_weights_go_with_the_magnitude_of_the_score() {
    let found = five(Strategy::Power { k: 2.0 }, Mode::Select, 0);
    let sum = 0.01 + 0.81 + 0.49 + 0.16 + 0.04;
    for (found, square) in found.iter().zip([0.01, 0.81, 0.49, 0.16, 0.04]) {
        assert!((found - 5.0 * square / sum).abs() < 1e-12);
    }
    assert_eq!(five(Strategy::Power { k: 0.0 }, Mode::Select, 0), [1.0; 5]);
    let huge = filter(by(Strategy::Power { k: 300.0 }, Mode::Select), 0, "p", &[("a", 1e9), ("b", -2e9)]);
    assert_eq!(weights(&huge)[1], 2.0);
    let zeros = [("a", 0.0), ("b", -0.0)];
    assert_eq!(filter(by(Strategy::Power { k: 1.0 }, Mode::Select), 0, "p", &zeros), GroupDecision::NoSignal);
    assert_eq!(filter(by(Strategy::Power { k: 1.0 }, RESAMPLE), 0, "p", &zeros), GroupDecision::NoSignal);
}

#[test]
fn s2_2_thresholds() {
    assert_eq!(five(Strategy::Top { threshold: 0.4 }, Mode::Select, 0), [0.0, 1.0, 0.0, 0.0, 0.0]);
    let both = Strategy::TopBottom { low: -0.2, high: 0.3 };
    assert_eq!(five(both, Mode::Select, 0), [0.0, 1.0, 1.0, 1.0, 0.0]);
    let nothing = five(Strategy::Top { threshold: 2.0 }, Mode::Select, 0);
    assert_eq!(nothing, [0.0; 5]);
    assert_eq!(five(Strategy::Top { threshold: 2.0 }, RESAMPLE, 0), [0.0; 5]);
    let mut kept = [0.0; 5];
    for seed in 0..2000 {
        let weights = five(Strategy::TopRandom { threshold: 0.3 }, Mode::Select, seed);
        kept.iter_mut().zip(weights).for_each(|(kept, weight)| *kept += weight);
    }
    assert_eq!((kept[1], kept[3]), (2000.0, 2000.0));
    // 1000 each, standard deviation 22.4.
    assert!([0, 2, 4].iter().all(|&place| (890.0..1110.0).contains(&kept[place])), "{kept:?}");
}

#[test]
fn a_group_of_one_is_kept_unless_its_score_says_otherwise() {
    let alone = [("a", 0.0)];
    for strategy in [Strategy::Top { threshold: 0.5 }, Strategy::TopBottom { low: -0.5, high: 0.5 }] {
        for mode in [Mode::Select, RESAMPLE] {
            assert_eq!(weights(&filter(by(strategy, mode), 3, "p", &alone)), [0.0], "{strategy}");
        }
    }
    for strategy in [Strategy::None, Strategy::BestOfN, Strategy::BestRandom, Strategy::BestWorst] {
        let kept = |weight| GroupDecision::Choices(vec![Choice { weight, kept: true }]);
        assert_eq!(filter(by(strategy, Mode::Select), 3, "p", &[("a", 0.0)]), kept(1.0), "{strategy}");
        assert_eq!(filter(by(strategy, RESAMPLE), 3, "p", &[("a", 0.0)]), kept(2.0), "{strategy}");
    }
}

#[test]
fn equal_scores_carry_no_signal_for_best_worst_unless_configured() {
    let equal = [("a", 0.5), ("b", 0.5), ("c", 0.5)];
    for strategy in ALL {
        for mode in [Mode::Select, RESAMPLE] {
            let decide = |no_signal| filter(Filtration { strategy, mode, no_signal }, 1, "p", &equal);
            assert_eq!(decide(NoSignal::Always), GroupDecision::NoSignal);
            assert!(matches!(decide(NoSignal::Never), GroupDecision::Choices(_)));
            let set_aside = decide(NoSignal::BestWorst) == GroupDecision::NoSignal;
            assert_eq!(set_aside, strategy == Strategy::BestWorst, "{strategy}");
        }
    }
}

/// Position and id have no say among equals: over seeds, every rollout is kept equally often.
#[test]
fn ties_are_broken_by_the_seed() {
    let equal = [("a", 0.5), ("b", 0.5), ("c", 0.5)];
    for strategy in [Strategy::BestOfN, Strategy::BestRandom, Strategy::BestWorst] {
        let filtration = Filtration { strategy, mode: Mode::Select, no_signal: NoSignal::Never };
        let mut kept = [0.0; 3];
        for seed in 0..3000 {
            let weights = weights(&filter(filtration, seed, "p", &equal));
            kept.iter_mut().zip(weights).for_each(|(kept, weight)| *kept += weight);
        }
        let mean = kept.iter().sum::<f64>() / 3.0;
        assert!(kept.iter().all(|kept| (kept - mean).abs() < 130.0), "{strategy}: {kept:?}");
    }
}

/// Zero has two signs and one rank.
#[test]
fn minus_zero_ties_with_zero() {
    let kept =
        |seed| weights(&filter(by(Strategy::BestOfN, Mode::Select), seed, "p", &[("a", 0.0), ("b", -0.0)]));
    let best: HashSet<bool> = (0..50).map(|seed| kept(seed)[0] == 1.0).collect();
    assert_eq!(best.len(), 2);
    let expected = by(Strategy::BestOfN, Mode::Select).expected_weights(&[0.0, -0.0]).unwrap().unwrap();
    assert_eq!(expected, [0.5, 0.5]);
}

#[test]
fn expected_weights_share_between_ties() {
    let check = |strategy, mode, scores: &[f64], expected: &[f64]| {
        let found = by(strategy, mode).expected_weights(scores).unwrap().unwrap();
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{strategy}: {found:?}");
    };
    check(Strategy::BestWorst, Mode::Select, &[0.0, 1.0, 1.0], &[1.0, 0.5, 0.5]);
    check(Strategy::BestRandom, Mode::Select, &[0.0, 1.0, 0.5], &[0.5, 1.0, 0.5]);
    check(Strategy::BestRandom, Mode::Select, &[1.0, 1.0, 1.0, 1.0], &[0.5; 4]);
    check(Strategy::BestRandom, Mode::Select, &[3.0], &[1.0]);
    check(Strategy::BestRandom, RESAMPLE, &[3.0], &[2.0]);
    check(Strategy::TopRandom { threshold: 0.5 }, Mode::Select, &[0.0, 1.0], &[0.5, 1.0]);
    check(Strategy::Top { threshold: 0.5 }, Mode::Select, &[0.0, 1.0, 2.0], &[0.0, 1.0, 1.0]);
    check(Strategy::Top { threshold: 5.0 }, Mode::Select, &[0.0, 1.0], &[0.0, 0.0]);
    // A score at a threshold is not beyond it.
    check(Strategy::Top { threshold: 1.0 }, Mode::Select, &[1.0, 2.0], &[0.0, 1.0]);
    check(Strategy::TopRandom { threshold: 1.0 }, Mode::Select, &[1.0, 2.0], &[0.5, 1.0]);
    check(
        Strategy::TopBottom { low: -1.0, high: 1.0 },
        Mode::Select,
        &[-1.0, 1.0, 2.0, -2.0],
        &[0.0, 0.0, 1.0, 1.0],
    );
    check(Strategy::Power { k: 1.0 }, Mode::Select, &[-3.0, 1.0], &[1.5, 0.5]);
    assert_eq!(by(Strategy::BestWorst, Mode::Select).expected_weights(&[1.0; 3]).unwrap(), None);
}

/// The draws are part of what a journal replays: a new version must not change them unnoticed.
#[test]
fn a_seed_gives_the_same_draws_for_ever() {
    let kept = |seed| {
        let weights = five(Strategy::BestRandom, Mode::Select, seed);
        FIVE.iter()
            .zip(weights)
            .filter(|(_, weight)| *weight > 0.0)
            .map(|((id, _), _)| *id)
            .collect::<String>()
    };
    assert_eq!((0..12).map(kept).collect::<Vec<_>>().join(" "), "ab bc bd bc bc be bc bc be ab ab ab");
    assert_eq!(five(Strategy::None, Mode::Resample { draws: 9 }, 5), [1.0, 0.0, 2.0, 4.0, 2.0]);
}

/// Continuous rewards: per-prompt filtration keeps two of every prompt's rollouts, where a batch-wide maximum
/// and minimum keep two of all (128 prompts x 8: 256 against 2).
#[test]
fn every_prompt_keeps_its_unique_samples() {
    let score = |prompt: u64, rollout: u64| ((prompt * 8 + rollout) * 2_654_435_761 % 1_000_003) as f64 / 1e6;
    for (strategy, mode, expected) in [
        (Strategy::BestWorst, Mode::Select, 256..=256),
        (Strategy::BestRandom, Mode::Select, 256..=256),
        (Strategy::BestOfN, Mode::Select, 128..=128),
        // Two draws of two alike hit both half the time: 192 of 256 expected, standard deviation 5.7.
        (Strategy::BestWorst, RESAMPLE, 164..=220),
    ] {
        let mut diagnostics = Diagnostics::default();
        for prompt in 0..128 {
            let ids: Vec<String> = (0..8).map(|rollout| format!("{prompt}/{rollout}")).collect();
            let rollouts: Vec<_> =
                ids.iter().zip(0..).map(|(id, rollout)| (id.as_str(), score(prompt, rollout))).collect();
            let decision = filter(by(strategy, mode), 11, &prompt.to_string(), &rollouts);
            assert!(weights(&decision).iter().any(|weight| *weight > 0.0), "a prompt lost all its rollouts");
            diagnostics.record(rollouts.len(), &decision);
        }
        assert!(expected.contains(&diagnostics.kept), "{strategy}: {diagnostics:?}");
        assert_eq!((diagnostics.groups, diagnostics.rollouts), (128, 1024));
    }
}

#[test]
fn diagnostics_of_known_decisions() {
    let choices = |weights: &[f64]| {
        GroupDecision::Choices(weights.iter().map(|&weight| Choice { weight, kept: weight > 0.0 }).collect())
    };
    let mut diagnostics = Diagnostics::default();
    assert_eq!((diagnostics.kept_fraction(), diagnostics.weight_entropy()), (None, None));
    diagnostics.record(2, &GroupDecision::NoSignal);
    diagnostics.record(4, &choices(&[1.0, 0.0, 1.0, 0.0]));
    assert_eq!(diagnostics.kept_fraction(), Some(2.0 / 6.0));
    assert!((diagnostics.weight_entropy().unwrap() - 2.0_f64.ln()).abs() < 1e-12);
    let mut other = Diagnostics::default();
    other.record(2, &choices(&[2.0, 0.0]));
    other.record(3, &GroupDecision::NoSignal);
    diagnostics.merge(&other);
    assert_eq!((diagnostics.groups, diagnostics.groups_without_signal, diagnostics.rollouts), (4, 2, 11));
    assert_eq!((diagnostics.kept, diagnostics.weight), (3, 4.0));
    let expected = -(0.25 * 0.25_f64.ln() * 2.0 + 0.5 * 0.5_f64.ln());
    assert!((diagnostics.weight_entropy().unwrap() - expected).abs() < 1e-12);
    let before = diagnostics;
    diagnostics.merge(&before);
    assert!((diagnostics.weight_entropy().unwrap() - expected - 2.0_f64.ln()).abs() < 1e-12);
    assert_eq!((diagnostics.kept, diagnostics.weight, diagnostics.groups), (6, 8.0, 8));
}

#[test]
fn bad_groups_are_errors_that_name_prompt_and_rollout() {
    let filter = |filtration: Filtration, rollouts: &[Candidate<'_>]| {
        filter_group(&filtration, 0, &Group { prompt_id: "p7", rollouts }).unwrap_err()
    };
    let candidate = |rollout_id, score| Candidate { rollout_id, score };
    let default = Filtration::default();
    assert_eq!(filter(default, &[]).to_string(), "prompt p7: the group has no rollouts");
    let twice = filter(default, &[candidate("r1", 0.0), candidate("r2", 0.0), candidate("r1", 1.0)]);
    assert_eq!(twice.to_string(), "prompt p7: rollout r1 occurs twice in the group");
    for score in [f64::NAN, f64::INFINITY] {
        let error = filter(default, &[candidate("r1", 0.0), candidate("r2", score)]);
        assert!(matches!(&error, Error::Score { rollout_id, .. } if rollout_id == "r2"), "{error}");
    }
    let broken = Filtration { strategy: Strategy::Power { k: -1.0 }, ..default };
    assert!(matches!(filter(broken, &[candidate("r1", 0.0)]), Error::Strategy { .. }));
    let broken = Filtration { mode: Mode::Resample { draws: 0 }, ..default };
    assert!(matches!(filter(broken, &[candidate("r1", 0.0)]), Error::Mode { .. }));
}

#[test]
fn configuration() {
    let parsed: Filtration =
        serde_json::from_str(r#"{"strategy": "power:3", "mode": "resample:4", "no_signal": "always"}"#)
            .unwrap();
    let expected = Filtration {
        strategy: Strategy::Power { k: 3.0 },
        mode: Mode::Resample { draws: 4 },
        no_signal: NoSignal::Always,
    };
    assert_eq!(parsed, expected);
    assert_eq!(serde_json::from_str::<Filtration>("{}").unwrap(), Filtration::default());
    assert_eq!(Filtration::default().strategy, Strategy::BestWorst);
    assert!(serde_json::from_str::<Filtration>(r#"{"stategy": "none"}"#).is_err());
    for mode in ["select", "resample", "resample:3"] {
        assert_eq!(String::from(mode.parse::<Mode>().unwrap()), mode);
    }
    for mode in ["", "sample", "resample:", "resample:0", "resample:-1", "resample:x", "select:2"] {
        assert!(mode.parse::<Mode>().unwrap_err().to_string().contains(mode));
    }
}

fn any_group() -> impl proptest::strategy::Strategy<Value = Vec<(String, f64)>> {
    let score = prop_oneof![(-3_i32..3).prop_map(f64::from), -1.0_f64..1.0];
    prop::collection::hash_map("[a-c]{1,4}", score, 1..9).prop_map(|group| group.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The same group in another order gets the same decision, rollout by rollout.
    #[test]
    fn order_has_no_say(group in any_group(), rotate in 0_usize..9, strategy in 0..ALL.len(), resample: bool, seed: u64) {
        let filtration = by(ALL[strategy], if resample { RESAMPLE } else { Mode::Select });
        let decide = |group: &[(String, f64)]| {
            let rollouts: Vec<_> = group.iter().map(|(id, score)| (id.as_str(), *score)).collect();
            match filter(filtration, seed, "p", &rollouts) {
                GroupDecision::NoSignal => None,
                GroupDecision::Choices(choices) => {
                    assert_eq!(choices.len(), group.len());
                    let mut named: Vec<_> =
                        group.iter().zip(choices).map(|((id, _), choice)| (id.clone(), choice.weight, choice.kept)).collect();
                    named.sort_by(|a, b| a.0.cmp(&b.0));
                    Some(named)
                }
            }
        };
        let expected = decide(&group);
        let mut other = group.clone();
        other.rotate_left(rotate % group.len());
        prop_assert_eq!(&decide(&other), &expected);
        other.reverse();
        prop_assert_eq!(&decide(&other), &expected);
    }

    /// Weights are finite, kept means a weight, and their sum is what the mode promises.
    #[test]
    fn weights_sum_to_what_the_mode_promises(group in any_group(), strategy in 0..ALL.len(), draws in 1_u32..6, seed: u64) {
        let rollouts: Vec<_> = group.iter().map(|(id, score)| (id.as_str(), *score)).collect();
        let size = group.len();
        let strategy = ALL[strategy];
        if let GroupDecision::Choices(choices) = filter(by(strategy, Mode::Select), seed, "p", &rollouts) {
            prop_assert!(choices.iter().all(|choice| choice.weight.is_finite() && choice.kept == (choice.weight > 0.0)));
            let sum: f64 = choices.iter().map(|choice| choice.weight).sum();
            match strategy {
                Strategy::BestOfN => prop_assert_eq!(sum, 1.0),
                Strategy::BestRandom | Strategy::BestWorst => prop_assert_eq!(sum, size.min(2) as f64),
                Strategy::None | Strategy::Power { .. } | Strategy::PowerPerPrompt { .. } => prop_assert!((sum - size as f64).abs() < 1e-9),
                Strategy::Top { .. } | Strategy::TopRandom { .. } | Strategy::TopBottom { .. } => {
                    prop_assert!(choices.iter().all(|choice| choice.weight == 0.0 || choice.weight == 1.0));
                }
            }
        }
        if let GroupDecision::Choices(choices) = filter(by(strategy, Mode::Resample { draws }), seed, "p", &rollouts) {
            let sum: f64 = choices.iter().map(|choice| choice.weight).sum();
            prop_assert!(sum == f64::from(draws) || sum == 0.0);
            prop_assert!(choices.iter().all(|choice| choice.weight.fract() == 0.0));
        }
    }

    /// The best rollout is always kept by the best-* selections, and a rollout that is kept is one of the
    /// group's.
    #[test]
    fn the_best_is_always_kept(group in any_group(), seed: u64) {
        let rollouts: Vec<_> = group.iter().map(|(id, score)| (id.as_str(), *score)).collect();
        let best = group.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        for strategy in [Strategy::BestOfN, Strategy::BestRandom, Strategy::BestWorst] {
            if let GroupDecision::Choices(choices) = filter(by(strategy, Mode::Select), seed, "p", &rollouts) {
                prop_assert!(choices.iter().zip(&group).any(|(choice, (_, score))| choice.kept && *score == best));
            }
        }
    }
}

/// Prompts with the same rollouts do not get the same draws, nor do other seeds: the streams are apart.
#[test]
fn prompts_and_seeds_have_streams_of_their_own() {
    let pattern = |prompt: &str, seed: u64| {
        format!(
            "{:?}",
            weights(&filter(by(Strategy::None, Mode::Resample { draws: 40 }), seed, prompt, &FIVE))
        )
    };
    let patterns: HashSet<String> = (0..10)
        .map(|seed| pattern("p", seed))
        .chain((0..10).map(|prompt| pattern(&prompt.to_string(), 0)))
        .collect();
    assert_eq!(patterns.len(), 20);
}
