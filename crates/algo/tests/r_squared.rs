//! R² of outcome on reward against NumPy: `array_split` of the sorted responses into bins, means, `lstsq`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use algo::filtration::{Filtration, Mode, NoSignal, Strategy};
use algo::r2::{Outcome, RSquared, filtered_r_squared, r_squared};

/// A reward on an even grid in a scrambled order, and an outcome that follows it more where it is extreme:
/// the paper's picture.
fn responses(count: u64) -> Vec<(f64, f64)> {
    (0..count)
        .map(|i| {
            let reward = (i * 7919 % count) as f64 / count as f64 * 2.0 - 1.0;
            let noise = (i * 104_729 % 1009) as f64 / 1009.0;
            (reward, if noise < 0.5 + 0.5 * reward.powi(3) { 1.0 } else { 0.0 })
        })
        .collect()
}

fn pool(responses: &[(f64, f64)]) -> Vec<Outcome> {
    responses.iter().map(|&(reward, outcome)| Outcome { reward, outcome, weight: 1.0 }).collect()
}

fn assert_r2(found: RSquared, expected: f64) {
    let value = found.r_squared.unwrap();
    assert!((value - expected).abs() < 1e-12, "{value} {expected}");
}

fn by(strategy: Strategy) -> Filtration {
    Filtration { strategy, mode: Mode::Select, no_signal: NoSignal::default() }
}

#[test]
fn s1_5_one_point_per_bin_of_equal_count() {
    let all = pool(&responses(1000));
    assert_r2(r_squared(&all, 20).unwrap(), 0.833_431_924_564_983);
    assert_r2(r_squared(&all, 50).unwrap(), 0.812_904_057_979_185_1);
}

#[test]
fn s1_5_fewer_responses_than_bins_are_a_point_each() {
    let result = r_squared(&pool(&responses(1000)[..12]), 20).unwrap();
    assert_eq!((result.bins, result.responses), (12, 12));
    assert_r2(result, 0.103_019_506_826_581_45);
}

/// Responses are drawn from the filtered policy: for best-worst and best-of-n those are fixed, so NumPy can
/// have the same pool.
#[test]
fn s1_5_of_the_filtered_policy() {
    let groups: Vec<Vec<(f64, f64)>> = responses(1000).chunks(5).map(<[_]>::to_vec).collect();
    let found = |strategy| filtered_r_squared(&by(strategy), &groups, 20).unwrap();
    assert_r2(found(Strategy::None), 0.833_431_924_564_983);
    assert_r2(found(Strategy::BestWorst), 0.497_374_912_781_689_44);
    assert_r2(found(Strategy::BestOfN), 0.310_486_553_339_329_5);
    assert_eq!(found(Strategy::BestWorst).responses, 400);
}

/// Best-random's pool is the average over infinitely many draws: averaging the pools of many seeds comes to
/// the same.
#[test]
fn s1_5_expected_weights_are_the_limit_of_draws() {
    let groups: Vec<Vec<(f64, f64)>> = responses(200).chunks(5).map(<[_]>::to_vec).collect();
    let exact = filtered_r_squared(&by(Strategy::BestRandom), &groups, 20).unwrap().r_squared.unwrap();
    let mut drawn = Vec::new();
    for seed in 0..2000 {
        for (prompt, group) in groups.iter().enumerate() {
            let ids: Vec<String> = (0..group.len()).map(|rollout| rollout.to_string()).collect();
            let rollouts: Vec<_> = ids
                .iter()
                .zip(group)
                .map(|(id, &(score, _))| algo::filtration::Candidate { rollout_id: id, score })
                .collect();
            let group_view = algo::filtration::Group { prompt_id: &prompt.to_string(), rollouts: &rollouts };
            let decision =
                algo::filtration::filter_group(&by(Strategy::BestRandom), seed, &group_view).unwrap();
            let algo::filtration::GroupDecision::Choices(choices) = decision else { panic!("no signal") };
            drawn.extend(group.iter().zip(choices).map(|(&(reward, outcome), choice)| Outcome {
                reward,
                outcome,
                weight: choice.weight,
            }));
        }
    }
    let limit = r_squared(&drawn, 20).unwrap().r_squared.unwrap();
    assert!((limit - exact).abs() < 0.01, "{limit} {exact}");
}

#[test]
fn order_and_ties_have_no_say() {
    let mut tied: Vec<_> =
        responses(999).into_iter().map(|(reward, s)| ((reward * 30.0).round() / 30.0, s)).collect();
    let expected = r_squared(&pool(&tied), 20).unwrap();
    tied.reverse();
    let reversed = r_squared(&pool(&tied), 20).unwrap();
    assert!((reversed.r_squared.unwrap() - expected.r_squared.unwrap()).abs() < 1e-12);
    let groups: Vec<Vec<(f64, f64)>> = tied.chunks(3).map(<[_]>::to_vec).collect();
    let mirrored: Vec<Vec<(f64, f64)>> =
        groups.iter().rev().map(|group| group.iter().rev().copied().collect()).collect();
    for strategy in [Strategy::BestRandom, Strategy::BestWorst, Strategy::Power { k: 2.0 }] {
        let [a, b] =
            [&groups, &mirrored].map(|groups| filtered_r_squared(&by(strategy), groups, 20).unwrap());
        assert!((a.r_squared.unwrap() - b.r_squared.unwrap()).abs() < 1e-12, "{strategy}");
    }
}

/// Rewards 0, 0, 1, 2 with outcomes 0, 1, 0, 1 in three bins of mass 4/3, by hand: (0, 1/2), (1/2, 1/4),
/// (7/4, 3/4).
#[test]
fn a_tie_has_its_mean_outcome_and_edges_divide_a_response() {
    let tied = pool(&[(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (2.0, 1.0)]);
    let result = r_squared(&tied, 20).unwrap();
    assert_eq!((result.bins, result.responses), (3, 4));
    assert_r2(result, 0.3125 * 0.3125 / (1.625 * 0.125));
}

/// A weight of two is the response twice.
#[test]
fn weights_are_multiplicities() {
    let all = responses(100);
    let doubled: Vec<_> = all.iter().chain(&all[..40]).copied().collect();
    let mut weighted = pool(&all);
    weighted[..40].iter_mut().for_each(|response| response.weight = 2.0);
    assert_r2(r_squared(&weighted, 20).unwrap(), r_squared(&pool(&doubled), 20).unwrap().r_squared.unwrap());
}

#[test]
fn binary_rewards_and_empty_pools_have_no_r_squared() {
    let binary: Vec<_> = responses(100).into_iter().map(|(reward, s)| (f64::from(reward > 0.0), s)).collect();
    assert_eq!(r_squared(&pool(&binary), 20).unwrap().r_squared, None);
    let nothing = filtered_r_squared(&by(Strategy::Top { threshold: 9.0 }), &[binary], 20).unwrap();
    assert_eq!((nothing.r_squared, nothing.responses), (None, 0));
    assert!(filtered_r_squared(&by(Strategy::None), &[vec![(f64::NAN, 1.0)]], 20).is_err());
    let empty_group = filtered_r_squared(&by(Strategy::Power { k: 1.0 }), &[vec![]], 20).unwrap();
    assert_eq!(empty_group.r_squared, None);
}
