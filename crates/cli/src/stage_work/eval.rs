//! Compares policies on problems that none of them was trained on: pass@1 by hidden tests or by the scorer
//! that is the yardstick, mean score and reward, KL to the reference, and how far the reward could be
//! trusted.
//!
//! Every policy gets the same problems, the same number of samples and the same seed. Nothing is chosen by
//! the result: which folders are compared stands in the recipe.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine::generate::{DrawOptions, Response};

use crate::recipe::{Candidate, EvalStage, Recipe, RingFolder};
use crate::say::{say, say_result};
use frozen::Frozen;
use problems::Problems;
use report::{Line, Report};

mod frozen;
mod problems;
mod report;

/// Compares them and prints the table.
///
/// # Errors
/// When a model or the problems cannot be used.
pub(crate) fn run(recipe: &Recipe, stage: &EvalStage) -> anyhow::Result<()> {
    let group_size = usize::from(recipe.coordinator.group_size);
    let problems = Problems::read(recipe, stage)?;
    std::fs::create_dir_all(&stage.output).with_context(|| format!("create {}", stage.output.display()))?;
    let lines = stage.policies.iter().map(|candidate| examine(stage, &problems, candidate));
    let lines = lines.collect::<anyhow::Result<Vec<Line>>>()?;
    let report = Report::new(lines, &recipe.coordinator.filtration.first(), group_size);
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

fn examine(stage: &EvalStage, problems: &Problems, candidate: &Candidate) -> anyhow::Result<Line> {
    say(&format!("  {}", candidate.name));
    let greedy = DrawOptions { n: 1, seed: stage.seed, sampling: stage.sampling.clone().into_greedy() };
    let sampled = DrawOptions { n: stage.n, seed: stage.seed, sampling: stage.sampling.clone() };
    let greedy = problems.draw(&candidate.model, &greedy)?;
    let sampled = problems.draw(&candidate.model, &sampled)?;
    let frozen = Frozen { folder: &stage.output, name: &candidate.name, responses: &sampled };
    let rewards = stage.reward_model.as_deref().map(|model| frozen.scores(model)).transpose()?;
    let kl =
        stage.reference.as_deref().map(|model| frozen.kl(model, stage.sampling.temperature())).transpose()?;
    let line = Line {
        name: candidate.name.clone(),
        model: candidate.model.clone(),
        greedy: problems.judge(&candidate.model, &greedy)?,
        sampled: problems.judge(&candidate.model, &sampled)?,
        rewards,
        scores_are_rewards: problems.has_scores_beside_outcomes(),
        kl,
    };
    write_samples(stage, problems, &sampled, &line)?;
    Ok(line)
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
            let found = |found: &[Vec<Option<f64>>]| found.get(number).and_then(|group| group[index]);
            let reward = line.rewards.as_ref().map(|rewards| rewards[number][index]);
            writer.write(&serde_json::json!({
                "task_id": problems.name(number),
                "prompt_id": number,
                "rollout_id": index,
                "completion": response.text,
                "outcome": found(&line.sampled.outcomes),
                "score": reward.or_else(|| found(&line.sampled.scores)),
            }))?;
        }
    }
    writer.finish()
}

/// The file of one candidate's intermediate results.
fn file_of(folder: &Path, name: &str, what: &str) -> PathBuf {
    folder.join(format!("{name}-{what}.jsonl"))
}
