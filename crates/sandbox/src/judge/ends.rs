//! What the end of a guest means for the verdict.

use std::time::Duration;

use super::VERDICT_STREAM;
use crate::limits::Limits;
use crate::syscalls;
use crate::trial::{End, TrialReport};
use crate::verdict::Verdict;
use crate::wire::{DANGEROUS, Event, WANTED_PROCESS, WANTED_SCRATCH};

/// A verdict that does not depend on what the tests say.
pub(super) fn ended_early(
    outcome: &TrialReport,
    response: Option<Event>,
    limits: &Limits,
) -> Option<(Verdict, String)> {
    let dangerous = response.filter(|event| event.flags & DANGEROUS != 0);
    if let Some(event) = dangerous {
        let name = syscalls::name(event.dangerous_syscall);
        return Some((Verdict::DangerousSyscall, format!("killed for calling {name}")));
    }
    let (verdict, detail) = match &outcome.end {
        End::Finished if outcome.host_out_of_memory => {
            (Verdict::Overloaded, "killed by the kernel, which had no memory for it".to_owned())
        }
        End::Finished => return None,
        End::Wall => (Verdict::WallLimit, format!("still running after {:?}", limits.wall)),
        End::Overload => (
            Verdict::Overloaded,
            format!(
                "used {:?} of processor time in {:?} and waited {:?} for more: the machine is overloaded",
                outcome.cpu, outcome.wall, outcome.stalled
            ),
        ),
        End::Cpu => (Verdict::TimeLimit, format!("used more than {:?} of processor time", limits.cpu)),
        End::Memory => {
            (Verdict::MemoryLimit, format!("used more than {} bytes of memory", limits.memory_bytes))
        }
        End::Tasks => {
            (Verdict::RuntimeError, format!("more than {} processes and threads", limits.processes))
        }
        End::Output(VERDICT_STREAM) => {
            (Verdict::InternalError, "the tester's message is too long".to_owned())
        }
        End::Output(index) => {
            let name = if *index == 0 { "stdout" } else { "stderr" };
            (Verdict::OutputLimit, format!("more than {} bytes on {name}", limits.output_bytes))
        }
        End::SetUp(failure) => (Verdict::InternalError, format!("set-up of the sandbox: {failure}")),
        End::Lost(reason) => (Verdict::InternalError, format!("the zygote was lost: {reason}")),
    };
    Some((verdict, detail))
}

/// What killed a response's process that ended before it was told to.
pub(super) fn death(event: Option<Event>, limits: &Limits, detail: &str) -> (Verdict, String) {
    let Some(event) = event else {
        return (Verdict::InternalError, "no word of the response's process".to_owned());
    };
    if libc::WIFEXITED(event.status) {
        return (Verdict::RuntimeError, format!("{detail} (exit code {})", libc::WEXITSTATUS(event.status)));
    }
    let cpu = Duration::from_micros(event.cpu_micros);
    match libc::WTERMSIG(event.status) {
        libc::SIGSYS => {
            (Verdict::DangerousSyscall, "killed for a system call of another architecture".to_owned())
        }
        libc::SIGXFSZ => (Verdict::FileLimit, format!("a file larger than {} bytes", limits.file_bytes)),
        libc::SIGKILL | libc::SIGXCPU if cpu >= limits.cpu => {
            (Verdict::TimeLimit, format!("used more than {:?} of processor time", limits.cpu))
        }
        signal => (Verdict::RuntimeError, format!("{detail} (signal {signal})")),
    }
}

/// A tester that ended without a word: its own limits, or a fault of ours.
pub(super) fn silent_tester(outcome: &TrialReport, limits: &Limits) -> (Verdict, String) {
    let tester = outcome.events.last().copied().flatten();
    let cpu = tester.map_or(Duration::ZERO, |event| Duration::from_micros(event.cpu_micros));
    if cpu >= limits.cpu {
        return (
            Verdict::TimeLimit,
            format!("checking the answers took more than {:?} of processor time", limits.cpu),
        );
    }
    let status = tester.map_or(0, |event| event.status);
    (Verdict::InternalError, format!("the tester ended without a verdict (status {status:#x})"))
}

/// Tests that wanted a facility this tier lacks say nothing when they fail. A response that wanted one is
/// judged all the same: having none is a rule of the tier, as the limits are, and asking for one must not be
/// a way out of judgement.
pub(super) fn without_facility(verdict: Verdict, detail: String, tester: Option<Event>) -> (Verdict, String) {
    let wanted = match verdict {
        Verdict::RuntimeError | Verdict::WrongAnswer => tester.map_or(0, |event| event.flags),
        _ => 0,
    };
    if wanted & WANTED_PROCESS != 0 {
        return (
            Verdict::Unsupported,
            format!("the tests need processes of their own, which this tier has not: {detail}"),
        );
    }
    if wanted & WANTED_SCRATCH != 0 {
        return (
            Verdict::Unsupported,
            format!("the tests need files of their own, which this tier has not: {detail}"),
        );
    }
    (verdict, detail)
}
