//! `sluice eval`: generate and grade in one.

use std::path::PathBuf;

use engine::generate::DrawOptions;
use service::BadInput;
use types::PromptContent;

use super::grade::GradingArguments;
use super::sampling::SamplingArguments;
use crate::grading::{self, Totals};
use crate::responses;

/// Samples a model on problems in the shape of HumanEval or MBPP and grades what comes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The policy's folder.
    #[arg(long)]
    model: PathBuf,
    /// Problems, plain or gzipped.
    #[arg(long)]
    problems: PathBuf,
    /// Responses per problem.
    #[arg(long, default_value_t = 1)]
    n: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Seeds the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    grading: GradingArguments,
}

/// Runs the command.
///
/// # Errors
/// Names the file that cannot be used, or why there is no sandbox.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(k) = arguments.grading.k.iter().find(|k| **k > arguments.n as u64) {
        return Err(BadInput(format!("pass@{k} needs at least {k} responses per problem: --n {k}")).into());
    }
    let (config, limits) = arguments.grading.grader()?;
    let tasks = grading::read_tasks(&arguments.problems)?;
    let prompts: Vec<PromptContent> = tasks.iter().map(|task| task.prompt.clone()).collect();
    let draw =
        DrawOptions { n: arguments.n, seed: arguments.seed, sampling: arguments.sampling.sampling(0.0)? };
    let groups = responses::draw(&arguments.model, &prompts, &draw)?;
    let graded = grading::grade_groups(config, &limits, &tasks, &groups)?;
    let mut totals = Totals::of(tasks.iter().map(|task| task.problem.task_id()));
    totals.overload_retries = graded.overload_retries;
    for (task, grades) in tasks.iter().zip(&graded.grades) {
        for grade in grades {
            totals.add(task.problem.task_id(), grade);
        }
    }
    println!("{}", arguments.grading.summary(&totals));
    Ok(())
}
