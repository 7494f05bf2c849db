//! What would make a run fail after it has started, found before: every role's own validation, what the
//! recipe names on this machine, and what sections owe each other.
//!
//! Everything is looked at and said at once, with the place of the key and what to do.

use std::path::{Path, PathBuf};

use algo::AdvantageEstimator;
use service::Security;
use service::config::{Error, Key, Source};

use super::resolved::Resolved;
use super::{
    Recipe, RecipeFile, eval_stages, external_engines, first_rows, inputs, surroundings, tokenizers,
};

impl RecipeFile {
    /// Refuses a recipe that cannot run to its end on this machine.
    ///
    /// # Errors
    /// Every problem, with the place of its key.
    pub(crate) fn preflight(&self) -> anyhow::Result<()> {
        let resolved = self.resolved()?;
        let mut problems = self.stage_problems();
        problems.extend(training_problems(&self.recipe));
        problems.extend(eval_stages::problems(&self.recipe));
        problems.extend(self.recipe.tracking.problems());
        problems.extend(unusable_tokens(&self.recipe));
        let made = self.made();
        for key in resolved.keys() {
            if let Some(stage) = stage_of(&key.path) {
                problems.extend(self.missing(key, &made, stage));
            }
        }
        let mut problems: Vec<String> =
            problems.into_iter().map(|problem| placed(&resolved, &problem)).collect();
        for (stage, ring) in self.recipe.stages_or_ring().iter().enumerate() {
            if ring.ring.is_some() {
                let found = self.of_ring(ring)?.ring_problems(&made, stage)?;
                problems.extend(
                    found.into_iter().filter(|problem| !problems.contains(problem)).collect::<Vec<_>>(),
                );
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Unusable { problems }.into()) }
    }

    /// What is wrong with its ring, which is this stage of the recipe.
    fn ring_problems(&self, made: &[Made], stage: usize) -> anyhow::Result<Vec<String>> {
        let resolved = self.resolved()?;
        let mut problems = self.role_problems()?;
        problems.extend(owed(&self.recipe));
        problems.extend(first_rows::problems(&self.recipe));
        problems.extend(surroundings::problems(&self.recipe));
        problems.extend(external_engines::problems(&self.recipe));
        problems.extend(tokenizers::problem(&self.recipe));
        let of_ring = resolved.keys().filter(|key| stage_of(&key.path).is_none());
        for key in of_ring.filter(|key| !is_said_of_its_source(&resolved, key)) {
            problems.extend(self.missing(key, made, stage));
        }
        Ok(problems.into_iter().map(|problem| placed(&resolved, &problem)).collect())
    }

    /// What the roles say about their own sections.
    fn role_problems(&self) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        for mut config in self.role_configs() {
            // Addresses are known when the processes are.
            config.address_for_checks();
            let section = config.role().section();
            let found = config.check()?.problems;
            problems.extend(found.into_iter().map(|problem| format!("{section}.{problem}")));
        }
        Ok(problems)
    }

    /// Stages that would undo or mix up each other.
    fn stage_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for stage in &self.recipe.stages {
            if stage.work().is_ok_and(|work| work.output().as_os_str().is_empty()) {
                problems.push(format!("stage {}: output is missing: name what it makes", stage.name));
            }
        }
        let made = self.made();
        for (later, one) in made.iter().enumerate() {
            for other in made[..later].iter().filter(|other| one.output.starts_with(&other.output)) {
                problems.push(format!(
                    "stages[{}].name: {} writes into {}, which {} makes",
                    one.stage,
                    self.stage_name(one.stage),
                    other.output.display(),
                    self.stage_name(other.stage)
                ));
            }
        }
        problems
    }

    fn stage_name(&self, index: usize) -> &str {
        self.recipe.stages.get(index).map_or("the ring", |stage| stage.name.as_str())
    }

    /// What a key of a stage names that is not there and that no stage before it makes.
    fn missing(&self, key: &Key, made: &[Made], stage: usize) -> Vec<String> {
        let before: Vec<&Path> =
            made.iter().filter(|made| made.stage < stage).map(|made| made.output.as_path()).collect();
        inputs::missing(key, Some(&before), &self.path, "{recipe}")
    }

    /// What the stages make, in their order.
    fn made(&self) -> Vec<Made> {
        let stages = self.recipe.stages_or_ring();
        let outputs = stages.iter().enumerate().filter_map(|(stage, work)| {
            let work = work.work().ok().filter(|work| !work.output().as_os_str().is_empty())?;
            Some(Made { stage, output: work.output().clone() })
        });
        outputs.collect()
    }
}

/// What a stage leaves.
struct Made {
    /// Its place in the recipe.
    stage: usize,
    output: PathBuf,
}

/// The stage that a key belongs to; none for one of the ring's.
fn stage_of(path: &str) -> Option<usize> {
    let (index, _) = path.strip_prefix("stages[")?.split_once(']')?;
    index.parse().ok()
}

/// What stages that train say of their own tables.
fn training_problems(recipe: &Recipe) -> Vec<String> {
    let mut problems = Vec::new();
    for (at, stage) in recipe.stages.iter().enumerate() {
        let of_tables = [
            ("sft", stage.sft.as_ref().map(learner::SftConfig::problems)),
            ("reward_model", stage.reward_model.as_ref().map(learner::RewardModelConfig::problems)),
            ("dpo", stage.dpo.as_ref().map(learner::PreferenceConfig::problems)),
        ];
        for (table, found) in of_tables {
            // An output that is there is that of a stage that is done, or is made anew.
            let found = found.into_iter().flatten().filter(|problem| !problem.starts_with("output "));
            problems.extend(found.map(|problem| format!("stages[{at}].{table}.{problem}")));
        }
    }
    problems
}

/// Tokens or certificates that no process could use.
fn unusable_tokens(recipe: &Recipe) -> Option<String> {
    let problem = Security::load("observer", &recipe.security).err()?;
    Some(format!("security.{problem}"))
}

/// What one section owes another.
fn owed(recipe: &Recipe) -> Vec<String> {
    let mut problems = Vec::new();
    let Recipe { coordinator, learner, reward_server, actor, .. } = recipe;
    if learner.ppo.needs_reference() && reward_server.reference.is_none() {
        problems.push(
            "learner.ppo.kl_coefficient: a KL needs a reference: add [reward_server.reference] with model, \
             or set learner.ppo.kl_coefficient = 0"
                .to_owned(),
        );
    }
    if coordinator.sampling.temperature() == 0.0 {
        problems.push(
            "coordinator.sampling.temperature is 0: greedy responses have no log-probs to train on; set it above 0"
                .to_owned(),
        );
    }
    let compares = matches!(learner.ppo.algorithm.defaults().advantage, AdvantageEstimator::Group(_));
    if compares && coordinator.group_size < 2 {
        problems.push(
            "coordinator.group_size is 1, but this learner.ppo.algorithm compares the responses of a group: \
             nothing would be learned; set it to 2 or more"
                .to_owned(),
        );
    }
    let strategy = coordinator.filtration.strategy.to_string();
    if ["best-of-n", "best-random", "best-worst"].contains(&strategy.as_str()) && coordinator.group_size < 2 {
        problems.push(format!(
            "coordinator.group_size is 1, but coordinator.filtration.strategy = {strategy:?} chooses among the responses \
             of a group: set it to 2 or more, or the strategy to \"none\""
        ));
    }
    if let Some(eval) = &coordinator.eval
        && !eval.every.is_multiple_of(learner.checkpoint_every.max(1))
    {
        problems.push(format!(
            "coordinator.eval.every is {}, no multiple of learner.checkpoint_every = {}: the best version could \
             not be kept",
            eval.every, learner.checkpoint_every
        ));
    }
    let (group, slots) = (usize::from(coordinator.group_size), actor.engine.max_sequences());
    if slots < group {
        problems.push(format!(
            "actor.engine.max_sequences is {slots}, below coordinator.group_size = {group}: no actor could \
             ever take a prompt"
        ));
    }
    if coordinator.filtration.is_auto() && reward_server.sandbox.is_none() && !reward_server.has_yardstick() {
        problems.push(
            "coordinator.filtration.strategy is \"auto\", but nothing would say which responses are right: mark \
             a scorer by yardstick = true, add [reward_server.sandbox], which runs the tests of prompts that have \
             some, or name a strategy"
                .to_owned(),
        );
    }
    if let Some(context) = actor.engine.context_tokens
        && context <= coordinator.sampling.max_new_tokens() as usize
    {
        problems.push(format!(
            "actor.engine.context_tokens is {context}, and coordinator.sampling.max_new_tokens = {} leaves no \
             room for a prompt",
            coordinator.sampling.max_new_tokens()
        ));
    }
    problems.extend(too_few_places(recipe));
    problems.extend(agents_problems(recipe));
    problems
}

/// In deterministic mode the episodes of a lease take their turns together: one that waits for a place that
/// another holds would wait for ever. An actor has one lease at a time.
fn too_few_places(recipe: &Recipe) -> Option<String> {
    let Recipe { coordinator, reward_server, processes, .. } = recipe;
    let places = reward_server.environment.as_ref().filter(|_| coordinator.deterministic)?.places();
    let responses = coordinator.eval.as_ref().map_or(0, |eval| eval.samples).max(coordinator.group_size);
    let prompts = usize::try_from(coordinator.lease_prompts).unwrap_or(usize::MAX);
    let episodes = prompts.saturating_mul(usize::from(responses)).saturating_mul(processes.actors);
    let reward_server::config::EpisodePlaces { key, places } = places;
    (places < episodes).then(|| {
        format!(
            "reward_server.environment.{key} is {places}, but a deterministic run plays up to {episodes} episodes \
             together (coordinator.lease_prompts, coordinator.group_size, processes.actors): set it to {episodes} or \
             more, or coordinator.lease_prompts lower"
        )
    })
}

/// What keeps agents from playing the recipe's episodes.
fn agents_problems(recipe: &Recipe) -> Vec<String> {
    let Recipe { coordinator, reward_server, actor, .. } = recipe;
    if !actor.agents.enabled {
        return Vec::new();
    }
    let responses = coordinator.eval.as_ref().map_or(0, |eval| eval.samples).max(coordinator.group_size);
    let too_few = format!(
        "actor.agents.episodes is {}, but a prompt has {responses} responses, which are leased together: set it to \
         {responses} or more",
        actor.agents.episodes
    );
    let played_twice =
        "actor.agents.enabled, but [reward_server.environment] plays episodes too: leave out one of the two";
    let unrepeatable = "actor.agents.enabled, but coordinator.deterministic is true: nobody repeats what agents do; \
                        set one of the two to false";
    let problems = [
        (actor.agents.episodes < usize::from(responses), too_few),
        (reward_server.environment.is_some(), played_twice.to_owned()),
        (coordinator.deterministic, unrepeatable.to_owned()),
    ];
    problems.into_iter().filter(|(is_one, _)| *is_one).map(|(_, problem)| problem).collect()
}

/// Whether a key names what another does that it was derived from, and that is not there: the other says so.
fn is_said_of_its_source(resolved: &Resolved<'_>, key: &Key) -> bool {
    let Source::Derived(from) = resolved.source(&key.path) else { return false };
    let named = key.value.as_ref().and_then(serde_json::Value::as_str);
    let is_absent = named.is_some_and(|path| !Path::new(path).exists());
    is_absent && resolved.keys().any(|other| other.path == *from && other.value == key.value)
}

/// The problem behind the place of the key that it begins with.
fn placed(resolved: &Resolved<'_>, problem: &str) -> String {
    let key = problem.split([' ', ':', ',']).next().unwrap_or_default();
    match resolved.source(key) {
        Source::Set(origin) => format!("{origin}: {problem}"),
        Source::Derived(from) => format!("{problem} (from {from})"),
        Source::Default => problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_play_alone_and_all_of_a_group() {
        let found = |text: &str| agents_problems(&toml::from_str(text).unwrap()).join("\n");
        let agents = "[actor.agents]\nenabled = true\nepisodes = 4\n";
        assert_eq!(found(&format!("[coordinator]\ngroup_size = 4\n{agents}")), "");
        let few = found(&format!("[coordinator]\ngroup_size = 5\n{agents}"));
        assert!(few.contains("actor.agents.episodes is 4, but a prompt has 5"), "{few}");
        let both = "[coordinator]\ndeterministic = true\n[reward_server.environment]\nkind = 'python'\n";
        let said = found(&format!("{both}{agents}"));
        assert!(said.contains("plays episodes too") && said.contains("deterministic is true"), "{said}");
        assert_eq!(found(both), "");
    }

    #[test]
    fn what_compares_responses_needs_two_of_them() {
        let found = |text: &str| owed(&toml::from_str(text).unwrap()).join("\n");
        let compared = "[coordinator]\ngroup_size = 1\nfiltration.strategy = 'none'\n[learner.ppo]\nkl_coefficient = 0.0\n";
        let grpo = format!("{compared}algorithm = 'grpo'\n");
        assert!(
            found(&grpo).contains("group_size is 1, but this learner.ppo.algorithm compares"),
            "{}",
            found(&grpo)
        );
        let two = grpo.replace("group_size = 1", "group_size = 2");
        assert_eq!(found(&two), "");
        let greedy = two.replace("[learner.ppo]", "sampling.temperature = 0.0\n[learner.ppo]");
        assert!(found(&greedy).contains("coordinator.sampling.temperature is 0"), "{}", found(&greedy));
        // PPO judges a response by itself; a strategy that chooses among siblings has nothing to choose of.
        let ppo = format!("{compared}algorithm = 'pf-ppo'\n");
        assert_eq!(found(&ppo), "");
        let filtered = ppo.replace("'none'", "'best-worst'");
        let said = found(&filtered);
        assert!(said.contains("strategy = \"best-worst\" chooses among the responses"), "{said}");
    }
}
