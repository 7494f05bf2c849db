//! Hidden unit tests: the program in a response, graded in the sandbox, and the memory of verdicts.
//!
//! Gradings run on threads of their own, as many as the sandbox has workers. A verdict that says nothing
//! about the response (`unsupported`, `overloaded`, `internal_error`) is an error, never a number.

use std::borrow::Cow;
use std::sync::Arc;

use extraction::{Extract, Program};
use quick_cache::sync::Cache;
use sandbox::{Grade, Grader, Limits, Problem, Verdict};
use tokio::sync::Semaphore;

use crate::config::{Rule, SandboxConfig};
use crate::metrics;
use crate::problem::problem;
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;

/// How many of a response's tests passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u32,
    total: u32,
    accepted: bool,
}

impl Tally {
    /// The share of tests passed, in 0..=1.
    fn share(self) -> f64 {
        f64::from(self.passed) / f64::from(self.total.max(1))
    }

    /// The number of a unit-test scorer.
    pub(crate) fn number(self, rule: Rule) -> f64 {
        match rule {
            Rule::Share => self.share(),
            Rule::All => f64::from(u8::from(self.accepted)),
        }
    }
}

/// The BLAKE3 hash of a problem and a program.
type Key = [u8; 32];

/// Grades programs.
#[derive(Debug)]
pub(crate) struct UnitTestRunner {
    grader: Arc<Grader>,
    limits: Arc<Limits>,
    extract: Extract,
    /// One for each worker of the grader: who waits, waits here and keeps no thread busy.
    turns: Arc<Semaphore>,
    verdicts: Option<Cache<Key, Tally>>,
}

impl UnitTestRunner {
    /// Starts the sandbox: finds the tier, proves it, warms the interpreters. Blocks meanwhile.
    ///
    /// # Errors
    /// Where there is no helper or interpreter, or no tier at or above the configured minimum works.
    pub(crate) fn start(config: &SandboxConfig) -> Result<Self, sandbox::Error> {
        let grader = Grader::start(config.grader.clone())?;
        metrics::sandbox_tier(grader.tier());
        Ok(Self {
            grader: Arc::new(grader),
            limits: Arc::new(config.limits.clone()),
            extract: config.extract,
            turns: Arc::new(Semaphore::new(config.grader.workers)),
            verdicts: (config.cache.entries > 0).then(|| Cache::new(config.cache.entries)),
        })
    }

    /// The tests' results; none where the prompt has no tests.
    pub(crate) async fn grade(&self, input: &ScorerInput) -> Result<Option<Tally>, ScoreError> {
        let Some(problem) = problem(&input.fields)? else { return Ok(None) };
        let response = match self.extract {
            Extract::CodeBlock => input.marked_response(),
            Extract::Whole => Cow::Borrowed(input.response.as_str()),
        };
        let Program { problem, response: program } = self.extract.program(&problem, &response);
        let Some(verdicts) = &self.verdicts else {
            return self.run(problem.into_owned(), program).await.map(|(tally, _)| Some(tally));
        };
        // Siblings often write the same program at the same time: the others wait for the first one's
        // verdict.
        match verdicts.get_value_or_guard_async(&key(&problem, &program)).await {
            Ok(tally) => {
                metrics::verdict_remembered();
                Ok(Some(tally))
            }
            Err(place) => {
                let (tally, verdict) = self.run(problem.into_owned(), program).await?;
                if is_repeatable(verdict) {
                    // Refused only where the cache was cleared meanwhile; the verdict stands either way.
                    let _ = place.insert(tally);
                }
                Ok(Some(tally))
            }
        }
    }

    async fn run(&self, problem: Problem, program: String) -> Result<(Tally, Verdict), ScoreError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|_| ScoreError::error("the sandbox is shutting down"))?;
        let (grader, limits) = (Arc::clone(&self.grader), Arc::clone(&self.limits));
        let graded = tokio::task::spawn_blocking(move || {
            let graded = grader.grade(&problem, &program, &limits);
            drop(turn);
            graded
        });
        let graded =
            graded.await.map_err(|error| ScoreError::error(format!("the grading ended early: {error}")))?;
        tally(graded.map_err(no_grade)?)
    }

    /// The sandbox's own counts, for the metrics.
    pub(crate) fn observe(&self) {
        metrics::sandbox(&self.grader.stats());
    }
}

/// Why there was no grading at all.
fn no_grade(error: sandbox::Error) -> ScoreError {
    let detail = format!("sandbox: {error}");
    match error {
        sandbox::Error::Overloaded { .. } => ScoreError::overload(detail),
        _ => ScoreError::error(detail),
    }
}

fn tally(grade: Grade) -> Result<(Tally, Verdict), ScoreError> {
    metrics::verdict(grade.verdict, grade.wall);
    let Grade { verdict, passed, total, detail, .. } = grade;
    match verdict {
        Verdict::Unsupported => Err(ScoreError::unsupported(format!("unit tests: {detail}"))),
        Verdict::Overloaded => Err(ScoreError::overload(format!("unit tests: {detail}"))),
        Verdict::InternalError => Err(ScoreError::error(format!("sandbox: {detail}"))),
        _ => Ok((Tally { passed, total, accepted: verdict == Verdict::Accepted }, verdict)),
    }
}

/// Whether the same program would get the same verdict again. Limits may have been reached because the
/// machine was busy.
fn is_repeatable(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Accepted | Verdict::WrongAnswer | Verdict::RuntimeError)
}

fn key(problem: &Problem, program: &str) -> Key {
    let mut hasher = blake3::Hasher::new();
    // Every problem was parsed from JSON, so it becomes JSON again.
    let problem = serde_json::to_vec(problem).unwrap_or_default();
    hasher.update(&(problem.len() as u64).to_le_bytes()).update(&problem).update(program.as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn grade(verdict: Verdict, passed: u32, total: u32) -> Grade {
        let (wall, stalled, cpu) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        Grade { verdict, passed, total, detail: "why".into(), wall, stalled, cpu }
    }

    #[test]
    fn a_verdict_that_judges_nothing_is_an_error() {
        for (verdict, reason) in [
            (Verdict::Unsupported, types::FailReason::Unsupported),
            (Verdict::Overloaded, types::FailReason::Overload),
            (Verdict::InternalError, types::FailReason::RewardError),
        ] {
            assert_eq!(tally(grade(verdict, 0, 3)).unwrap_err().reason, reason);
        }
    }

    #[test]
    fn every_other_verdict_is_a_number() {
        for verdict in Verdict::ALL.into_iter().filter(|verdict| verdict.judges_response()) {
            let (tally, _) = tally(grade(verdict, 1, 4)).unwrap();
            assert_eq!(tally.number(Rule::Share), 0.25);
            assert_eq!(tally.number(Rule::All), f64::from(u8::from(verdict == Verdict::Accepted)));
        }
    }

    fn problem(id: &str) -> Problem {
        Problem::Stdio(sandbox::Stdio { task_id: id.into(), ..sandbox::Stdio::default() })
    }

    #[test]
    fn problem_and_program_do_not_run_into_each_other() {
        assert_eq!(key(&problem("a"), "x"), key(&problem("a"), "x"));
        assert_ne!(key(&problem("a"), "x"), key(&problem("a"), "y"));
        assert_ne!(key(&problem("a"), "x"), key(&problem("b"), "x"));
    }
}
