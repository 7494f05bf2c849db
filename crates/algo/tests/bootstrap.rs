//! R² with interval and ceiling: what it says of rewards whose reliability is known.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use algo::filtration::{Filtration, Mode, Strategy};
use algo::r2::{Bootstrap, Estimate, estimates};

const BOOTSTRAP: Bootstrap = Bootstrap { seed: 7, replicates: 100, bins: 20 };

/// A number in 0..1 that looks random.
fn scrambled(number: u64) -> f64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 32)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Groups of five rewards in -1..1, and outcomes of 1 with the chance that `chance` says.
fn groups(count: u64, chance: impl Fn(f64) -> f64) -> Vec<Vec<(f64, f64)>> {
    let response = |number: u64| {
        let reward = 2.0 * scrambled(2 * number) - 1.0;
        (reward, f64::from(u8::from(scrambled(2 * number + 1) < chance(reward))))
    };
    (0..count).map(|group| (0..5).map(|sibling| response(5 * group + sibling)).collect()).collect()
}

fn of(strategy: Strategy, groups: &[Vec<(f64, f64)>]) -> Option<Estimate> {
    let filtration = Filtration { strategy, ..Filtration::default() };
    estimates(&[filtration], groups, BOOTSTRAP).unwrap()[0]
}

#[test]
fn a_calibrated_reward_reaches_its_ceiling_under_every_strategy() {
    let groups = groups(512, |reward| 0.5 + 0.5 * reward);
    for strategy in [
        Strategy::None,
        Strategy::BestRandom,
        Strategy::BestWorst,
        Strategy::BestOfN,
        Strategy::Power { k: 2.0 },
        Strategy::PowerPerPrompt { k: 2.0 },
    ] {
        let found = of(strategy, &groups).unwrap();
        assert!(found.low < found.r_squared && found.r_squared < found.high, "{strategy}: {found:?}");
        assert!((found.r_squared - found.ceiling).abs() < 0.12, "{strategy}: {found:?}");
    }
    // The range that best-of-n leaves is narrow: the same reward explains less of it.
    let (all, best) = (of(Strategy::None, &groups).unwrap(), of(Strategy::BestOfN, &groups).unwrap());
    assert!(all.r_squared > best.r_squared + 0.1, "{all:?} {best:?}");
}

/// The paper's observation: rewards can be trusted where they are extreme. Among its strategies best-worst
/// then has the largest R², and best-of-n the smallest.
#[test]
fn a_reward_that_is_reliable_at_its_ends_is_trusted_most_under_best_worst() {
    let groups = groups(512, |reward| if reward.abs() < 0.6 { 0.5 } else { 0.5 + 0.45 * reward.signum() });
    let low = |strategy| of(strategy, &groups).unwrap().low;
    let found = [Strategy::BestOfN, Strategy::None, Strategy::BestWorst].map(low);
    assert!(found[0] < found[1] && found[1] < found[2], "{found:?}");
}

/// A reward whose middle says nothing is below what its scores could give.
#[test]
fn an_unreliable_reward_stays_below_its_ceiling() {
    let groups = groups(512, |reward| if reward < 0.0 { 0.7 * -reward } else { 0.9 * reward });
    let found = of(Strategy::None, &groups).unwrap();
    assert!(found.high < found.ceiling, "{found:?}");
}

#[test]
fn fewer_prompts_give_a_wider_interval_and_a_lower_ceiling() {
    let many = of(Strategy::None, &groups(512, |reward| 0.5 + 0.5 * reward)).unwrap();
    let few = of(Strategy::None, &groups(48, |reward| 0.5 + 0.5 * reward)).unwrap();
    assert!(few.high - few.low > 1.5 * (many.high - many.low), "{few:?} {many:?}");
    assert!(few.ceiling < many.ceiling, "{few:?} {many:?}");
}

#[test]
fn equal_seeds_give_equal_estimates_and_no_strategy_changes_anothers_pool() {
    let groups = groups(64, |reward| 0.5 + 0.5 * reward);
    let filtration = |strategy| Filtration { strategy, ..Filtration::default() };
    let pair = [filtration(Strategy::None), filtration(Strategy::BestWorst)];
    let once = estimates(&pair, &groups, BOOTSTRAP).unwrap();
    assert_eq!(estimates(&pair, &groups, BOOTSTRAP).unwrap(), once);
    assert_ne!(estimates(&pair, &groups, Bootstrap { seed: 8, ..BOOTSTRAP }).unwrap(), once);
    let drawn = Filtration { mode: Mode::Resample { draws: 2 }, ..filtration(Strategy::None) };
    assert!(estimates(&[drawn], &groups, BOOTSTRAP).unwrap()[0].is_some());
}

#[test]
fn what_cannot_be_estimated_is_absent() {
    let binary: Vec<_> = groups(64, |reward| 0.5 + 0.5 * reward)
        .into_iter()
        .map(|group| {
            group.into_iter().map(|(reward, outcome)| (f64::from(u8::from(reward > 0.0)), outcome)).collect()
        })
        .collect::<Vec<Vec<(f64, f64)>>>();
    assert_eq!(of(Strategy::None, &binary), None, "two points are no regression");
    let always_right = groups(64, |_| 1.0);
    assert_eq!(of(Strategy::None, &always_right), None);
    let some = groups(64, |reward| 0.5 + 0.5 * reward);
    assert_eq!(of(Strategy::Top { threshold: 9.0 }, &some), None);
    assert_eq!(of(Strategy::None, &[]), None);
    let filtration = [Filtration::default()];
    assert!(estimates(&filtration, &[vec![(f64::NAN, 1.0)]], BOOTSTRAP).is_err());
    assert!(estimates(&filtration, &[vec![(1.0, f64::NAN)]], BOOTSTRAP).is_err());
}
