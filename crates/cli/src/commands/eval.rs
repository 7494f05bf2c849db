//! `sluice eval`: what a model makes of problems. They are judged by hidden tests or by a public benchmark's
//! rules here, by any scorers in `scored`.

mod scored;
mod scorers;
mod totals;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
use crate::episodes::{Drawing, EpisodeSetup, EpisodeTotals, add_turns};
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
    /// Draws responses as episodes of several turns in the environment of this recipe, or of this reward
    /// server's configuration; in that of --scorers, where it has one, if not given.
    #[arg(long, value_name = "FILE", conflicts_with = "responses")]
    environment: Option<PathBuf>,
    /// Draws responses of one turn, though the recipe has an environment.
    #[arg(long, conflicts_with_all = ["environment", "responses"])]
    one_turn: bool,
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
    let groups = arguments.draw(&prompts, questions.fields(), &stop)?;
    let episodes = EpisodeTotals::of(groups.iter().flatten());
    let judged = match &questions {
        Questions::Tasks(tasks) => judge_programs(&setup, tasks, &groups)?,
        Questions::Numbers(questions) => judge_numbers(questions, &groups),
    };
    if let Some(output) = &arguments.output {
        write(output, &judged, &groups)?;
    }
    let summary = arguments.grading.summary(&judged.totals);
    arguments.say(&EpisodeTotals::beside(episodes.as_ref(), summary, arguments.grading.json));
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
            let mut row = json!({
                "task_id": task_id, "completion": response.text, "verdict": verdict.name(),
                "passed": *verdict == Verdict::Accepted,
            });
            add_turns(&mut row, response.played.as_deref());
            writer.write(&row)?;
        }
    }
    writer.finish()
}

impl Arguments {
    /// What responses are played in; none where they have one turn.
    fn episodes(&self) -> anyhow::Result<Option<EpisodeSetup>> {
        match (&self.environment, self.scorers.file()) {
            (Some(file), _) => EpisodeSetup::of_named(file).map(Some),
            (None, Some(file)) if !self.one_turn => EpisodeSetup::of_file(file),
            (None, _) => Ok(None),
        }
    }

    /// Draws responses to prompts with these fields, which these texts end beside those that were given. A
    /// prompt that is too long has none.
    fn draw(
        &self,
        prompts: &[PromptContent],
        fields: Vec<Arc<str>>,
        stop: &[String],
    ) -> anyhow::Result<Vec<Vec<Response>>> {
        let episodes = self.episodes()?;
        let mut sampling = self.sampling.sampling(0.0, stop)?;
        if let Some(episodes) = &episodes {
            sampling = episodes.sampling(&sampling)?;
        }
        let draw = DrawOptions { n: self.n, seed: self.seed, sampling };
        let generator = self.engine.generator(&self.model)?;
        let mut drawing = Drawing::new(episodes.as_ref(), &self.model, generator)?;
        drawing.know(fields.into_iter());
        responses::draw_where_possible(&mut drawing.generator, prompts, &draw)
    }

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
