//! What would make a run fail after it has started, found before: every role's own validation, what the
//! recipe names on this machine, and what sections owe each other.
//!
//! Everything is looked at and said at once, with the place of the key and what to do.

use std::path::{Path, PathBuf};

use algo::AdvantageEstimator;
use service::Security;
use service::config::{Error, Key, Source};

use super::resolved::Resolved;
use super::{Recipe, RecipeFile, eval_stages, first_rows, surroundings, tokenizers};

impl RecipeFile {
    /// Refuses a recipe that cannot run to its end on this machine.
    ///
    /// # Errors
    /// Every problem, with the place of its key.
    pub(crate) fn preflight(&self) -> anyhow::Result<()> {
        let resolved = self.resolved()?;
        let mut problems = self.stage_problems();
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
        problems.extend(tokenizers::problem(&self.recipe));
        for key in resolved.keys().filter(|key| stage_of(&key.path).is_none()) {
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
        let values: Vec<&str> = match &key.value {
            Some(serde_json::Value::String(path)) => vec![path],
            Some(serde_json::Value::Array(paths)) => {
                paths.iter().filter_map(serde_json::Value::as_str).collect()
            }
            _ => Vec::new(),
        };
        let before: Vec<&Made> = made.iter().filter(|made| made.stage < stage).collect();
        let paths = values.into_iter().filter(|path| !path.is_empty()).map(Path::new);
        let unmade = paths.filter(|path| !before.iter().any(|made| path.starts_with(&made.output)));
        let said = unmade.filter_map(|path| Some((path, absence(path, &key.kind)?)));
        said.map(|(path, problem)| format!("{} is {path:?}: {problem}{}", key.path, self.found_at(path)))
            .collect()
    }

    /// From where a relative path is looked for, and whether it is beside the recipe.
    fn found_at(&self, path: &Path) -> String {
        if path.is_absolute() || path.exists() {
            return String::new();
        }
        let here = std::env::current_dir().unwrap_or_default();
        let beside = self.path.parent().filter(|folder| folder.join(path).exists());
        let hint =
            beside.map(|_| format!("; there is one beside the recipe: write {{recipe}}/{}", path.display()));
        format!(" (seen from {}{})", here.display(), hint.unwrap_or_default())
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

/// What is wrong with an input on this machine.
fn absence(path: &Path, kind: &str) -> Option<String> {
    let inside = match kind {
        "model folder" => Some("config.json"),
        "tokenizer folder" => Some("tokenizer.json"),
        "file" | "files" => None,
        _ => return None,
    };
    match inside {
        None if path.is_file() => None,
        None if path.is_dir() => Some("it is a folder, must be a file".to_owned()),
        None => Some("there is no such file, and no stage before makes it".to_owned()),
        Some(_) if !path.exists() => Some("there is no such folder, and no stage before makes it".to_owned()),
        Some(file) if !path.join(file).is_file() => Some(format!("it holds no {file}")),
        Some(_) => None,
    }
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
    let compares = matches!(learner.ppo.algorithm.defaults().advantage, AdvantageEstimator::Group(_));
    if compares && coordinator.group_size < 2 {
        problems.push(
            "coordinator.group_size is 1, but this learner.ppo.algorithm compares the responses of a group: \
             nothing would be learned; set it to 2 or more"
                .to_owned(),
        );
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
    let (group, slots) = (usize::from(coordinator.group_size), actor.engine.max_sequences);
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

/// The problem behind the place of the key that it begins with.
fn placed(resolved: &Resolved<'_>, problem: &str) -> String {
    let key = problem.split([' ', ':', ',']).next().unwrap_or_default();
    match resolved.source(key) {
        Source::Set(origin) => format!("{origin}: {problem}"),
        Source::Derived(from) => format!("{problem} (from {from})"),
        Source::Default => problem.to_owned(),
    }
}
