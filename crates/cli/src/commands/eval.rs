//! `sluice eval`: what a model makes of problems. They are judged by hidden tests or by a public benchmark's
//! rules here, by any scorers in `scored`.

mod scored;
mod scorers;
mod totals;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::generate::{DrawOptions, Response};
use extraction::marked;
use model::ChatTemplate;
use reward_server::same_number;
use sandbox::Verdict;
use serde_json::json;
use service::{BadInput, jsonl};
use types::PromptContent;

use self::scorers::ScorerArguments;
use super::engine_arguments::EngineArguments;
use super::grade::GradingArguments;
use super::lines::{LineArguments, say_beside};
use super::sampling::SamplingArguments;
use crate::benchmark::{Benchmark, Form, NumberQuestion, Questions};
use crate::closed_pipe;
use crate::grading::{self, GradingSetup, Task, Totals};
use crate::responses;

/// Samples a model on problems and judges what comes: by hidden tests (in the shape of HumanEval or MBPP), as
/// a public benchmark does, or by any scorer (--scorer, --scorers).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The policy's folder; with --responses its tokenizer is all that is used.
    #[arg(long)]
    model: PathBuf,
    /// Problems, the benchmark's own file, or with a scorer any prompts (JSON Lines, CSV, TSV, Parquet);
    /// plain or gzipped; - is standard input.
    #[arg(long, required_unless_present = "responses")]
    problems: Option<PathBuf>,
    /// Judges these responses, which sluice generate has written, instead of drawing any; - is standard
    /// input.
    #[arg(long, conflicts_with_all = ["problems", "benchmark"])]
    responses: Option<PathBuf>,
    /// Another name in the file of prompts: prompt=question; may be given several times.
    #[arg(long = "column", value_name = "NAME=COLUMN")]
    columns: Vec<String>,
    #[command(flatten)]
    scorers: ScorerArguments,
    /// Asks as this benchmark's users do: its prompt, its stop texts, its part of the file.
    #[arg(long, value_enum, conflicts_with_all = ["scorer", "scorers", "columns"])]
    benchmark: Option<Benchmark>,
    /// How a benchmark asks: chat where the model has a chat template, else completion.
    #[arg(long, value_enum, requires = "benchmark")]
    form: Option<Form>,
    /// Writes each response with its verdict, as sluice grade does, or with its score; - is standard output.
    #[arg(long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    lines: LineArguments,
    /// Responses per problem.
    #[arg(long, default_value_t = 1)]
    n: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Seeds the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArguments,
    #[command(flatten)]
    grading: GradingArguments,
}

/// Runs the command.
///
/// # Errors
/// Names the file that cannot be used, or why there is no sandbox.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let k = arguments.grading.k.iter().find(|k| **k > arguments.n as u64);
    if let Some(k) = k.filter(|_| arguments.responses.is_none()) {
        return Err(BadInput(format!("pass@{k} needs at least {k} responses per problem: --n {k}")).into());
    }
    closed_pipe::init_logging()?;
    let (setup, wrong) = (arguments.grading.setup()?, arguments.lines.wrong_lines());
    if arguments.scorers.is_given() {
        let config = arguments.scorers.config(&arguments.model, &setup)?;
        return scored::run(arguments, &config, &wrong);
    }
    let Some(problems) = &arguments.problems else {
        let problem = "--responses are judged by scorers: name one with --scorer, or a recipe with --scorers";
        return Err(BadInput(problem.to_owned()).into());
    };
    let mut stop = Vec::new();
    let questions = match arguments.benchmark {
        Some(benchmark) => {
            let form = arguments.form()?;
            stop = benchmark.stop(form);
            benchmark.read(problems, form, &wrong)?
        }
        None => Questions::Tasks(grading::read_tasks(problems, &wrong)?),
    };
    let prompts: Vec<PromptContent> = questions.prompts().cloned().collect();
    let sampling = arguments.sampling.sampling(0.0, &stop)?;
    let draw = DrawOptions { n: arguments.n, seed: arguments.seed, sampling };
    let mut generator = arguments.engine.generator(&arguments.model)?;
    let groups = responses::draw_where_possible(&mut generator, &prompts, &draw)?;
    drop(generator);
    let judged = match &questions {
        Questions::Tasks(tasks) => judge_programs(&setup, tasks, &groups)?,
        Questions::Numbers(questions) => judge_numbers(questions, &groups),
    };
    if let Some(output) = &arguments.output {
        write(output, &judged, &groups)?;
    }
    arguments.say(&arguments.grading.summary(&judged.totals));
    Ok(wrong.finish()?)
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
    /// Says what came of it, where the responses do not go.
    fn say(&self, summary: &str) {
        say_beside(self.output.as_deref().unwrap_or(Path::new("")), summary);
    }

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
