//! `sluice eval`: generate and grade in one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use engine::generate::DrawOptions;
use sandbox::{Problem, Verdict};
use service::BadInput;
use types::PromptContent;

use super::grade::How;
use super::sampling::SamplingArguments;
use crate::grading;
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
    how: How,
}

/// Runs the command.
///
/// # Errors
/// Names the file that cannot be used, or why there is no sandbox.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(k) = arguments.how.k.iter().find(|k| **k > arguments.n as u64) {
        return Err(BadInput(format!("pass@{k} needs at least {k} responses per problem: --n {k}")).into());
    }
    let (config, limits) = arguments.how.grader()?;
    let tasks = grading::read_tasks(&arguments.problems)?;
    let prompts: Vec<PromptContent> = tasks.iter().map(|task| task.prompt.clone()).collect();
    let draw =
        DrawOptions { n: arguments.n, seed: arguments.seed, sampling: arguments.sampling.sampling(0.0)? };
    let groups = responses::draw(&arguments.model, &prompts, &draw)?;
    let pairs = tasks.iter().zip(&groups);
    let work: Vec<(&Problem, &str)> = pairs
        .flat_map(|(task, group)| group.iter().map(|response| (&task.problem, response.text.as_str())))
        .collect();
    let grades = grading::grade_all(config, &limits, &work)?;
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    grades.iter().for_each(|grade| *verdicts.entry(grade.verdict).or_default() += 1);
    let of_problem = |grades: &[sandbox::Grade]| {
        let judged: Vec<bool> = grades.iter().filter_map(grading::passed).collect();
        (judged.len() as u64, judged.iter().filter(|passed| **passed).count() as u64)
    };
    let counts: Vec<(u64, u64)> = grades.chunks(arguments.n).map(of_problem).collect();
    println!("{}", arguments.how.summary(&counts, &verdicts));
    Ok(())
}
