//! Compares policies on problems that none of them was trained on: pass@1 by hidden tests, mean reward, KL to
//! the reference, and how far the reward could be trusted.
//!
//! Every policy gets the same problems, the same number of samples and the same seed. Nothing is chosen by
//! the result: which folders are compared stands in the recipe.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine::generate::{DrawOptions, Response};
use types::PromptContent;

use crate::grading::{self, GradingSetup, Task};
use crate::recipe::{Candidate, EvalStage, Recipe, RingFolder};
use crate::responses;
use frozen::Frozen;
use report::{Line, Report};

mod frozen;
mod report;

/// Compares them and prints the table.
///
/// # Errors
/// When a model or the problems cannot be used.
pub(crate) fn run(recipe: &Recipe, stage: &EvalStage) -> anyhow::Result<()> {
    let group_size = usize::from(recipe.coordinator.group_size);
    let setup = GradingSetup::of(&recipe.reward_server.sandbox.clone().unwrap_or_default());
    let report = Report::new(compare(stage, &setup)?, &recipe.coordinator.filtration.first(), group_size);
    let path = stage.output.join("report.json");
    let text = serde_json::to_string_pretty(&report).context("write the report")?;
    std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    println!("\n{report}\n");
    let checkpoints = RingFolder::of(&recipe.output).checkpoints();
    if checkpoints.exists() {
        println!("checkpoints: {}", checkpoints.display());
    }
    Ok(())
}

fn compare(stage: &EvalStage, setup: &GradingSetup) -> anyhow::Result<Vec<Line>> {
    let mut tasks = grading::read_tasks(&stage.problems)?;
    tasks.truncate(stage.max_problems.unwrap_or(usize::MAX));
    std::fs::create_dir_all(&stage.output).with_context(|| format!("create {}", stage.output.display()))?;
    stage.policies.iter().map(|candidate| examine(stage, setup, candidate, &tasks)).collect()
}

fn examine(
    stage: &EvalStage,
    setup: &GradingSetup,
    candidate: &Candidate,
    tasks: &[Task],
) -> anyhow::Result<Line> {
    eprintln!("  {}", candidate.name);
    let prompts: Vec<PromptContent> = tasks.iter().map(|task| task.prompt.clone()).collect();
    let greedy = DrawOptions { n: 1, seed: stage.seed, sampling: stage.sampling.clone().into_greedy() };
    let sampled = DrawOptions { n: stage.n, seed: stage.seed, sampling: stage.sampling.clone() };
    let greedy = responses::draw(&candidate.model, &prompts, &greedy)?;
    let sampled = responses::draw(&candidate.model, &prompts, &sampled)?;
    let frozen = Frozen { folder: &stage.output, name: &candidate.name, responses: &sampled };
    let scores = stage.reward_model.as_deref().map(|model| frozen.scores(model)).transpose()?;
    let kl =
        stage.reference.as_deref().map(|model| frozen.kl(model, stage.sampling.temperature())).transpose()?;
    let line = Line {
        name: candidate.name.clone(),
        model: candidate.model.clone(),
        greedy: outcomes(&grading::grade_groups(setup, tasks, &greedy)?.grades),
        sampled: outcomes(&grading::grade_groups(setup, tasks, &sampled)?.grades),
        scores,
        kl,
    };
    write_samples(stage, &Examined { tasks, responses: &sampled, line: &line })?;
    Ok(line)
}

/// 1 for a response that passed, 0 for one that did not, none for one that could not be judged.
fn outcomes(grades: &[Vec<sandbox::Grade>]) -> Vec<Vec<Option<f64>>> {
    grades.iter().map(|group| group.iter().map(outcome).collect()).collect()
}

fn outcome(grade: &sandbox::Grade) -> Option<f64> {
    grading::passed(grade).map(|passed| f64::from(u8::from(passed)))
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
                "outcome": line.sampled[number][index],
                "score": line.scores.as_ref().map(|scores| scores[number][index]),
            }))?;
        }
    }
    writer.finish()
}

/// The file of one candidate's intermediate results.
fn file_of(folder: &Path, name: &str, what: &str) -> PathBuf {
    folder.join(format!("{name}-{what}.jsonl"))
}
