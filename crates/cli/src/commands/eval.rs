//! `sluice eval`: generate and grade in one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::generate::{DrawOptions, Response};
use extraction::marked;
use model::ChatTemplate;
use reward_server::same_number;
use sandbox::Verdict;
use serde_json::json;
use service::config::LogFormat;
use service::{BadInput, init_logging, jsonl};
use types::PromptContent;

use super::grade::GradingArguments;
use super::sampling::SamplingArguments;
use crate::benchmark::{Benchmark, Form, NumberQuestion, Questions};
use crate::grading::{self, GradingSetup, Task, Totals};
use crate::responses;

/// Samples a model on problems in the shape of HumanEval or MBPP, or on a public benchmark, and grades what
/// comes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The policy's folder.
    #[arg(long)]
    model: PathBuf,
    /// Problems, or the benchmark's own file; plain or gzipped.
    #[arg(long)]
    problems: PathBuf,
    /// Asks as this benchmark's users do: its prompt, its stop texts, its part of the file.
    #[arg(long, value_enum)]
    benchmark: Option<Benchmark>,
    /// How a benchmark asks: chat where the model has a chat template, else completion.
    #[arg(long, value_enum, requires = "benchmark")]
    form: Option<Form>,
    /// Writes each response with its verdict, as `sluice grade` does; - is standard output.
    #[arg(long)]
    output: Option<PathBuf>,
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
    init_logging("warn", LogFormat::Text)?;
    let setup = arguments.grading.setup()?;
    let mut stop = Vec::new();
    let questions = match arguments.benchmark {
        Some(benchmark) => {
            let form = arguments.form()?;
            stop = benchmark.stop(form);
            benchmark.read(&arguments.problems, form)?
        }
        None => Questions::Tasks(grading::read_tasks(&arguments.problems)?),
    };
    let prompts: Vec<PromptContent> = questions.prompts().cloned().collect();
    let sampling = arguments.sampling.sampling(0.0, &stop)?;
    let draw = DrawOptions { n: arguments.n, seed: arguments.seed, sampling };
    let groups = responses::draw_where_possible(&arguments.model, &prompts, &draw)?;
    let judged = match &questions {
        Questions::Tasks(tasks) => judge_programs(&setup, tasks, &groups)?,
        Questions::Numbers(questions) => judge_numbers(questions, &groups),
    };
    if let Some(output) = &arguments.output {
        write(output, &judged, &groups)?;
    }
    let summary = arguments.grading.summary(&judged.totals);
    // Where the responses go to standard output, nothing else does.
    if arguments.output.as_deref() == Some(Path::new("-")) {
        eprintln!("{summary}");
    } else {
        println!("{summary}");
    }
    Ok(())
}

/// What came of all responses.
struct Judged {
    totals: Totals,
    /// By problem, then by response.
    verdicts: Vec<(String, Vec<Verdict>)>,
}

fn judge_programs(setup: &GradingSetup, tasks: &[Task], groups: &[Vec<Response>]) -> anyhow::Result<Judged> {
    let graded = grading::grade_groups(setup, tasks, groups)?;
    let mut totals = Totals::of(tasks.iter().map(|task| task.problem.task_id()));
    totals.overload_retries = graded.overload_retries;
    let mut verdicts = Vec::with_capacity(tasks.len());
    for (task, grades) in tasks.iter().zip(&graded.grades) {
        let task_id = task.problem.task_id();
        for grade in grades {
            totals.add(task_id, grade.verdict);
        }
        verdicts.push((task_id.to_owned(), grades.iter().map(|grade| grade.verdict).collect()));
    }
    Ok(Judged { totals, verdicts })
}

fn judge_numbers(questions: &[NumberQuestion], groups: &[Vec<Response>]) -> Judged {
    let mut totals = Totals::of(questions.iter().map(|question| question.task_id.as_str()));
    let mut verdicts = Vec::with_capacity(questions.len());
    for (question, group) in questions.iter().zip(groups) {
        let mut found = Vec::with_capacity(group.len());
        for response in group {
            let answer = marked(&response.prompt_end, &response.text);
            let verdict = match same_number(&answer, &question.label) {
                Some(true) => Verdict::Accepted,
                Some(false) => Verdict::WrongAnswer,
                None => Verdict::Unsupported,
            };
            totals.add(&question.task_id, verdict);
            found.push(verdict);
        }
        verdicts.push((question.task_id.clone(), found));
    }
    Judged { totals, verdicts }
}

fn write(path: &Path, judged: &Judged, groups: &[Vec<Response>]) -> anyhow::Result<()> {
    let mut writer = jsonl::Writer::create(path)?;
    for ((task_id, verdicts), group) in judged.verdicts.iter().zip(groups) {
        for (verdict, response) in verdicts.iter().zip(group) {
            writer.write(&json!({
                "task_id": task_id, "completion": response.text, "verdict": verdict.name(),
                "passed": *verdict == Verdict::Accepted,
            }))?;
        }
    }
    writer.finish()
}

impl Arguments {
    /// As asked for, else as the model's folder suggests.
    fn form(&self) -> Result<Form, BadInput> {
        if let Some(form) = self.form {
            return Ok(form);
        }
        let template = ChatTemplate::load(&self.model, BTreeMap::new());
        let template = template.map_err(|error| BadInput(format!("{}: {error}", self.model.display())))?;
        Ok(if template.is_some() { Form::Chat } else { Form::Completion })
    }
}
