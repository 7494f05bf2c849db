//! Problems with hidden tests, and the grading of many responses at a time.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use actor::generate::Response;
use anyhow::Context as _;
use sandbox::{Grade, Grader, GraderConfig, Limits, Problem, Verdict};
use serde_json::{Map, Value};
use service::{BadInput, jsonl};
use types::PromptContent;

use crate::bar::Bar;

/// A problem with its hidden tests and what the policy is given.
#[derive(Debug)]
pub(crate) struct Task {
    /// The prompt, as text or as a chat.
    pub(crate) prompt: PromptContent,
    /// The tests.
    pub(crate) problem: Problem,
}

/// Problems in the shapes of HumanEval and MBPP, or tagged ones, with the prompts that stand beside them: `prompt` or
/// MBPP's `text`, or `messages`.
///
/// # Errors
/// Names the file and line of what is no problem.
pub(crate) fn read_tasks(path: &Path) -> Result<Vec<Task>, BadInput> {
    let wrong = |error: sandbox::ReadError| BadInput(error.to_string());
    let mut tasks = Vec::new();
    for (record, line) in sandbox::read_problems(path).map_err(wrong)?.zip(jsonl::read(path)?) {
        let (problem, line) = (record.map_err(wrong)?.problem, line?);
        let fields: Map<String, Value> = line.parse()?;
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let prompt = match (text("prompt").or(text("text")), fields.get("messages")) {
            (Some(text), _) => PromptContent::Text(text.to_owned()),
            (None, Some(messages)) => PromptContent::Messages(messages.to_string()),
            (None, None) => {
                return Err(line.wrong("has tests, but no prompt, text or messages for the policy"));
            }
        };
        tasks.push(Task { prompt, problem });
    }
    if tasks.is_empty() { Err(BadInput(format!("{} holds no problem", path.display()))) } else { Ok(tasks) }
}

/// Grades pairs of a problem and a response, `workers` at a time, and calls `done` with each as it is graded.
///
/// # Errors
/// When the sandbox cannot be started or refuses to go on. A response that cannot be judged is no error but a verdict.
pub(crate) fn grade_all(
    config: GraderConfig,
    limits: &Limits,
    work: &[(&Problem, &str)],
    done: impl Fn(usize) + Sync,
) -> anyhow::Result<Vec<Grade>> {
    let workers = config.workers.max(1);
    let grader = Grader::start(config).context("start the sandbox")?;
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let grades: Vec<Mutex<Option<Grade>>> = work.iter().map(|_| Mutex::new(None)).collect();
    let failure = Mutex::new(None);
    let worker = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (Some((problem, response)), Some(place)) = (work.get(number), grades.get(number)) else {
                return;
            };
            match grader.grade(problem, response, limits) {
                Ok(grade) => *place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(grade),
                Err(error) => {
                    *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                    next.store(work.len(), Ordering::Relaxed);
                    return;
                }
            }
            done(finished.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(worker))));
    if let Some(error) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error).context("grade a response");
    }
    let grade =
        |place: Mutex<Option<Grade>>| place.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    grades.into_iter().map(|place| grade(place).context("a response was not graded")).collect()
}

/// Grades every response of every task, with a bar; the grades lie as the responses do.
///
/// # Errors
/// As [`grade_all`].
pub(crate) fn grade_groups(
    tasks: &[Task],
    responses: &[Vec<Response>],
    limits: &Limits,
) -> anyhow::Result<Vec<Vec<Grade>>> {
    let mut work: Vec<(&Problem, &str)> = Vec::new();
    for (task, group) in tasks.iter().zip(responses) {
        work.extend(group.iter().map(|response| (&task.problem, response.text.as_str())));
    }
    let (bar, total) = (Bar::new("tests", work.len() as u64), work.len() as u64);
    let graded = grade_all(GraderConfig::default(), limits, &work, |done| bar.at(done as u64, total, ""));
    bar.finish();
    let mut grades = graded?.into_iter();
    Ok(responses.iter().map(|group| grades.by_ref().take(group.len()).collect()).collect())
}

/// Whether a response passed all tests; none where it could not be judged.
pub(crate) fn passed(grade: &Grade) -> Option<bool> {
    grade.verdict.judges_response().then_some(grade.verdict == Verdict::Accepted)
}
