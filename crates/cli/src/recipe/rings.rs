//! The rings of a recipe: several stages may be rings, each with its own folder and with values of its own
//! over the recipe's sections.

use std::path::PathBuf;

use toml::Value;

use super::ring_folder::RingFolder;
use super::{RecipeFile, Stage, derived, restored};

/// What a ring may be told otherwise than the recipe says.
const SETTABLE: [&str; 6] = ["coordinator", "reward_server", "learner", "actor", "processes", "seed"];

/// Keys that a ring may not set.
pub(super) fn problems(stages: &[Stage]) -> Vec<String> {
    let mut problems = Vec::new();
    for (at, stage) in stages.iter().enumerate() {
        let set = stage.ring.iter().flat_map(|ring| ring.set.keys());
        for key in set.filter(|key| !SETTABLE.contains(&key.as_str())) {
            problems
                .push(format!("stages[{at}].ring.set.{key}: a ring can set keys of {}", SETTABLE.join(", ")));
        }
    }
    problems
}

impl RecipeFile {
    /// Where its rings keep their things, below its output folder.
    ///
    /// # Errors
    /// When what a ring sets does not fit.
    pub(crate) fn rings_below_output(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut rings = Vec::new();
        for stage in self.recipe.stages_or_ring().iter().filter(|stage| stage.ring.is_some()) {
            let ring = self.of_ring(stage)?.ring;
            rings.push(ring.root().strip_prefix(&self.recipe.output)?.to_owned());
        }
        Ok(rings)
    }

    /// The recipe as one of its rings sees it.
    ///
    /// # Errors
    /// When what the ring sets does not fit.
    pub(crate) fn of_ring(&self, stage: &Stage) -> anyhow::Result<Self> {
        let mut layers = self.written.clone();
        let mut ring = RingFolder::of(&self.recipe.output);
        let stages = &self.recipe.stages;
        if let Some(at) = stages.iter().position(|known| known.name == stage.name) {
            if stages[..at].iter().any(|before| before.ring.is_some()) {
                ring = RingFolder::of_further(&self.recipe.output, &stage.name);
                let run = format!("{}-{}", self.recipe.name, stage.name);
                layers.derive("coordinator.run", Value::String(run), &format!("stages[{at}].name"));
            }
            layers.lay_over(&format!("stages[{at}].ring.set"));
            if let Some(ring) = &stage.ring {
                restored::lay_over(&mut layers, ring, &format!("stages[{at}].ring"))?;
            }
        }
        let written = layers.clone();
        derived::fill_in(&mut layers);
        let recipe = layers.parse_known()?;
        Ok(Self { path: self.path.clone(), settings: self.settings.clone(), recipe, layers, written, ring })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Environment, Role};

    const TWO_RINGS: &str = "name = 'abl'\noutput = 'runs/abl'\n[learner.ppo]\nalgorithm = 'pf-ppo'\n\
        [[stages]]\nname = 'bw'\nring.output = '{output}/policy-bw'\n\
        [[stages]]\nname = 'grpo'\nring.output = '{output}/policy-grpo'\n\
        [stages.ring.set]\nlearner.ppo.algorithm = 'grpo'\nseed = 5\n";

    fn read(text: &str) -> anyhow::Result<RecipeFile> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile()?;
        std::fs::write(file.path(), text)?;
        RecipeFile::read(file.path(), Environment::LeftOut, &[])
    }

    /// What its coordinator is told.
    fn told(file: &RecipeFile) -> String {
        file.role_configs()[Role::Coordinator as usize].text().unwrap()
    }

    #[test]
    fn each_ring_has_its_own_folder_run_and_values() {
        let file = read(TWO_RINGS).unwrap();
        let stages = &file.recipe.stages;
        let (bw, grpo) = (file.of_ring(&stages[0]).unwrap(), file.of_ring(&stages[1]).unwrap());
        assert!(bw.ring_folder().journal().ends_with("runs/abl/ring/journal"));
        assert!(grpo.ring_folder().journal().ends_with("runs/abl/ring-grpo/journal"));
        assert!(told(&bw).contains("run = \"abl\"") && !told(&bw).contains("strategy = \"none\""));
        let grpo_told = told(&grpo);
        for expected in
            ["run = \"abl-grpo\"", "strategy = \"none\"", "seed = 5", "runs/abl/ring-grpo/steps.jsonl"]
        {
            assert!(grpo_told.contains(expected), "{expected}: {grpo_told}");
        }
    }

    #[test]
    fn what_a_ring_sets_is_checked_and_named_with_its_line() {
        let wrong_key =
            TWO_RINGS.replace("learner.ppo.algorithm = 'grpo'", "learner.ppo.algorithms = 'grpo'");
        let file = read(&wrong_key).unwrap();
        let error = file.of_ring(&file.recipe.stages[1]).unwrap_err().to_string();
        assert!(error.contains(".toml:12: unknown key learner.ppo.algorithms; did you mean"), "{error}");
        let error = read(&TWO_RINGS.replace("seed = 5", "output = 'x'")).unwrap_err().to_string();
        assert!(error.contains("stages[1].ring.set.output: a ring can set keys of"), "{error}");
    }
}
