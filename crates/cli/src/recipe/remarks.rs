//! What is worth knowing of a recipe that can run: `check-config` prints it behind the keys, and a ring says
//! it when it starts.

use algo::filtration::{Filtration, Mode, Strategy};
use algo::{AdvantageEstimator, Whiten};
use reward_server::config::ScorerKind;

use super::{Recipe, RecipeFile};

impl RecipeFile {
    /// What is worth knowing of its rings.
    ///
    /// # Errors
    /// A ring that takes settings of a file that cannot be read.
    pub(crate) fn remarks(&self) -> anyhow::Result<Vec<String>> {
        let mut remarks = Vec::new();
        for ring in self.recipe.stages_or_ring().iter().filter(|stage| stage.ring.is_some()) {
            for remark in of_ring(&self.of_ring(ring)?.recipe) {
                if !remarks.contains(&remark) {
                    remarks.push(remark);
                }
            }
        }
        Ok(remarks)
    }
}

/// What is worth knowing of a ring.
pub(crate) fn of_ring(recipe: &Recipe) -> Vec<String> {
    [what_trains(recipe), pushes_good_down(recipe), forgets_failures(recipe)].into_iter().flatten().collect()
}

/// How many of a prompt's responses train, and what they are compared with (docs/decisions.md, D19).
fn what_trains(recipe: &Recipe) -> Option<String> {
    let plan = &recipe.coordinator.filtration;
    let Filtration { strategy, mode, .. } = plan.first();
    let group = recipe.coordinator.group_size;
    let some = match (mode, strategy) {
        (Mode::Select, Strategy::None) => return None,
        (Mode::Select, Strategy::BestOfN) => format!("1 of {group} responses"),
        (Mode::Select, Strategy::BestRandom | Strategy::BestWorst) => format!("2 of {group} responses"),
        (Mode::Select, Strategy::Power { .. } | Strategy::PowerPerPrompt { .. }) => {
            format!("{group} responses, weighted,")
        }
        (Mode::Select, Strategy::Top { .. } | Strategy::TopRandom { .. } | Strategy::TopBottom { .. }) => {
            format!("those of {group} responses that are beyond the threshold,")
        }
        (Mode::Resample { draws }, _) => format!("{draws} draws from {group} responses"),
        (Mode::ResampleBuffer { draws }, _) => {
            format!("{draws} draws on average, from the whole batch, for {group} responses")
        }
    };
    let beginning = if plan.is_auto() { "begins with" } else { "trains" };
    let how = format!("{strategy}, {}", String::from(mode));
    let against = match (recipe.learner.ppo.algorithm.defaults().advantage, whiten(recipe)) {
        (AdvantageEstimator::Group(_), _) => format!("; baselines are over all {group}"),
        (_, Whiten::BeforeFilter) => format!("; advantages are whitened over all {group}"),
        (_, Whiten::AfterFilter) => "; advantages are whitened over those that train".to_owned(),
        (_, Whiten::Off) => String::new(),
    };
    Some(format!("{beginning} {some} of each prompt ({how}){against}"))
}

/// A selection of one end, whitened over what was selected.
fn pushes_good_down(recipe: &Recipe) -> Option<String> {
    let Filtration { strategy, mode, .. } = recipe.coordinator.filtration.first();
    let has_contrast = mode == Mode::Select
        && matches!(strategy, Strategy::None | Strategy::BestRandom | Strategy::BestWorst);
    (whiten(recipe) == Whiten::AfterFilter && !has_contrast).then(|| {
        format!(
            "learner.ppo.whiten is \"after-filter\", and {strategy} in mode {} may keep one end of the scores: what is \
             below the mean of what was kept is pushed down, however good it is; \"before-filter\" takes the mean over \
             all that was drawn",
            String::from(mode)
        )
    })
}

/// A power of scores that have no zero between right and wrong.
fn forgets_failures(recipe: &Recipe) -> Option<String> {
    let Filtration { strategy, .. } = recipe.coordinator.filtration.first();
    let is_power = matches!(strategy, Strategy::Power { .. } | Strategy::PowerPerPrompt { .. });
    let scorers = &recipe.reward_server.scorers;
    let has_verdicts = !scorers.is_empty() && scorers.iter().all(|scorer| is_verdict(&scorer.kind));
    (is_power && has_verdicts).then(|| {
        format!(
            "coordinator.filtration.strategy is {strategy}, which weighs by the distance of a score from 0, and all \
             scorers here give 0 to what is wrong: failures would train with weight 0; best-worst needs no zero"
        )
    })
}

/// Whether a scorer says right or wrong, and 0 where it is wrong.
fn is_verdict(kind: &ScorerKind) -> bool {
    matches!(
        kind,
        ScorerKind::UnitTests(_)
            | ScorerKind::Regex(_)
            | ScorerKind::ExactMatch(_)
            | ScorerKind::NumericMatch(_)
            | ScorerKind::Math(_)
            | ScorerKind::Format(_)
    )
}

fn whiten(recipe: &Recipe) -> Whiten {
    let ppo = &recipe.learner.ppo;
    ppo.whiten.unwrap_or(ppo.algorithm.defaults().whiten)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> String {
        of_ring(&toml::from_str(text).unwrap()).join("\n")
    }

    #[test]
    fn a_ring_says_which_responses_train_and_what_they_are_compared_with() {
        let grpo = "[coordinator]\ngroup_size = 8\nfiltration.strategy = 'best-worst'\n[learner.ppo]\nalgorithm = 'grpo'\n";
        let said = "trains 2 of 8 responses of each prompt (best-worst, select); baselines are over all 8";
        assert_eq!(found(grpo), said);
        assert_eq!(found(&grpo.replace("best-worst", "none")), "", "all train");
        let ppo = grpo.replace("grpo", "pf-ppo");
        assert_eq!(
            found(&ppo),
            said.replace("baselines are over all 8", "advantages are whitened over those that train")
        );
        let auto = found(&grpo.replace("best-worst", "auto"));
        assert!(auto.starts_with("begins with 2 of 8 responses"), "{auto}");
    }

    #[test]
    fn one_end_of_the_scores_whitened_by_itself_is_named() {
        let named = |strategy: &str, mode: &str, more: &str| {
            let text = format!(
                "[coordinator]\ngroup_size = 5\nfiltration.strategy = '{strategy}'\nfiltration.mode = '{mode}'\n\
                 [learner.ppo]\nalgorithm = 'pf-ppo'\n{more}"
            );
            found(&text).contains("is pushed down")
        };
        for strategy in ["best-of-n", "top:0", "top-bottom:-1:1", "power:2"] {
            assert!(named(strategy, "select", ""), "{strategy}");
            assert!(!named(strategy, "select", "whiten = 'before-filter'"), "{strategy}");
        }
        assert!(named("best-worst", "resample:1", ""));
        assert!(!named("best-worst", "select", "") && !named("none", "select", ""));
    }

    #[test]
    fn a_power_of_verdicts_is_named() {
        let named = |scorer: &str| {
            let text = format!(
                "[coordinator]\nfiltration.strategy = 'power:2'\n[learner.ppo]\nalgorithm = 'grpo'\n\
                 [[reward_server.scorers]]\n{scorer}\n"
            );
            found(&text).contains("failures would train with weight 0")
        };
        assert!(named("kind = 'unit-tests'"));
        assert!(!named("kind = 'reward-model'\nmodel = 'm'"));
    }
}
