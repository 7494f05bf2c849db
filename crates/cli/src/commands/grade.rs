//! `sluice grade`: samples against hidden tests, in the sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use extraction::{Extract, Program};
use reward_server::config::SandboxConfig;
use sandbox::{Limits, Problem, Tier, Verdict};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::BadInput;
use service::jsonl::{self, WrongLines};

use super::lines::{LineArguments, say_beside};
use crate::bar::Bar;
use crate::grading::{self, Gradable, GradingSetup, Totals};

/// Grades samples by hidden tests in the sandbox; prints pass@k by the unbiased estimator (arXiv 2107.03374).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Problems in the shape of HumanEval, MBPP, LeetCodeDataset, APPS or LiveCodeBench, plain or gzipped; -
    /// is standard input.
    #[arg(long)]
    problems: PathBuf,
    /// Lines {"task_id", "completion"}, plain or gzipped, EvalPlus' {"task_id", "solution"}, or what sluice
    /// generate writes, with {"id", "text"}; - is standard input.
    #[arg(long)]
    samples: PathBuf,
    /// The samples with {"passed", "verdict", "detail"} added, in their order; - is standard output.
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    lines: LineArguments,
    #[command(flatten)]
    grading: GradingArguments,
}

/// How samples are graded, and what is printed of it.
#[derive(Debug, clap::Args)]
pub(crate) struct GradingArguments {
    /// The k of pass@k, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) k: Vec<u64>,
    /// Interpreter, import paths, limits, extraction and prelude: the [sandbox] of a reward server's
    /// configuration, or the [reward_server.sandbox] of a recipe.
    #[arg(long)]
    config: Option<PathBuf>,
    /// code-block takes the fenced block that defines what the tests call, or all where no block is fenced;
    /// whole takes all.
    #[arg(long, value_parser = parse_extract)]
    extract: Option<Extract>,
    /// auto, a or b: namespaces with Landlock and seccomp, or Landlock and seccomp alone.
    #[arg(long)]
    tier: Option<TierChoice>,
    /// Processor seconds of a program; twice that on the wall, and twenty times where the machine is busy. 3
    /// where nothing else is configured.
    #[arg(long)]
    timeout: Option<f64>,
    /// Programs at a time; one for each core where not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Python that runs before every program, such as imports that the problems take for granted.
    #[arg(long)]
    prelude: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_extract(text: &str) -> Result<Extract, serde_json::Error> {
    serde_json::from_value(text.into())
}

/// A tier, or the strongest that works.
#[derive(Debug, Clone, Copy)]
enum TierChoice {
    Strongest,
    Exactly(Tier),
}

impl FromStr for TierChoice {
    type Err = NoTier;

    fn from_str(text: &str) -> Result<Self, NoTier> {
        match text {
            "auto" => Ok(Self::Strongest),
            "a" => Ok(Self::Exactly(Tier::A)),
            "b" => Ok(Self::Exactly(Tier::B)),
            _ => Err(NoTier(text.to_owned())),
        }
    }
}

/// A word that names no tier.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} must be auto, a or b")]
pub(crate) struct NoTier(String);

#[derive(Debug, Deserialize)]
struct Sample {
    task_id: Option<Value>,
    id: Option<Value>,
    completion: Option<String>,
    text: Option<String>,
    /// A whole program, as EvalPlus writes it.
    solution: Option<String>,
}

impl Sample {
    /// The problem's name and the response.
    fn of(line: &jsonl::Line) -> Result<(String, String), BadInput> {
        let Self { task_id, id, completion, text, solution } = line.parse()?;
        let task_id =
            task_id.or(id).ok_or_else(|| line.wrong("has no task_id and no id: whose sample is it?"))?;
        let completion = completion.or(text).or(solution);
        let completion =
            completion.ok_or_else(|| line.wrong("has no completion, no text and no solution"))?;
        Ok((task_id.as_str().map_or_else(|| task_id.to_string(), str::to_owned), completion))
    }
}

/// A line of the samples.
struct Row<'a> {
    fields: Map<String, Value>,
    program: Program<'a>,
}

impl Gradable for Row<'_> {
    fn pair(&self) -> (&Problem, &str) {
        self.program.pair()
    }
}

/// Problems by their id.
struct Problems<'a> {
    path: &'a Path,
    by_id: BTreeMap<String, Problem>,
    /// From a sample to a program.
    setup: &'a GradingSetup,
}

impl<'a> Problems<'a> {
    fn read(path: &'a Path, setup: &'a GradingSetup, wrong: &WrongLines) -> Result<Self, BadInput> {
        let problems = grading::read_problems(path, wrong)?.into_iter();
        let by_id = problems.map(|line| (line.problem.task_id().to_owned(), line.problem)).collect();
        Ok(Self { path, by_id, setup })
    }

    fn row(&self, line: &jsonl::Line) -> Result<Row<'_>, BadInput> {
        let (task_id, completion) = Sample::of(line)?;
        match self.by_id.get(&task_id) {
            Some(problem) => {
                let program = self.setup.extract.program(problem, &completion);
                Ok(Row { fields: line.parse()?, program })
            }
            None => Err(line.wrong(&format!("task_id {task_id:?} is no problem of {}", self.path.display()))),
        }
    }

    /// How many samples a file has, all of which can be graded: so that what is wrong is known before the
    /// first runs. 0 for standard input, which cannot be read twice, and where wrong lines are passed over.
    fn check(&self, samples: &Path, wrong: &WrongLines) -> Result<u64, BadInput> {
        if samples == Path::new("-") || wrong.keep_going() {
            return Ok(0);
        }
        let mut count = 0;
        for line in jsonl::read(samples)? {
            wrong.sift(line.and_then(|line| self.row(&line).map(|_| ()))).transpose()?;
            count += 1;
        }
        Ok(count)
    }
}

/// Runs the command. Samples are read, graded and written as they come, so that a file may be larger than the
/// memory.
///
/// # Errors
/// Names the file and line that cannot be used, or why there is no sandbox.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let wrong = arguments.lines.wrong_lines();
    if [&arguments.problems, &arguments.samples].iter().all(|path| path.as_path() == Path::new("-")) {
        let problem = "--problems and --samples are both standard input: give one of them as a file";
        return Err(BadInput(problem.to_owned()).into());
    }
    let setup = arguments.grading.setup()?;
    let problems = Problems::read(&arguments.problems, &setup, &wrong)?;
    let total = problems.check(&arguments.samples, &wrong)?;
    let mut output = jsonl::Writer::create(&arguments.output)?;
    let mut totals = Totals::of(problems.by_id.keys().map(String::as_str));
    let (bar, mut done) = (Bar::new("tests", total), 0);
    let rows = jsonl::read(&arguments.samples)?;
    let rows = rows.filter_map(|line| wrong.sift(line.and_then(|line| problems.row(&line))));
    let rows = rows.map(|row| Ok(row?));
    let outcome = grading::grade_in_order(&setup, rows, |mut row, grade| {
        totals.add(row.program.problem.task_id(), grade.verdict);
        row.fields.insert("passed".to_owned(), (grade.verdict == Verdict::Accepted).into());
        row.fields.insert("verdict".to_owned(), grade.verdict.name().into());
        row.fields.insert("detail".to_owned(), grade.detail.into());
        done += 1;
        bar.at(done, total, "");
        output.write(&row.fields)
    });
    bar.finish();
    output.finish()?;
    totals.overload_retries = outcome?;
    say_beside(&arguments.output, &arguments.grading.summary(&totals));
    Ok(wrong.finish()?)
}

impl GradingArguments {
    /// How samples are graded: as the file says, then as the flags do.
    ///
    /// # Errors
    /// When a file cannot be used, or the time-out is none.
    pub(crate) fn setup(&self) -> Result<GradingSetup, BadInput> {
        let mut setup = match &self.config {
            Some(path) => GradingSetup::read(path)?,
            None => GradingSetup::of(&SandboxConfig::default()),
        };
        if let Some(timeout) = self.timeout {
            if !timeout.is_finite() || timeout <= 0.0 {
                return Err(BadInput(format!("--timeout is {timeout}, must be a positive number")));
            }
            let Limits { cpu, wall, overload_wall, .. } =
                Limits::with_timeout(Duration::from_secs_f64(timeout));
            setup.limits = Limits { cpu, wall, overload_wall, ..setup.limits };
        }
        setup.grader.workers = self.jobs.unwrap_or(setup.grader.workers);
        setup.extract = self.extract.unwrap_or(setup.extract);
        if let Some(path) = &self.prelude {
            setup.grader.prelude = std::fs::read_to_string(path)
                .map_err(|error| BadInput(format!("read the prelude {}: {error}", path.display())))?;
        }
        match self.tier {
            Some(TierChoice::Strongest) => setup.grader.tier = None,
            Some(TierChoice::Exactly(tier)) => setup.grader.tier = Some(tier),
            None => {}
        }
        Ok(setup)
    }

    /// What there is to say of the samples.
    pub(crate) fn summary(&self, totals: &Totals) -> String {
        if self.json { totals.json(&self.k) } else { totals.table(&self.k) }
    }
}
