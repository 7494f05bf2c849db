//! `sluice grade`: samples against hidden tests, in the sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use sandbox::{GraderConfig, Limits, Problem, Tier, Verdict, pass_at_k};
use serde::Deserialize;
use serde_json::{Map, Value};
use service::{BadInput, jsonl};

use crate::bar::Bar;
use crate::grading;

/// Grades samples by hidden tests in the sandbox; prints pass@k by the unbiased estimator (arXiv 2107.03374).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Problems in the shape of HumanEval or MBPP, plain or gzipped.
    #[arg(long)]
    problems: PathBuf,
    /// Lines {"task_id", "completion"}, plain or gzipped.
    #[arg(long)]
    samples: PathBuf,
    /// The samples with {"passed", "verdict", "detail"} added.
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

/// Runs the command.
///
/// # Errors
/// Names the file and line that cannot be used, or why there is no sandbox.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let problems =
        sandbox::read_problems(&arguments.problems).map_err(|error| BadInput(error.to_string()))?;
    let mut by_id: BTreeMap<String, Problem> = BTreeMap::new();
    for record in problems {
        let problem = record.map_err(|error| BadInput(error.to_string()))?.problem;
        by_id.insert(problem.task_id().to_owned(), problem);
    }
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    let mut samples: Vec<(String, String)> = Vec::new();
    for line in jsonl::read(&arguments.samples)? {
        let line = line?;
        let Sample { task_id, completion } = line.parse()?;
        let task_id = task_id.as_str().map_or_else(|| task_id.to_string(), str::to_owned);
        if !by_id.contains_key(&task_id) {
            let known = arguments.problems.display();
            return Err(line.wrong(&format!("task_id {task_id:?} is no problem of {known}")).into());
        }
        rows.push(line.parse()?);
        samples.push((task_id, completion));
    }
    let work: Vec<(&Problem, &str)> =
        samples.iter().map(|(task_id, completion)| (&by_id[task_id], completion.as_str())).collect();
    let grades = arguments.how.grade(&work)?;
    let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    for ((row, (task_id, _)), grade) in rows.iter_mut().zip(&samples).zip(&grades) {
        let passed = grade.verdict == Verdict::Accepted;
        row.insert("passed".to_owned(), passed.into());
        row.insert("verdict".to_owned(), grade.verdict.name().into());
        row.insert("detail".to_owned(), grade.detail.clone().into());
        *verdicts.entry(grade.verdict).or_default() += 1;
        if grade.verdict.judges_response() {
            let (total, correct) = counts.entry(task_id).or_default();
            *total += 1;
            *correct += u64::from(passed);
        }
    }
    jsonl::write(&arguments.output, rows.iter()).context("write the grades")?;
    arguments.how.print(&counts.into_values().collect::<Vec<_>>(), &verdicts)
}

impl How {
    /// Grades pairs of a problem and a response, with a bar.
    ///
    /// # Errors
    /// When there is no sandbox.
    pub(crate) fn grade(&self, work: &[(&Problem, &str)]) -> anyhow::Result<Vec<sandbox::Grade>> {
        if !self.timeout.is_finite() || self.timeout <= 0.0 {
            return Err(BadInput(format!("--timeout is {}, must be a positive number", self.timeout)).into());
        }
        let defaults = GraderConfig::default();
        let workers = self.jobs.unwrap_or(defaults.workers);
        let config = GraderConfig { workers, tier: self.tier.0, ..defaults };
        let limits = Limits::with_timeout(Duration::from_secs_f64(self.timeout));
        let (bar, total) = (Bar::new("tests", work.len() as u64), work.len() as u64);
        let grades = grading::grade_all(config, &limits, work, |done| bar.at(done as u64, total, ""));
        bar.finish();
        grades
    }

    /// Prints pass@k over problems with these (samples, correct) and what the verdicts were.
    ///
    /// # Errors
    /// When a k is larger than a problem's samples.
    pub(crate) fn print(
        &self,
        counts: &[(u64, u64)],
        verdicts: &BTreeMap<Verdict, u64>,
    ) -> anyhow::Result<()> {
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
            println!(
                "{}",
                serde_json::json!({"problems": counts.len(), "pass": rates, "verdicts": verdicts})
            );
            return Ok(());
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
        println!("{table}");
        Ok(())
    }
}
