//! From a problem and a response to a verdict: what each guest is given, and what comes of its word and its
//! end. Functions are judged here, whole programs in [`program`].

mod ends;
mod program;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::memfd;
use crate::problem::{CallCase, FunctionCalls, HumanEval, Mbpp, Problem};
use crate::trial::{GuestSpec, Trial, TrialReport, raw};
use crate::verdict::{Verdict, printable};
use crate::wire::{Event, Role};
use crate::zygote::Zygote;

use ends::{death, ended_early, silent_tester, without_facility};
pub(crate) use program::program;

/// What one run says about a response.
#[derive(Debug)]
pub(crate) struct GradedRun {
    pub(crate) verdict: Verdict,
    pub(crate) passed: u32,
    pub(crate) total: u32,
    pub(crate) detail: String,
    pub(crate) wall: Duration,
    pub(crate) stalled: Duration,
    pub(crate) cpu: Duration,
    /// How the response's process ended.
    pub(crate) event: Option<Event>,
    /// Whether the zygotes may be used again.
    pub(crate) healthy: bool,
    /// The problem's tests in compiled form, where the tester had to make it.
    pub(crate) compiled_tests: Option<String>,
}

/// What a run needs beside the response, whichever kind of problem it is for.
#[derive(Debug)]
pub(crate) struct RunContext<'a> {
    pub(crate) limits: &'a Limits,
    /// Whether guests get namespaces of their own (tier A).
    pub(crate) nested: bool,
    /// Seeds what the tests draw.
    pub(crate) seed: u64,
    /// Runs before every response.
    pub(crate) prelude: &'a str,
    /// The problem's tests as an earlier tester compiled them.
    pub(crate) compiled_tests: Option<Arc<str>>,
}

impl RunContext<'_> {
    /// A program in its parts, as `candidate.py` reads it: the most bytes of a reply and the lengths of the
    /// parts, then what the configuration and what the problem runs first, what the response continues, and
    /// the response.
    fn program_job(&self, [prelude, prompt, response]: [&str; 3]) -> io::Result<OwnedFd> {
        let lengths = [self.prelude, prelude, prompt].map(|part| part.len().to_string()).join(" ");
        let head = format!("{} {lengths}\n", self.limits.value_bytes);
        memfd::with(&[&head, self.prelude, prelude, prompt, response].map(str::as_bytes))
    }
}

/// The tester's job; `tester.py` reads it.
#[derive(Default, Serialize)]
struct TesterJob<'a> {
    nonce: &'a str,
    compiled_tests: Option<&'a str>,
    kind: &'static str,
    seed: u64,
    value_bytes: u64,
    mutates_arguments: bool,
    entry_point: Option<&'a str>,
    prompt: &'a str,
    test: &'a str,
    prelude: &'a str,
    setup: &'a str,
    asserts: &'a [String],
    cases: &'a [CallCase],
    tolerance: Option<f64>,
    integer_keys: bool,
}

/// A tester's verdict.
#[derive(Deserialize)]
struct Report {
    nonce: String,
    verdict: String,
    passed: u32,
    total: u32,
    detail: String,
}

/// What a tester says before that, where it was given no compiled tests.
#[derive(Deserialize)]
struct CompiledTestsReport {
    nonce: String,
    compiled_tests: String,
}

/// The longest that honest reports of a tester are together; mostly the compiled tests.
const REPORT_BYTES: u64 = 4 << 20;
/// The stream of the tester's reports, after the response's stdout and stderr.
const VERDICT_STREAM: usize = 2;
/// What a tester may use beside the response's limit: it holds the candidate's values and its own.
const TESTER_MEMORY_BYTES: u64 = 512 << 20;

/// Grades the function that a program defines.
///
/// # Errors
/// Where the pipes and memory files of the run cannot be made.
pub(crate) fn function(
    context: &RunContext<'_>,
    problem: &Problem,
    response: &str,
    nonce: &str,
    zygotes: [&mut Zygote; 2],
) -> io::Result<GradedRun> {
    let limits = context.limits;
    let tester_job = serde_json::to_vec(&TesterJob {
        nonce,
        compiled_tests: context.compiled_tests.as_deref(),
        seed: context.seed,
        value_bytes: limits.value_bytes,
        ..tester_job(problem)
    })?;
    let candidate_job = context.program_job([problem.prelude(), problem.prompt(), response])?;
    let tester_job = memfd::with(&[&tester_job])?;
    let (requests_read, requests_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (replies_read, replies_write) = pipe2(OFlag::O_CLOEXEC)?;
    let [candidate, tester] = zygotes;

    let mut trial = Trial::new(limits);
    let stdout = trial.stream(limits.output_bytes)?;
    let stderr = trial.stream(limits.output_bytes)?;
    let verdict = trial.stream(REPORT_BYTES)?;
    // One each, opened anew: its flags could carry marks from one run to the next.
    let (nothing_in, nothing) = (open_null()?, open_null()?);
    let null = raw(&nothing);
    let candidate_fds = [
        raw(&nothing_in),
        raw(&stdout),
        raw(&stderr),
        raw(&candidate_job),
        raw(&requests_read),
        raw(&replies_write),
    ];
    let candidate_spec = GuestSpec {
        role: Role::Candidate,
        nested: context.nested,
        fds: &candidate_fds,
        extra_memory_bytes: 0,
    };
    trial.start(candidate, &candidate_spec);
    let tester_fds =
        [null, null, null, raw(&tester_job), raw(&replies_read), raw(&requests_write), raw(&verdict)];
    let tester_spec = GuestSpec {
        role: Role::Tester,
        nested: false,
        fds: &tester_fds,
        extra_memory_bytes: TESTER_MEMORY_BYTES,
    };
    trial.start(tester, &tester_spec);
    // The guests hold these now; as long as the server does too, neither sees the other's end.
    drop((stdout, stderr, verdict, requests_read, requests_write, replies_read, replies_write));
    let outcome = trial.run();
    Ok(judge_function(&outcome, nonce, limits))
}

fn tester_job(problem: &Problem) -> TesterJob<'_> {
    match problem {
        Problem::HumanEval(HumanEval { prompt, entry_point, test, mutates_arguments, .. }) => TesterJob {
            kind: "check",
            prompt,
            test,
            entry_point: Some(entry_point),
            mutates_arguments: *mutates_arguments,
            ..TesterJob::default()
        },
        Problem::Mbpp(Mbpp {
            test_setup_code, test_list, entry_point, mutates_arguments, prelude, ..
        }) => TesterJob {
            kind: "asserts",
            prelude,
            setup: test_setup_code,
            asserts: test_list,
            entry_point: entry_point.as_deref(),
            mutates_arguments: *mutates_arguments,
            ..TesterJob::default()
        },
        Problem::FunctionCalls(FunctionCalls { entry_point, cases, tolerance, integer_keys, .. }) => {
            TesterJob {
                kind: "cases",
                entry_point: Some(entry_point),
                cases,
                tolerance: *tolerance,
                integer_keys: *integer_keys,
                ..TesterJob::default()
            }
        }
        // Whole programs have no tester; `Grader` sends them to `program`.
        Problem::Stdio(_) => TesterJob::default(),
    }
}

fn judge_function(outcome: &TrialReport, nonce: &str, limits: &Limits) -> GradedRun {
    let candidate = outcome.events.first().copied().flatten();
    let reports = outcome.streams.get(VERDICT_STREAM).map_or(&[][..], Vec::as_slice);
    // A tester says one thing a line; what it said before its verdict it said before it heard anything of the
    // response.
    let mut lines = reports.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).rev();
    let report = lines.next().and_then(|line| serde_json::from_slice::<Report>(line).ok());
    let report = report.filter(|report| report.nonce == nonce);
    let compiled_tests =
        lines.next().and_then(|line| serde_json::from_slice::<CompiledTestsReport>(line).ok());
    let compiled_tests = compiled_tests
        .filter(|compiled_tests| compiled_tests.nonce == nonce)
        .map(|report| report.compiled_tests);
    let (passed, total) = report.as_ref().map_or((0, 1), |report| (report.passed, report.total.max(1)));
    let (verdict, detail) = match (ended_early(outcome, candidate, limits), report) {
        (Some(early), _) => early,
        (None, Some(report)) if report.verdict == "gone" => death(candidate, limits, &report.detail),
        (None, Some(report)) => match Verdict::named(&report.verdict) {
            Some(verdict) => (verdict, report.detail),
            None => (Verdict::InternalError, format!("the tester reported {:?}", report.verdict)),
        },
        (None, None) => silent_tester(outcome, limits),
    };
    let tester = outcome.events.last().copied().flatten();
    let (verdict, detail) = without_facility(verdict, detail, tester);
    let passed = if verdict == Verdict::Accepted { total } else { passed.min(total.saturating_sub(1)) };
    GradedRun {
        verdict,
        passed,
        total,
        detail: printable(&detail),
        wall: outcome.wall,
        stalled: outcome.stalled,
        cpu: outcome.cpu,
        event: candidate,
        healthy: outcome.healthy,
        compiled_tests,
    }
}

impl GradedRun {
    /// A verdict without a run.
    pub(crate) fn nothing(verdict: Verdict, detail: String) -> Self {
        Self {
            verdict,
            passed: 0,
            total: 1,
            detail: printable(&detail),
            wall: Duration::ZERO,
            stalled: Duration::ZERO,
            cpu: Duration::ZERO,
            event: None,
            healthy: true,
            compiled_tests: None,
        }
    }

    /// A run that the server itself could not set up.
    pub(crate) fn without_resources(error: &io::Error) -> Self {
        let detail = format!("the server could not set up a run: {error}");
        Self { healthy: false, ..Self::nothing(Verdict::InternalError, detail) }
    }
}

/// `/dev/null`, for streams that lead nowhere.
fn open_null() -> io::Result<OwnedFd> {
    File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::End;
    use crate::wire::{DANGEROUS, EventKind, WANTED_PROCESS};

    fn outcome(end: End, candidate: Event, report: &str) -> TrialReport {
        TrialReport {
            end,
            events: vec![Some(candidate), Some(Event::new(EventKind::Ended, 1))],
            streams: vec![vec![], vec![], report.as_bytes().to_vec()],
            wall: Duration::from_millis(1),
            stalled: Duration::ZERO,
            cpu: Duration::ZERO,
            healthy: true,
            host_out_of_memory: false,
        }
    }

    fn report(nonce: &str, verdict: &str) -> String {
        format!(r#"{{"nonce":"{nonce}","verdict":"{verdict}","passed":3,"total":3,"detail":"why"}}"#)
    }

    #[test]
    fn a_verdict_needs_the_nonce() {
        let event = Event::new(EventKind::Ended, 1);
        let judge =
            |text: &str| judge_function(&outcome(End::Finished, event, text), "secret", &Limits::default());
        assert_eq!(judge(&report("secret", "accepted")).verdict, Verdict::Accepted);
        assert_eq!(judge(&report("guess", "accepted")).verdict, Verdict::InternalError);
        assert_eq!(judge("").verdict, Verdict::InternalError);
        assert_eq!(judge(&report("secret", "fine")).verdict, Verdict::InternalError);
        let with_tests = |nonce: &str| {
            format!(
                "{{\"nonce\":\"{nonce}\",\"compiled_tests\":\"abc\"}}\n{}\n",
                report("secret", "accepted")
            )
        };
        assert_eq!(judge(&with_tests("secret")).compiled_tests.as_deref(), Some("abc"));
        assert_eq!(judge(&with_tests("guess")).compiled_tests, None);
    }

    #[test]
    fn the_server_overrides_the_tester() {
        let event = Event::new(EventKind::Ended, 1);
        for (end, verdict) in [
            (End::Wall, Verdict::WallLimit),
            (End::Overload, Verdict::Overloaded),
            (End::Cpu, Verdict::TimeLimit),
            (End::Memory, Verdict::MemoryLimit),
            (End::Output(0), Verdict::OutputLimit),
            (End::Output(VERDICT_STREAM), Verdict::InternalError),
            (End::Lost("x".into()), Verdict::InternalError),
        ] {
            let judged =
                judge_function(&outcome(end, event, &report("n", "accepted")), "n", &Limits::default());
            assert_eq!(judged.verdict, verdict);
            assert!(
                judged.passed < judged.total,
                "a response that is not accepted has not passed everything"
            );
        }
    }

    #[test]
    fn a_dangerous_call_outweighs_passed_tests() {
        let mut event = Event::new(EventKind::Ended, 1);
        event.flags = DANGEROUS;
        event.dangerous_syscall = libc::SYS_ptrace as u32;
        let judged =
            judge_function(&outcome(End::Finished, event, &report("n", "accepted")), "n", &Limits::default());
        assert_eq!(
            (judged.verdict, judged.detail.as_str()),
            (Verdict::DangerousSyscall, "killed for calling ptrace")
        );
    }

    #[test]
    fn what_the_host_had_no_memory_for_is_not_judged() {
        let event = Event { status: libc::SIGKILL, ..Event::new(EventKind::Ended, 1) };
        let ended = outcome(End::Finished, event, &report("n", "gone"));
        let judged = |outcome: &TrialReport| judge_function(outcome, "n", &Limits::default()).verdict;
        assert_eq!(judged(&ended), Verdict::RuntimeError, "it killed itself");
        assert_eq!(judged(&TrialReport { host_out_of_memory: true, ..ended }), Verdict::Overloaded);
    }

    #[test]
    fn a_missing_facility_excuses_tests_and_no_response() {
        let mut wanting = Event::new(EventKind::Ended, 1);
        wanting.flags = WANTED_PROCESS;
        let plain = Event::new(EventKind::Ended, 1);
        for (response, tester, expected) in [
            (wanting, plain, Verdict::RuntimeError),
            (plain, wanting, Verdict::Unsupported),
            (plain, plain, Verdict::RuntimeError),
        ] {
            let mut outcome = outcome(End::Finished, response, &report("n", "runtime_error"));
            outcome.events[1] = Some(tester);
            assert_eq!(judge_function(&outcome, "n", &Limits::default()).verdict, expected);
        }
        let mut accepted = outcome(End::Finished, plain, &report("n", "accepted"));
        accepted.events[1] = Some(wanting);
        assert_eq!(judge_function(&accepted, "n", &Limits::default()).verdict, Verdict::Accepted);
    }

    #[test]
    fn deaths_are_told_apart() {
        let limits = Limits::default();
        let mut event = Event::new(EventKind::Ended, 1);
        let mut verdict = |status: i32, cpu: Duration| {
            event.status = status;
            event.cpu_micros = u64::try_from(cpu.as_micros()).unwrap();
            death(Some(event), &limits, "gone").0
        };
        assert_eq!(verdict(0, Duration::ZERO), Verdict::RuntimeError);
        assert_eq!(verdict(libc::SIGSEGV, Duration::ZERO), Verdict::RuntimeError);
        assert_eq!(verdict(libc::SIGSYS, Duration::ZERO), Verdict::DangerousSyscall);
        assert_eq!(verdict(libc::SIGXFSZ, Duration::ZERO), Verdict::FileLimit);
        assert_eq!(verdict(libc::SIGKILL, limits.cpu), Verdict::TimeLimit);
        assert_eq!(verdict(libc::SIGKILL, Duration::ZERO), Verdict::RuntimeError);
        assert_eq!(death(None, &limits, "").0, Verdict::InternalError);
    }
}
