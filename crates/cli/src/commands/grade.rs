//! `sluice grade`: samples against hidden tests, in the sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sandbox::{Grade, GraderConfig, Limits, Problem, Tier, Verdict, pass_at_k};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::{BadInput, jsonl};

use crate::bad_input;
use crate::bar::Bar;
use crate::grading::{self, Gradable};
use crate::table::table;

/// Grades samples by hidden tests in the sandbox; prints pass@k by the unbiased estimator (arXiv 2107.03374).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Problems in the shape of HumanEval or MBPP, plain or gzipped.
    #[arg(long)]
    problems: PathBuf,
    /// Lines {"task_id", "completion"}, plain or gzipped; - is standard input.
    #[arg(long)]
    samples: PathBuf,
    /// The samples with {"passed", "verdict", "detail"} added, in their order.
    #[arg(long)]
    output: PathBuf,
    #[command(flatten)]
    grading: GradingArguments,
}

/// How samples are graded, and what is printed of it.
#[derive(Debug, clap::Args)]
pub(crate) struct GradingArguments {
    /// The k of pass@k, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) k: Vec<u64>,
    /// auto, a or b: namespaces with Landlock and seccomp, or Landlock and seccomp alone.
    #[arg(long, default_value = "auto")]
    tier: TierChoice,
    /// Processor seconds of a program; twice that on the wall.
    #[arg(long, default_value_t = 3.0)]
    timeout: f64,
    /// Programs at a time; one for each core where not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
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

/// Samples of one problem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SampleCounts {
    /// Those that could be judged.
    judged: u64,
    /// Those of them that passed all tests.
    passed: u64,
}

impl SampleCounts {
    /// Counts one more sample, unless it could not be judged.
    pub(crate) fn add(&mut self, grade: &Grade) {
        if let Some(passed) = grading::passed(grade) {
            self.judged += 1;
            self.passed += u64::from(passed);
        }
    }
}

#[derive(Debug, Deserialize)]
struct Sample {
    task_id: Value,
    completion: String,
}

/// A line of the samples.
struct Row<'a> {
    fields: Map<String, Value>,
    problem: &'a Problem,
    completion: String,
}

impl Gradable for Row<'_> {
    fn pair(&self) -> (&Problem, &str) {
        (self.problem, &self.completion)
    }
}

/// Problems by their id.
struct Problems {
    path: PathBuf,
    by_id: BTreeMap<String, Problem>,
}

impl Problems {
    fn read(path: &Path) -> Result<Self, BadInput> {
        let mut by_id = BTreeMap::new();
        for record in sandbox::read_problems(path).map_err(bad_input::of_problems)? {
            let problem = record.map_err(bad_input::of_problems)?.problem;
            by_id.insert(problem.task_id().to_owned(), problem);
        }
        Ok(Self { path: path.to_owned(), by_id })
    }

    fn row(&self, line: &jsonl::Line) -> Result<Row<'_>, BadInput> {
        let Sample { task_id, completion } = line.parse()?;
        let task_id = task_id.as_str().map_or_else(|| task_id.to_string(), str::to_owned);
        match self.by_id.get(&task_id) {
            Some(problem) => Ok(Row { fields: line.parse()?, problem, completion }),
            None => Err(line.wrong(&format!("task_id {task_id:?} is no problem of {}", self.path.display()))),
        }
    }

    /// How many samples a file has, all of which can be graded: so that what is wrong is known before the
    /// first runs. 0 for standard input, which cannot be read twice.
    fn check(&self, samples: &Path) -> Result<u64, BadInput> {
        if samples == Path::new("-") {
            return Ok(0);
        }
        let mut count = 0;
        for line in jsonl::read(samples)? {
            self.row(&line?)?;
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
    let problems = Problems::read(&arguments.problems)?;
    let total = problems.check(&arguments.samples)?;
    let (config, limits) = arguments.grading.grader()?;
    let mut output = jsonl::Writer::create(&arguments.output)?;
    let mut counts: BTreeMap<&str, SampleCounts> = BTreeMap::new();
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    let (bar, mut done) = (Bar::new("tests", total), 0);
    let rows = jsonl::read(&arguments.samples)?.map(|line| Ok(problems.row(&line?)?));
    let outcome = grading::grade_in_order(config, &limits, rows, |mut row, grade| {
        *verdicts.entry(grade.verdict).or_default() += 1;
        if grade.verdict.judges_response() {
            counts.entry(row.problem.task_id()).or_default().add(&grade);
        }
        row.fields.insert("passed".to_owned(), (grade.verdict == Verdict::Accepted).into());
        row.fields.insert("verdict".to_owned(), grade.verdict.name().into());
        row.fields.insert("detail".to_owned(), grade.detail.into());
        done += 1;
        bar.at(done, total, "");
        output.write(&row.fields)
    });
    bar.finish();
    output.finish()?;
    outcome?;
    let summary = arguments.grading.summary(&counts.into_values().collect::<Vec<_>>(), &verdicts);
    // Where the grades go to standard output, nothing else does.
    if arguments.output == Path::new("-") {
        eprintln!("{summary}")
    } else {
        println!("{summary}")
    }
    Ok(())
}

impl GradingArguments {
    /// The sandbox and what it allows a program.
    ///
    /// # Errors
    /// When the time-out is none.
    pub(crate) fn grader(&self) -> Result<(GraderConfig, Limits), BadInput> {
        if !self.timeout.is_finite() || self.timeout <= 0.0 {
            return Err(BadInput(format!("--timeout is {}, must be a positive number", self.timeout)));
        }
        let defaults = GraderConfig::default();
        let workers = self.jobs.unwrap_or(defaults.workers);
        let limits = Limits::with_timeout(Duration::from_secs_f64(self.timeout));
        let tier = match self.tier {
            TierChoice::Strongest => None,
            TierChoice::Exactly(tier) => Some(tier),
        };
        Ok((GraderConfig { workers, tier, ..defaults }, limits))
    }

    /// What there is to say: pass@k over problems of which so many samples passed, and what the verdicts
    /// were.
    pub(crate) fn summary(&self, problems: &[SampleCounts], verdicts: &BTreeMap<Verdict, u64>) -> String {
        if self.json {
            let rates: Map<String, Value> =
                self.k.iter().map(|k| (format!("pass@{k}"), mean_pass_at_k(problems, *k).into())).collect();
            let verdicts: Map<String, Value> = verdicts
                .iter()
                .map(|(verdict, count)| (verdict.name().to_owned(), (*count).into()))
                .collect();
            let summary =
                serde_json::json!({"problems": problems.len(), "pass": rates, "verdicts": verdicts});
            return summary.to_string();
        }
        let mut table = table(&["", "value"]);
        table.add_row(["problems".to_owned(), problems.len().to_string()]);
        for k in &self.k {
            let rate = match mean_pass_at_k(problems, *k) {
                Some(rate) => format!("{:.2} %", 100.0 * rate),
                None => format!("fewer than {k} samples"),
            };
            table.add_row([format!("pass@{k}"), rate]);
        }
        for (verdict, count) in verdicts {
            table.add_row([verdict.name().to_owned(), count.to_string()]);
        }
        table.to_string()
    }
}

/// The mean over problems; none where one of them has too few samples, or there is no problem.
fn mean_pass_at_k(problems: &[SampleCounts], k: u64) -> Option<f64> {
    let rates: Option<Vec<f64>> =
        problems.iter().map(|counts| pass_at_k(counts.judged, counts.passed, k)).collect();
    let rates = rates.filter(|rates| !rates.is_empty())?;
    Some(rates.iter().sum::<f64>() / rates.len() as f64)
}
