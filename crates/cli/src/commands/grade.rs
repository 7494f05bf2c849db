//! `sluice grade`: samples against hidden tests, in the sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use comfy_table::{Table, presets};
use sandbox::{GraderConfig, Limits, Problem, Tier, Verdict, pass_at_k};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::{BadInput, jsonl};

use crate::bar::Bar;
use crate::grading::{self, Gradable};

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
    how: How,
}

/// How samples are graded, and what is printed of it.
#[derive(Debug, clap::Args)]
pub(crate) struct How {
    /// The k of pass@k, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) k: Vec<u64>,
    /// auto, a or b: namespaces with Landlock and seccomp, or Landlock and seccomp alone.
    #[arg(long, default_value = "auto", value_parser = parse_tier)]
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
struct TierChoice(Option<Tier>);

fn parse_tier(text: &str) -> Result<TierChoice, String> {
    match text {
        "auto" => Ok(TierChoice(None)),
        "a" => Ok(TierChoice(Some(Tier::A))),
        "b" => Ok(TierChoice(Some(Tier::B))),
        _ => Err(format!("{text:?} must be auto, a or b")),
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
        let wrong = |error: sandbox::ReadError| BadInput(error.to_string());
        let mut by_id = BTreeMap::new();
        for record in sandbox::read_problems(path).map_err(wrong)? {
            let problem = record.map_err(wrong)?.problem;
            by_id.insert(problem.task_id().to_owned(), problem);
        }
        Ok(Self { path: path.to_owned(), by_id })
    }

    fn row(&self, line: &jsonl::Line) -> Result<Row<'_>, BadInput> {
        let Sample { task_id, completion } = line.parse()?;
        let task_id = task_id.as_str().map_or_else(|| task_id.to_string(), str::to_owned);
        let unknown = || line.wrong(&format!("task_id {task_id:?} is no problem of {}", self.path.display()));
        let problem = self.by_id.get(&task_id).ok_or_else(unknown)?;
        Ok(Row { fields: line.parse()?, problem, completion })
    }

    /// How many samples a file has, all of which can be graded: so that what is wrong is known before the first runs. 0 for
    /// standard input, which cannot be read twice.
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

/// Runs the command. Samples are read, graded and written as they come, so that a file may be larger than the memory.
///
/// # Errors
/// Names the file and line that cannot be used, or why there is no sandbox.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let problems = Problems::read(&arguments.problems)?;
    let total = problems.check(&arguments.samples)?;
    let (config, limits) = arguments.how.grader()?;
    let mut output = jsonl::Writer::create(&arguments.output)?;
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    let (bar, mut done) = (Bar::new("tests", total), 0);
    let rows = jsonl::read(&arguments.samples)?.map(|line| Ok(problems.row(&line?)?));
    let outcome = grading::grade_in_order(config, &limits, rows, |mut row, grade| {
        let passed = grade.verdict == Verdict::Accepted;
        row.fields.insert("passed".to_owned(), passed.into());
        row.fields.insert("verdict".to_owned(), grade.verdict.name().into());
        row.fields.insert("detail".to_owned(), grade.detail.into());
        *verdicts.entry(grade.verdict).or_default() += 1;
        if grade.verdict.judges_response() {
            let (total, correct) = counts.entry(row.problem.task_id()).or_default();
            *total += 1;
            *correct += u64::from(passed);
        }
        done += 1;
        bar.at(done, total, "");
        output.write(&row.fields)
    });
    bar.finish();
    output.finish()?;
    outcome?;
    let summary = arguments.how.summary(&counts.into_values().collect::<Vec<_>>(), &verdicts);
    // Where the grades go to standard output, nothing else does.
    if arguments.output == Path::new("-") {
        eprintln!("{summary}")
    } else {
        println!("{summary}")
    }
    Ok(())
}

impl How {
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
        Ok((GraderConfig { workers, tier: self.tier.0, ..defaults }, limits))
    }

    /// What there is to say: pass@k over problems with these (samples, correct), and what the verdicts were.
    pub(crate) fn summary(&self, counts: &[(u64, u64)], verdicts: &BTreeMap<Verdict, u64>) -> String {
        let mut rates: Vec<(u64, Option<f64>)> = Vec::new();
        for k in &self.k {
            let of_problem: Option<Vec<f64>> =
                counts.iter().map(|(total, correct)| pass_at_k(*total, *correct, *k)).collect();
            let mean = of_problem.map(|rates| rates.iter().sum::<f64>() / rates.len().max(1) as f64);
            rates.push((*k, mean.filter(|_| !counts.is_empty())));
        }
        if self.json {
            let rates: Map<String, Value> =
                rates.iter().map(|(k, rate)| (format!("pass@{k}"), (*rate).into())).collect();
            let verdicts: Map<String, Value> = verdicts
                .iter()
                .map(|(verdict, count)| (verdict.name().to_owned(), (*count).into()))
                .collect();
            let summary = serde_json::json!({"problems": counts.len(), "pass": rates, "verdicts": verdicts});
            return summary.to_string();
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["", "value"]);
        table.add_row(["problems".to_owned(), counts.len().to_string()]);
        for (k, rate) in rates {
            let rate = rate
                .map_or_else(|| format!("fewer than {k} samples"), |rate| format!("{:.2} %", 100.0 * rate));
            table.add_row([format!("pass@{k}"), rate]);
        }
        for (verdict, count) in verdicts {
            table.add_row([verdict.name().to_owned(), count.to_string()]);
        }
        table.to_string()
    }
}
