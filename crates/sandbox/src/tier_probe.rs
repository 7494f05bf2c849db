//! Which tiers work here: finds the parts of a sandbox, and proves a tier by building it and running programs
//! in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use crate::clock::{Moment, poll_millis};
use crate::config::GraderConfig;
use crate::error::Error;
use crate::interpreter::Interpreter;
use crate::judge::{self, GradedRun, RunContext};
use crate::limits::Limits;
use crate::problem::{CallCase, FunctionCalls, Problem};
use crate::tier::{StepFailure, Tier, TierReport};
use crate::verdict::Verdict;
use crate::zygote::{Imports, Start, Zygote, ZygoteLauncher};

/// Tries every tier: builds it, and runs a program in it.
///
/// # Errors
/// Where there is no helper or no interpreter to try with.
pub fn probe(config: &GraderConfig) -> Result<TierReport, Error> {
    let tier_probe = TierProbe::new(config)?;
    Ok(TierReport { a: tier_probe.try_tier(Tier::A)?, b: tier_probe.try_tier(Tier::B)? })
}

/// What is needed to build zygotes of either tier.
#[derive(Debug)]
pub(crate) struct TierProbe {
    init: PathBuf,
    interpreter: Interpreter,
    import_paths: Vec<PathBuf>,
    start_timeout: Duration,
}

impl TierProbe {
    pub(crate) fn new(config: &GraderConfig) -> Result<Self, Error> {
        let init = find_init(config.init.as_deref())?;
        let interpreter = Interpreter::find(config.interpreter.as_deref(), &config.import_paths)?;
        let import_paths = config.import_paths.clone();
        Ok(Self { init, interpreter, import_paths, start_timeout: config.start_timeout })
    }

    pub(crate) fn launcher(&self, tier: Tier) -> Result<ZygoteLauncher, Error> {
        ZygoteLauncher::new(self.init.clone(), &self.interpreter, &self.import_paths, tier)
    }

    /// The configured tier, or the strongest that works.
    pub(crate) fn choose(&self, config: &GraderConfig) -> Result<Tier, Error> {
        if let Some(tier) = config.tier {
            return match self.try_tier(tier)? {
                None => Ok(tier),
                Some(failure) => Err(Error::TierUnavailable { tier, failure }),
            };
        }
        let Some(a) = self.try_tier(Tier::A)? else { return Ok(Tier::A) };
        let report = TierReport { a: Some(a), b: self.try_tier(Tier::B)? };
        report
            .best()
            .filter(|tier| tier.satisfies(config.minimum_tier))
            .ok_or(Error::BelowMinimumTier { minimum: config.minimum_tier, report })
    }

    /// `None` where a right program is accepted and a wrong one is not.
    fn try_tier(&self, tier: Tier) -> Result<Option<StepFailure>, Error> {
        let launcher = self.launcher(tier)?;
        let (mut candidate, mut tester) = match (self.start_one(&launcher), self.start_one(&launcher)) {
            (Ok(candidate), Ok(tester)) => (candidate, tester),
            (Err(failure), other) | (other, Err(failure)) => {
                reap(other.ok());
                return Ok(Some(failure));
            }
        };
        let limits = Limits::default();
        let nested = tier == Tier::A;
        let context = RunContext { limits: &limits, nested, seed: 0, prelude: "", compiled_tests: None };
        let mut failure = None;
        for (source, expected) in
            [("def f(x): return x + 1", Verdict::Accepted), ("def f(x): return x", Verdict::WrongAnswer)]
        {
            let judged =
                judge::function(&context, &sample_problem(), source, "probe", [&mut candidate, &mut tester])
                    .unwrap_or_else(|error| GradedRun::without_resources(&error));
            if judged.verdict != expected {
                let step = format!("a program that has to be {expected} was {}", judged.verdict);
                failure = Some(StepFailure { step, errno: 0, detail: judged.detail });
                break;
            }
        }
        reap([candidate, tester]);
        Ok(failure)
    }

    /// A ready zygote, started on this thread.
    fn start_one(&self, launcher: &ZygoteLauncher) -> Result<Zygote, StepFailure> {
        let mut starting =
            launcher.launch(Imports::Usual).map_err(|error| StepFailure::not_started(&error))?;
        loop {
            let until = Moment::now() + Duration::from_millis(100);
            // An interrupted wait only means looking earlier.
            let _ = poll(
                &mut [PollFd::new(starting.fd(), PollFlags::POLLIN)],
                PollTimeout::from(poll_millis(until)),
            );
            starting = match starting.advance(self.start_timeout) {
                Start::Pending(starting) => starting,
                Start::Ready(zygote) => return Ok(zygote),
                Start::Failed(zygote, failure) => {
                    reap([zygote]);
                    return Err(failure);
                }
            };
        }
    }
}

/// Ends zygotes and waits until they are gone.
fn reap(zygotes: impl IntoIterator<Item = Zygote>) {
    let mut dying: Vec<_> = zygotes.into_iter().map(Zygote::dismiss).collect();
    while !dying.is_empty() {
        dying.retain_mut(|dying| !dying.is_gone());
        if !dying.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn sample_problem() -> Problem {
    let case =
        CallCase { args: vec![json!(1)], kwargs: std::collections::BTreeMap::new(), expected: json!(2) };
    Problem::FunctionCalls(FunctionCalls {
        task_id: "probe".to_owned(),
        entry_point: "f".to_owned(),
        cases: vec![case],
        ..FunctionCalls::default()
    })
}

/// The helper: configured, or beside the running program, or one folder up (test programs lie in `deps/`).
fn find_init(configured: Option<&Path>) -> Result<PathBuf, Error> {
    const NAME: &str = "sluice-sandbox-init";
    let looked: Vec<PathBuf> = match configured {
        Some(path) => vec![path.to_owned()],
        None => {
            let program = std::env::current_exe().map_err(Error::io("find the running program"))?;
            program.ancestors().skip(1).take(2).map(|folder| folder.join(NAME)).collect()
        }
    };
    looked.iter().find(|path| path.is_file()).cloned().ok_or(Error::NoInit { looked })
}
