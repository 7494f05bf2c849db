//! The filtration's strategy, where `auto` chooses it: the one whose reward is most reliable, with
//! hysteresis.
//!
//! A choice is judged by estimates, which follow from facts; what is chosen is a fact of its own
//! (`Fact::StrategyChosen`), so that a restart draws what was drawn before, whatever estimates it would make
//! today. It is in force for the groups that are complete after it.

use std::collections::BTreeMap;

use algo::filtration::{Filtration, Strategy};
use algo::r2::Estimate;
use serde::{Deserialize, Serialize};

use super::filtration_plan::FiltrationPlan;
use super::outcomes::Trust;

/// The strategy in force, and which one is ahead of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AutoStrategy {
    /// What was chosen; none before the first time.
    chosen: Option<Strategy>,
    /// The one that is ahead, and for how many windows in a row.
    ahead: Option<(Strategy, u64)>,
    /// What is to be chosen, with the reason.
    due: Option<(Strategy, String)>,
}

/// A candidate with the lower end of its R².
#[derive(Debug, Clone, Copy)]
struct Candidate {
    strategy: Strategy,
    low: f64,
}

impl AutoStrategy {
    /// The filtration in force.
    pub(super) fn filtration(&self, plan: &FiltrationPlan) -> Filtration {
        match self.chosen.filter(|_| plan.is_auto()) {
            Some(strategy) => plan.with(strategy),
            None => plan.first(),
        }
    }

    /// What is to be made a fact.
    pub(super) fn due(&self) -> Option<(Strategy, String)> {
        self.due.clone()
    }

    /// It is a fact; yields the strategy that was in force.
    pub(super) fn chosen(&mut self, plan: &FiltrationPlan, strategy: Strategy) -> Strategy {
        let before = self.filtration(plan).strategy;
        *self = Self { chosen: Some(strategy), ..Self::default() };
        before
    }

    /// Judges the candidates by what a step has found; yields what there is to say about it.
    pub(super) fn judge(&mut self, plan: &FiltrationPlan, trust: &Trust) -> Option<String> {
        if !plan.is_auto() {
            return None;
        }
        let current = self.filtration(plan).strategy;
        if trust.groups < plan.auto.min_groups {
            self.ahead = None;
            let (groups, wanted) = (trust.groups, plan.auto.min_groups);
            return Some(format!("keeps {current}: {groups} of {wanted} groups with outcomes in the window"));
        }
        let Some(best) = best(plan, &trust.estimates) else {
            self.ahead = None;
            return Some(format!("keeps {current}: no candidate has an R²"));
        };
        // A strategy that leaves too little for an R² explains nothing.
        let in_force = trust.estimates.get(&current.to_string()).map_or(0.0, |estimate| estimate.low);
        if best.strategy == current || best.low <= in_force + plan.auto.margin {
            self.ahead = None;
            let strategy = best.strategy;
            return Some(if strategy == current {
                format!("keeps {current}: R² is at least {in_force:.3}, the most of all candidates")
            } else {
                format!("keeps {current}: R² is at least {in_force:.3}, of {strategy} {:.3}", best.low)
            });
        }
        Some(self.leads(plan, best, (current, in_force), trust.is_new))
    }

    /// A candidate is ahead of the strategy in force.
    fn leads(
        &mut self,
        plan: &FiltrationPlan,
        best: Candidate,
        (current, in_force): (Strategy, f64),
        is_new: bool,
    ) -> String {
        let before =
            self.ahead.filter(|(strategy, _)| *strategy == best.strategy).map_or(0, |(_, count)| count);
        let count = before + u64::from(is_new);
        self.ahead = Some((best.strategy, count));
        let (strategy, low, needed) = (best.strategy, best.low, plan.auto.windows);
        let lead = format!("R² is at least {low:.3} for {strategy} and {in_force:.3} for {current}");
        if count < needed {
            return format!("keeps {current}: {lead}, in {count} of {needed} windows");
        }
        let reason = format!("{lead}, in {needed} windows in a row");
        self.due = Some((strategy, reason.clone()));
        format!("chooses {strategy}: {reason}")
    }
}

/// The candidate with the best lower end; of equal ones the first.
fn best(plan: &FiltrationPlan, estimates: &BTreeMap<String, Estimate>) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    for strategy in plan.candidates() {
        if let Some(Estimate { low, .. }) = estimates.get(&strategy.to_string()).copied()
            && best.is_none_or(|best| low > best.low)
        {
            best = Some(Candidate { strategy, low });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{AutoPlan, StrategyChoice};

    fn plan() -> FiltrationPlan {
        let auto = AutoPlan { min_groups: 10, windows: 2, ..AutoPlan::default() };
        FiltrationPlan { strategy: StrategyChoice::Auto, auto, ..FiltrationPlan::default() }
    }

    fn trust(lows: &[(&str, f64)], is_new: bool) -> Trust {
        let estimate = |low| Estimate { r_squared: low + 0.1, low, high: low + 0.2, ceiling: 0.9 };
        let estimates = lows.iter().map(|(name, low)| ((*name).to_owned(), estimate(*low))).collect();
        Trust { estimates, is_new, groups: 64, ..Trust::default() }
    }

    #[test]
    fn a_strategy_has_to_be_ahead_by_the_margin_in_every_window() {
        let (plan, mut auto) = (plan(), AutoStrategy::default());
        assert_eq!(auto.filtration(&plan).strategy, Strategy::BestWorst, "the start");
        let ahead = trust(&[("best-worst", 0.4), ("none", 0.5)], true);
        let within = trust(&[("best-worst", 0.4), ("none", 0.44)], true);
        auto.judge(&plan, &ahead);
        auto.judge(&plan, &within);
        let said = auto.judge(&plan, &ahead).unwrap();
        assert_eq!(
            said,
            "keeps best-worst: R² is at least 0.500 for none and 0.400 for best-worst, in 1 of 2 windows"
        );
        assert_eq!(auto.due(), None, "it was not ahead in the window between");
        auto.judge(&plan, &trust(&[("best-worst", 0.4), ("none", 0.5)], false));
        assert_eq!(auto.due(), None, "the same window again");
        auto.judge(&plan, &ahead);
        let (strategy, reason) = auto.due().unwrap();
        assert_eq!(strategy, Strategy::None);
        assert!(reason.ends_with("in 2 windows in a row"), "{reason}");
        assert_eq!(auto.filtration(&plan).strategy, Strategy::BestWorst, "nothing changes without the fact");
        assert_eq!(auto.chosen(&plan, strategy), Strategy::BestWorst);
        assert_eq!((auto.filtration(&plan).strategy, auto.due()), (Strategy::None, None));
    }

    #[test]
    fn too_few_groups_and_no_outcome_decide_nothing() {
        let (plan, mut auto) = (plan(), AutoStrategy::default());
        let few = Trust { groups: 9, ..trust(&[("none", 0.9)], true) };
        assert!(auto.judge(&plan, &few).unwrap().contains("9 of 10 groups"));
        assert!(auto.judge(&plan, &trust(&[], true)).unwrap().contains("no candidate"));
        // Only candidates are chosen, and one without an R² is behind one that has one.
        for _ in 0..2 {
            auto.judge(&plan, &trust(&[("best-of-n", 0.9), ("none", 0.2)], true));
        }
        assert_eq!(auto.due().map(|(strategy, _)| strategy), Some(Strategy::None));
        let fixed = FiltrationPlan::default();
        assert_eq!(AutoStrategy::default().judge(&fixed, &few), None);
    }
}
