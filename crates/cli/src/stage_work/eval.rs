//! Compares policies on problems that none of them was trained on: pass rates by hidden tests, greedy and
//! sampled, mean reward, KL to the reference, and how far the reward could be trusted.
//!
//! Every policy gets the same problems, the same number of samples and the same seed. Nothing is chosen by
//! the result: which folders are compared stands in the recipe, and a temperature is chosen on other problems.

use std::path::Path;

use anyhow::Context as _;
use engine::generate::{DrawOptions, Response};
use service::jsonl::WrongLines;
use types::{PromptContent, Sampling};

use crate::grading::{self, GradingSetup, Task};
use crate::rate::Rate;
use crate::recipe::{Candidate, EvalStage, Recipe, RingFolder};
use crate::responses;
use crate::say::{say, say_result};

use super::frozen::Frozen;
use kinds::Kinds;
use outcomes::Outcomes;
use report::{AtBestTemperature, Line, Report};

mod kinds;
mod outcomes;
mod report;

/// Compares them and prints the table.
///
/// # Errors
/// When a model or the problems cannot be used.
pub(crate) fn run(recipe: &Recipe, stage: &EvalStage) -> anyhow::Result<()> {
    let group_size = usize::from(recipe.coordinator.group_size);
    let setup = GradingSetup::of(&recipe.reward_server.sandbox.clone().unwrap_or_default());
    let comparison = Comparison::new(stage, setup)?;
    let lines = stage.policies.iter().map(|candidate| comparison.examine(candidate));
    let lines = lines.collect::<anyhow::Result<Vec<Line>>>()?;
    let filtration = recipe.coordinator.filtration.first();
    let report = Report::new(&lines, &comparison.kinds, &stage.pass_at, (&filtration, group_size));
    let path = stage.output.join("report.json");
    let text = serde_json::to_string_pretty(&report).context("write the report")?;
    std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    say_result(&format!("\n{report}\n"));
    let checkpoints = RingFolder::of(&recipe.output).checkpoints();
    if checkpoints.exists() {
        say_result(&format!("checkpoints: {}", checkpoints.display()));
    }
    Ok(())
}

/// What every policy is given.
struct Comparison<'a> {
    stage: &'a EvalStage,
    setup: GradingSetup,
    tasks: Vec<Task>,
    validation: Option<Vec<Task>>,
    kinds: Kinds,
}

impl<'a> Comparison<'a> {
    fn new(stage: &'a EvalStage, setup: GradingSetup) -> anyhow::Result<Self> {
        let most = stage.max_problems.unwrap_or(usize::MAX);
        let mut tasks = grading::read_tasks(&stage.problems, &WrongLines::default())?;
        tasks.truncate(most);
        let validation = stage.validation.as_deref();
        let validation = validation.map(|path| grading::read_tasks(path, &WrongLines::default()));
        let kinds = match &stage.kinds {
            Some(field) => Kinds::read(&stage.problems, field, most)?,
            None => Kinds::default(),
        };
        let folder = &stage.output;
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self { stage, setup, tasks, validation: validation.transpose()?, kinds })
    }

    fn examine(&self, candidate: &Candidate) -> anyhow::Result<Line> {
        let Self { stage, tasks, .. } = self;
        let Candidate { name, model } = candidate;
        say(&format!("  {name}"));
        let greedy = self
            .outcomes(tasks, &draw(model, tasks, self.options(1, stage.sampling.clone().into_greedy()))?)?;
        let responses = draw(model, tasks, self.options(stage.n, stage.sampling.clone()))?;
        let sampled = self.outcomes(tasks, &responses)?;
        let best = match &self.validation {
            Some(validation) => Some(self.at_best_temperature(model, validation, &sampled)?),
            None => None,
        };
        let frozen = Frozen { folder: &stage.output, name, responses: &responses };
        let scores = stage.reward_model.as_deref().map(|model| frozen.scores(model)).transpose()?;
        let temperature = stage.sampling.temperature();
        let kl = stage.reference.as_deref().map(|model| frozen.kl(model, temperature)).transpose()?;
        let line = Line { name: name.clone(), model: model.clone(), greedy, sampled, best, scores, kl };
        write_samples(stage, &Examined { tasks, responses: &responses, line: &line })?;
        Ok(line)
    }

    fn options(&self, n: usize, sampling: Sampling) -> DrawOptions {
        DrawOptions { n, seed: self.stage.seed, sampling }
    }

    fn outcomes(&self, tasks: &[Task], responses: &[Vec<Response>]) -> anyhow::Result<Outcomes> {
        Ok(Outcomes::of(&grading::grade_groups(&self.setup, tasks, responses)?.grades))
    }

    /// The outcomes at the temperature that is best on the validation problems; of equal ones the first.
    fn at_best_temperature(
        &self,
        model: &Path,
        validation: &[Task],
        sampled: &Outcomes,
    ) -> anyhow::Result<AtBestTemperature> {
        let Self { stage, tasks, .. } = self;
        let mut best: Option<(f32, Rate)> = None;
        for temperature in &stage.temperatures {
            let sampling = stage.sampling.clone().at_temperature(*temperature)?;
            let responses = draw(model, validation, self.options(stage.n, sampling))?;
            let Some(rate) = self.outcomes(validation, &responses)?.rate() else { continue };
            if best.is_none_or(|(_, best)| rate.mean > best.mean) {
                best = Some((*temperature, rate));
            }
        }
        let (temperature, validation) =
            best.context("validation: no response could be judged at any temperature")?;
        let outcomes = if temperature == stage.sampling.temperature() {
            sampled.clone()
        } else {
            let sampling = stage.sampling.clone().at_temperature(temperature)?;
            self.outcomes(tasks, &draw(model, tasks, self.options(stage.n, sampling))?)?
        };
        Ok(AtBestTemperature { temperature, validation, outcomes })
    }
}

fn draw(model: &Path, tasks: &[Task], options: DrawOptions) -> anyhow::Result<Vec<Vec<Response>>> {
    let prompts: Vec<PromptContent> = tasks.iter().map(|task| task.prompt.clone()).collect();
    responses::draw(model, &prompts, &options)
}

/// What was drawn from a policy, and what was found about it.
struct Examined<'a> {
    tasks: &'a [Task],
    responses: &'a [Vec<Response>],
    line: &'a Line,
}

/// Every sample with what was found, for whoever wants to look.
fn write_samples(stage: &EvalStage, examined: &Examined<'_>) -> anyhow::Result<()> {
    let line = examined.line;
    let path = stage.output.join(format!("{}-samples.jsonl", line.name));
    let mut writer = service::jsonl::Writer::create(&path)?;
    for (number, (task, group)) in examined.tasks.iter().zip(examined.responses).enumerate() {
        for (index, response) in group.iter().enumerate() {
            writer.write(&serde_json::json!({
                "task_id": task.problem.task_id(),
                "prompt_id": number,
                "rollout_id": index,
                "completion": response.text,
                "outcome": line.sampled.of_response(number, index),
                "score": line.scores.as_ref().map(|scores| scores[number][index]),
            }))?;
        }
    }
    writer.finish()
}
