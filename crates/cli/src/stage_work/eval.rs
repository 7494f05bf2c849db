//! Compares policies on problems that none of them was trained on: pass rates by hidden tests or by the
//! scorer that is the yardstick, greedy and sampled, mean score and reward, KL to the reference, and how far
//! the reward could be trusted.
//!
//! Every policy gets the same problems, the same number of samples and the same seed. Nothing is chosen by
//! the result: which folders are compared stands in the recipe, and a temperature is chosen on other
//! problems.

use std::path::Path;

use anyhow::Context as _;
use engine::generate::{DrawOptions, Response};
use types::Sampling;

use crate::episodes::{EpisodeTotals, add_turns};
use crate::rate::Rate;
use crate::recipe::{Candidate, EvalStage, Recipe, RingFolder};
use crate::say::{say, say_result};

use super::frozen::Frozen;
use kinds::Kinds;
use numbers::Numbers;
use problems::{Found, Problems};
use report::{AtBestTemperature, Line, Report};

mod kinds;
mod numbers;
mod problems;
mod report;

/// Compares them and prints the table.
///
/// # Errors
/// When a model or the problems cannot be used.
pub(crate) fn run(recipe: &Recipe, stage: &EvalStage) -> anyhow::Result<()> {
    let group_size = usize::from(recipe.coordinator.group_size);
    let comparison = Comparison::new(recipe, stage)?;
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
    problems: Problems,
    validation: Option<Problems>,
    kinds: Kinds,
}

impl<'a> Comparison<'a> {
    fn new(recipe: &Recipe, stage: &'a EvalStage) -> anyhow::Result<Self> {
        let problems = Problems::read(recipe, stage, &stage.problems, stage.max_problems)?;
        let validation = stage.validation.as_deref();
        let validation = validation.map(|path| Problems::read(recipe, stage, path, None)).transpose()?;
        let kinds = match &stage.kinds {
            Some(field) => problems.kinds(&stage.problems, field)?,
            None => Kinds::default(),
        };
        let folder = &stage.output;
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self { stage, problems, validation, kinds })
    }

    fn examine(&self, candidate: &Candidate) -> anyhow::Result<Line> {
        let Self { stage, problems, .. } = self;
        let Candidate { name, model } = candidate;
        say(&format!("  {name}"));
        let greedy = problems.draw(model, &self.options(1, stage.sampling.clone().into_greedy()))?;
        let greedy = problems.judge(model, &greedy)?;
        let responses = problems.draw(model, &self.options(stage.n, stage.sampling.clone()))?;
        let sampled = problems.judge(model, &responses)?;
        let best = match &self.validation {
            Some(validation) => Some(self.at_best_temperature(model, validation, &sampled)?),
            None => None,
        };
        let frozen = Frozen { folder: &stage.output, name, responses: &responses };
        let rewards = stage.reward_model.as_deref().map(|model| frozen.scores(model)).transpose()?;
        let rewards = rewards.map(|rewards| {
            Numbers(rewards.into_iter().map(|group| group.into_iter().map(Some).collect()).collect())
        });
        let temperature = stage.sampling.temperature();
        let kl = stage.reference.as_deref().map(|model| frozen.kl(model, temperature)).transpose()?;
        let scores_are_rewards = problems.has_scores_beside_outcomes();
        let (name, model) = (name.clone(), model.clone());
        let episodes = EpisodeTotals::of(responses.iter().flatten());
        let line = Line { name, model, greedy, sampled, best, rewards, scores_are_rewards, kl, episodes };
        write_samples(stage, problems, &responses, &line)?;
        Ok(line)
    }

    fn options(&self, n: usize, sampling: Sampling) -> DrawOptions {
        DrawOptions { n, seed: self.stage.seed, sampling }
    }

    /// What is found at the temperature that is best on the validation problems; of equal ones at the first.
    fn at_best_temperature(
        &self,
        model: &Path,
        validation: &Problems,
        sampled: &Found,
    ) -> anyhow::Result<AtBestTemperature> {
        let Self { stage, problems, .. } = self;
        let mut best: Option<(f32, Rate)> = None;
        for temperature in &stage.temperatures {
            let sampling = stage.sampling.clone().at_temperature(*temperature)?;
            let responses = validation.draw(model, &self.options(stage.n, sampling))?;
            let Some(rate) = validation.judge(model, &responses)?.figure().rate() else { continue };
            if best.is_none_or(|(_, best)| rate.mean > best.mean) {
                best = Some((*temperature, rate));
            }
        }
        let (temperature, validation) =
            best.context("validation: no response could be judged at any temperature")?;
        let found = if temperature == stage.sampling.temperature() {
            sampled.clone()
        } else {
            let sampling = stage.sampling.clone().at_temperature(temperature)?;
            problems.judge(model, &problems.draw(model, &self.options(stage.n, sampling))?)?
        };
        Ok(AtBestTemperature { temperature, validation, found })
    }
}

/// Every sample with what was found, for whoever wants to look.
fn write_samples(
    stage: &EvalStage,
    problems: &Problems,
    responses: &[Vec<Response>],
    line: &Line,
) -> anyhow::Result<()> {
    let path = stage.output.join(format!("{}-samples.jsonl", line.name));
    let mut writer = service::jsonl::Writer::create(&path)?;
    for (number, group) in responses.iter().enumerate() {
        for (index, response) in group.iter().enumerate() {
            let reward = line.rewards.as_ref().and_then(|rewards| rewards.of(number, index));
            let mut row = serde_json::json!({
                "task_id": problems.name(number),
                "prompt_id": number,
                "rollout_id": index,
                "completion": response.text,
                "outcome": line.sampled.outcomes.of(number, index),
                "score": reward.or_else(|| line.sampled.scores.of(number, index)),
            });
            add_turns(&mut row, response.played.as_deref());
            writer.write(&row)?;
        }
    }
    writer.finish()
}
