//! Problems with hidden tests, and the grading of many responses at a time.

mod setup;
mod totals;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use anyhow::Context as _;
use engine::generate::Response;
use extraction::{Extract, Program, marked};
use sandbox::{Grade, Grader, Limits, NoProblem, Problem, Verdict};
use serde_json::{Map, Value};
use service::BadInput;
use service::jsonl::{self, Line, WrongLines};
use types::PromptContent;

use crate::bar::Bar;

pub(crate) use setup::GradingSetup;
pub(crate) use totals::Totals;

/// A problem with its hidden tests and what the policy is given.
#[derive(Debug)]
pub(crate) struct Task {
    /// The prompt, as text or as a chat.
    pub(crate) prompt: PromptContent,
    /// The tests.
    pub(crate) problem: Problem,
    /// Its whole line: what the environment of an episode is told.
    pub(crate) fields: Arc<str>,
}

/// A problem of a file, with the line that it stands in.
pub(crate) struct ProblemLine {
    pub(crate) line: Line,
    pub(crate) problem: Problem,
}

/// The problems of a file, in the shapes of HumanEval and MBPP or tagged, each under a name of its own.
///
/// # Errors
/// Names the file and line of what is no problem, unless such lines are passed over.
pub(crate) fn read_problems(path: &Path, wrong: &WrongLines) -> Result<Vec<ProblemLine>, BadInput> {
    let (mut problems, mut lines) = (Vec::new(), BTreeMap::new());
    for line in jsonl::read(path)? {
        let read = line.and_then(|line| {
            let record = sandbox::read_problem(line.text());
            let problem = record.map_err(|error| line.wrong(&no_problem(&error)))?.problem;
            let first = *lines.entry(problem.task_id().to_owned()).or_insert(line.number());
            if first == line.number() {
                return Ok(ProblemLine { line, problem });
            }
            Err(line.wrong(&format!("task_id {:?} stands in line {first} already", problem.task_id())))
        });
        if let Some(problem) = wrong.sift(read) {
            problems.push(problem?);
        }
    }
    Ok(problems)
}

/// Why a line is no problem, and what can be done with such lines.
fn no_problem(error: &NoProblem) -> String {
    match error {
        NoProblem::Shape => format!("{error}; sluice eval judges other data with --scorer"),
        NoProblem::Fields(_) | NoProblem::Refused(..) => error.to_string(),
    }
}

/// Problems with the prompts that stand beside them: `prompt`, MBPP's `text` or LeetCodeDataset's `query`, or
/// `messages`.
///
/// # Errors
/// Names the file and line of what is no problem, unless such lines are passed over.
pub(crate) fn read_tasks(path: &Path, wrong: &WrongLines) -> Result<Vec<Task>, BadInput> {
    let mut tasks = Vec::new();
    for ProblemLine { line, problem } in read_problems(path, wrong)? {
        let prompt = line.parse().and_then(|fields| {
            prompt(&fields)
                .ok_or_else(|| line.wrong("has tests, but no prompt, text or messages for the policy"))
        });
        if let Some(prompt) = wrong.sift(prompt) {
            let fields = line.text().into();
            tasks.push(Task { prompt: prompt?, problem, fields });
        }
    }
    if tasks.is_empty() { Err(BadInput(format!("{} holds no problem", path.display()))) } else { Ok(tasks) }
}

fn prompt(fields: &Map<String, Value>) -> Option<PromptContent> {
    // Of LeetCodeDataset `prompt` is what runs before the program; the policy is given `query`.
    let text = ["query", "prompt", "text"].into_iter().find_map(|key| fields.get(key)?.as_str());
    match (text, fields.get("messages")) {
        (Some(text), _) => Some(PromptContent::Text(text.to_owned())),
        (None, Some(messages)) => Some(PromptContent::Messages(messages.to_string())),
        (None, None) => None,
    }
}

/// How far grading may be ahead of the slowest response that is not graded yet, for each worker.
const AHEAD_CAPACITY: usize = 64;

/// Something to grade.
pub(crate) trait Gradable {
    /// The problem, and the response to it.
    fn pair(&self) -> (&Problem, &str);
}

impl Gradable for Program<'_> {
    fn pair(&self) -> (&Problem, &str) {
        (&self.problem, &self.response)
    }
}

/// Grades work as it comes, as many at a time as the sandbox has workers, and calls `graded` in the order in
/// which it came. Holds a bounded part of it in memory. Work that is an error ends it, once all before it is
/// graded. Returns how often the machine was overloaded and a program tried again.
///
/// # Errors
/// Those of the work and of `graded`; when the sandbox cannot be started or refuses to go on. A response that
/// cannot be judged is no error but a verdict.
pub(crate) fn grade_in_order<W: Gradable + Send>(
    setup: &GradingSetup,
    work: impl Iterator<Item = anyhow::Result<W>>,
    mut graded: impl FnMut(W, Grade) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let limits = &setup.limits;
    let workers = setup.grader.workers.max(1);
    let grader = Grader::start(setup.grader.clone()).context("start the sandbox")?;
    let (queue, inbox) = mpsc::channel::<Numbered<W>>();
    let inbox = Mutex::new(inbox);
    let (results, graded_work) = mpsc::channel();
    let outcome: anyhow::Result<()> = std::thread::scope(|scope| {
        // Gone with this closure, whatever its end: then the workers end too, with what they have in hand.
        let (queue, graded_work) = (queue, graded_work);
        for _ in 0..workers {
            let results = results.clone();
            scope.spawn(|| grade_from(&inbox, &grader, limits, results));
        }
        drop(results);
        let (mut work, mut end) = (work, None);
        let (mut given, mut handed_on) = (0, 0);
        let mut early = BTreeMap::new();
        loop {
            while end.is_none() && given - handed_on < AHEAD_CAPACITY * workers {
                match work.next() {
                    // The inbox lives longer than this closure.
                    Some(Ok(work)) => drop(queue.send(Numbered { number: given, work })),
                    Some(Err(error)) => end = Some(Err(error)),
                    None => end = Some(Ok(())),
                }
                given += usize::from(end.is_none());
            }
            if given == handed_on {
                return end.unwrap_or(Ok(()));
            }
            let (Numbered { number, work }, grade) = graded_work.recv().context("the workers have ended")?;
            let grade = grade.unwrap_or_else(|panic| resume_unwind(panic));
            early.insert(number, (work, grade.context("grade a response")?));
            while let Some((work, grade)) = early.remove(&handed_on) {
                handed_on += 1;
                graded(work, grade)?;
            }
        }
    });
    outcome.map(|()| grader.stats().overload_retries)
}

/// Work and its place in the order in which it came.
struct Numbered<W> {
    number: usize,
    work: W,
}

/// What a worker yields: the work and its grade, or the panic that it ended in.
type Graded<W> = (Numbered<W>, std::thread::Result<Result<Grade, sandbox::Error>>);

/// A worker: grades what comes until nothing does, or nobody wants the grades.
fn grade_from<W: Gradable>(
    inbox: &Mutex<mpsc::Receiver<Numbered<W>>>,
    grader: &Grader,
    limits: &Limits,
    results: mpsc::Sender<Graded<W>>,
) {
    loop {
        let received = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(numbered) = received else { return };
        // A panic is the caller's to see, who would wait for this grade else.
        let grade = catch_unwind(AssertUnwindSafe(|| {
            let (problem, response) = numbered.work.pair();
            grader.grade(problem, response, limits)
        }));
        if results.send((numbered, grade)).is_err() {
            return;
        }
    }
}

/// The grades of every response of every task, which lie as the responses do.
#[derive(Debug)]
pub(crate) struct GradedGroups {
    pub(crate) grades: Vec<Vec<Grade>>,
    /// How often the machine was overloaded and a program tried again.
    pub(crate) overload_retries: u64,
}

/// What of a response its program is looked for in: as in the ring, thoughts that the prompt began end with
/// their mark.
fn answer<'a>(setup: &GradingSetup, response: &'a Response) -> Cow<'a, str> {
    match setup.extract {
        Extract::CodeBlock => marked(&response.prompt_end, &response.text),
        Extract::Whole => Cow::Borrowed(&response.text),
    }
}

/// Grades every response of every task, with a bar.
///
/// # Errors
/// As [`grade_in_order`].
pub(crate) fn grade_groups(
    setup: &GradingSetup,
    tasks: &[Task],
    responses: &[Vec<Response>],
) -> anyhow::Result<GradedGroups> {
    let mut work: Vec<Program<'_>> = Vec::new();
    for (task, group) in tasks.iter().zip(responses) {
        work.extend(
            group.iter().map(|response| setup.extract.program(&task.problem, &answer(setup, response))),
        );
    }
    let total = work.len() as u64;
    let bar = Bar::new("tests", total);
    let mut grades = Vec::with_capacity(work.len());
    let graded = grade_in_order(setup, work.into_iter().map(Ok), |_, grade| {
        grades.push(grade);
        bar.at(grades.len() as u64, total, "");
        Ok(())
    });
    bar.finish();
    let overload_retries = graded?;
    let mut grades = grades.into_iter();
    let grades = responses.iter().map(|group| grades.by_ref().take(group.len()).collect()).collect();
    Ok(GradedGroups { grades, overload_retries })
}

/// Whether a response passed all tests; none where it could not be judged.
pub(crate) fn passed(grade: &Grade) -> Option<bool> {
    grade.verdict.judges_response().then_some(grade.verdict == Verdict::Accepted)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// One of many responses to grade; the graders count themselves.
    struct Counted<'a> {
        problem: &'a Problem,
        begun: &'a AtomicUsize,
    }

    impl Gradable for Counted<'_> {
        fn pair(&self) -> (&Problem, &str) {
            assert!(self.begun.fetch_add(1, Ordering::Relaxed) != 20, "the twenty-first");
            (self.problem, "    return a + b\n")
        }
    }

    /// How many of 1000 responses are graded until `graded` has had enough.
    fn grade_many(mut graded: impl FnMut(usize) -> anyhow::Result<()>) -> (anyhow::Result<u64>, usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("problems.jsonl");
        let problem = serde_json::json!({
            "task_id": "Test/0", "prompt": "def add(a, b):\n", "entry_point": "add",
            "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
        });
        std::fs::write(&path, problem.to_string()).unwrap();
        let problem = read_problems(&path, &WrongLines::default()).unwrap().remove(0).problem;
        let begun = AtomicUsize::new(0);
        let work = (0..1000).map(|_| Ok(Counted { problem: &problem, begun: &begun }));
        let mut setup = GradingSetup::of(&reward_server::config::SandboxConfig::default());
        setup.grader.workers = 2;
        let mut count = 0;
        let outcome = grade_in_order(&setup, work, |_, _| {
            count += 1;
            graded(count)
        });
        (outcome, begun.into_inner())
    }

    #[test]
    fn thoughts_that_the_prompt_began_are_no_answer() {
        let setup = GradingSetup::of(&reward_server::config::SandboxConfig::default());
        let response = |prompt_end: &str, text: &str| Response {
            prompt_tokens: [1].into(),
            tokens: vec![2],
            text: text.to_owned(),
            prompt_end: prompt_end.to_owned(),
            logprobs: vec![-1.0],
            finish_reason: types::FinishReason::Stop,
            played: None,
        };
        let problem = r#"{"kind": "mbpp", "task_id": "1", "test_list": ["assert add(1, 2) == 3"]}"#;
        let problem: Problem = serde_json::from_str(problem).unwrap();
        let draft = "```python\ndef add(a, b):\n    return 0\n```\n";
        let right = "```python\ndef add(a, b):\n    return a + b\n```\n";
        let program = |prompt_end: &str, text: &str| {
            let response = response(prompt_end, text);
            setup.extract.program(&problem, &answer(&setup, &response)).response
        };
        let thinks = "<|assistant|><think>\n";
        assert_eq!(
            program(thinks, &format!("{draft}</think>\n{right}")),
            "def add(a, b):\n    return a + b\n"
        );
        assert_eq!(program(thinks, right), "", "it never came to an answer");
        assert_eq!(program("<|assistant|>", right), "def add(a, b):\n    return a + b\n");
    }

    #[test]
    fn grading_ends_at_once_when_its_grades_are_not_wanted() {
        let (outcome, begun) =
            grade_many(|count| if count < 3 { Ok(()) } else { anyhow::bail!("disk full") });
        assert_eq!(outcome.unwrap_err().to_string(), "disk full");
        // No more than had been given out: the third was handed on when the fourth was next.
        assert!(begun <= 3 + 2 * AHEAD_CAPACITY, "{begun} were begun");
    }

    #[test]
    #[should_panic(expected = "the twenty-first")]
    fn a_panic_of_a_worker_is_seen_and_waited_for_by_nobody() {
        let _ = grade_many(|_| Ok(()));
    }
}
