//! Compares policies on problems that none of them was trained on: pass@1 by hidden tests, mean reward, KL to the
//! reference, and how far the reward could be trusted.
//!
//! Every policy gets the same problems, the same number of samples and the same seed. Nothing is chosen by the result:
//! which folders are compared stands in the recipe.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use engine::generate::{DrawOptions, Response};
use sandbox::Limits;
use serde::{Deserialize, Serialize};
use types::{PromptContent, Sampling};

use crate::grading::{self, Task};
use crate::responses;
use crate::run::recipe::Recipe;
use crate::run::ring::RingFolder;
use frozen::Frozen;
use report::{Line, Report};

mod frozen;
mod report;

/// What to compare.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EvalStage {
    /// Problems with tests, held out from all training.
    pub(crate) problems: PathBuf,
    /// Problems used, from the first; all where not given.
    pub(crate) max_problems: Option<usize>,
    /// The policies; the last one is compared with the first.
    pub(crate) policies: Vec<Candidate>,
    /// The reward model they were trained on.
    pub(crate) reward_model: Option<PathBuf>,
    /// The reference that the KL is taken to.
    pub(crate) reference: Option<PathBuf>,
    /// Sampled responses per problem, beside the greedy one.
    pub(crate) n: usize,
    /// How they are drawn.
    pub(crate) sampling: Sampling,
    /// Seeds the draws.
    pub(crate) seed: u64,
    /// Folder of the samples and of `report.json`.
    pub(crate) output: PathBuf,
}

/// A policy under comparison.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Candidate {
    /// What the table calls it.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) model: PathBuf,
}

impl Default for EvalStage {
    fn default() -> Self {
        Self {
            problems: PathBuf::new(),
            max_problems: None,
            policies: Vec::new(),
            reward_model: None,
            reference: None,
            n: 8,
            sampling: Sampling::default(),
            seed: 0,
            output: PathBuf::new(),
        }
    }
}

/// Compares them and prints the table.
///
/// # Errors
/// When a model or the problems cannot be used.
pub(crate) async fn run(recipe: &Recipe, stage: EvalStage) -> anyhow::Result<()> {
    let filtration = recipe.coordinator.filtration;
    let group_size = usize::from(recipe.coordinator.group_size);
    let checkpoints = RingFolder::of(&recipe.output).checkpoints();
    let report = tokio::task::spawn_blocking(move || {
        let lines = compare(&stage)?;
        let report = Report::new(lines, &filtration, group_size);
        let path = stage.output.join("report.json");
        let text = serde_json::to_string_pretty(&report).context("write the report")?;
        std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
        anyhow::Ok(report)
    });
    println!("\n{}\n", report.await??);
    if checkpoints.exists() {
        println!("checkpoints: {}", checkpoints.display());
    }
    Ok(())
}

fn compare(stage: &EvalStage) -> anyhow::Result<Vec<Line>> {
    let mut tasks = grading::read_tasks(&stage.problems)?;
    tasks.truncate(stage.max_problems.unwrap_or(usize::MAX));
    std::fs::create_dir_all(&stage.output).with_context(|| format!("create {}", stage.output.display()))?;
    stage.policies.iter().map(|candidate| examine(stage, candidate, &tasks)).collect()
}

fn examine(stage: &EvalStage, candidate: &Candidate, tasks: &[Task]) -> anyhow::Result<Line> {
    eprintln!("  {}", candidate.name);
    let prompts: Vec<PromptContent> = tasks.iter().map(|task| task.prompt.clone()).collect();
    let greedy = stage.sampling.clone().into_greedy();
    let draw = |n, sampling| DrawOptions { n, seed: stage.seed, sampling };
    let greedy = responses::draw(&candidate.model, &prompts, &draw(1, greedy))?;
    let sampled = responses::draw(&candidate.model, &prompts, &draw(stage.n, stage.sampling.clone()))?;
    let limits = Limits::default();
    let frozen = Frozen { folder: &stage.output, name: &candidate.name, responses: &sampled };
    let scores = stage.reward_model.as_deref().map(|model| frozen.scores(model)).transpose()?;
    let kl =
        stage.reference.as_deref().map(|model| frozen.kl(model, stage.sampling.temperature())).transpose()?;
    let line = Line {
        name: candidate.name.clone(),
        model: candidate.model.clone(),
        greedy: outcomes(&grading::grade_groups(tasks, &greedy, &limits)?),
        sampled: outcomes(&grading::grade_groups(tasks, &sampled, &limits)?),
        scores,
        kl,
    };
    write_samples(stage, candidate, (tasks, &sampled, &line))?;
    Ok(line)
}

/// 1 for a response that passed, 0 for one that did not, none for one that could not be judged.
fn outcomes(grades: &[Vec<sandbox::Grade>]) -> Vec<Vec<Option<f64>>> {
    let outcome = |grade| grading::passed(grade).map(|passed| f64::from(u8::from(passed)));
    grades.iter().map(|group| group.iter().map(outcome).collect()).collect()
}

/// Every sample with what was found, for whoever wants to look.
fn write_samples(
    stage: &EvalStage,
    candidate: &Candidate,
    (tasks, sampled, line): (&[Task], &[Vec<Response>], &Line),
) -> anyhow::Result<()> {
    let path = stage.output.join(format!("{}-samples.jsonl", candidate.name));
    let mut writer = service::jsonl::Writer::create(&path)?;
    for (number, (task, group)) in tasks.iter().zip(sampled).enumerate() {
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

/// A table in the style of all of ours.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header.to_vec());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The file of one candidate's intermediate results.
fn file_of(folder: &Path, name: &str, what: &str) -> PathBuf {
    folder.join(format!("{name}-{what}.jsonl"))
}
