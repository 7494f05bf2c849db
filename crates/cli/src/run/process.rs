//! One child process of a run: started, watched, told to stop.

use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};

use crate::omp_wait;
use crate::programs::beside_us;

/// Last lines of a log that are shown when its process fails.
const TAIL_LINE_COUNT: usize = 12;

/// How to start a process.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Its name in logs, `actor-0`.
    pub(crate) name: String,
    /// The binary, found beside our own.
    pub(crate) binary: String,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Where its output goes; restarts append.
    pub(crate) log: PathBuf,
}

/// A process by name and id, for people and tests: `actor-0 (4711)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessId {
    name: String,
    id: u32,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id)
    }
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    child: Child,
    /// Held open: when this process dies, however it dies, the child's input closes and it drains.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// When its binary is not there or its log cannot be written.
    pub(crate) fn start(program: &Program) -> anyhow::Result<Self> {
        let binary = beside_us(&program.binary)?;
        let log = OpenOptions::new().create(true).append(true).open(&program.log);
        let log = log.with_context(|| format!("open the log {}", program.log.display()))?;
        let mut child = Command::new(&binary)
            .args(&program.arguments)
            .args(["--set", "service.follow_stdin=true"])
            .envs(omp_wait::variable())
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for us; we tell the children what to do about it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let stdin = child.stdin.take();
        Ok(Self { name: program.name.clone(), log: program.log.clone(), child, _stdin: stdin })
    }

    /// Its name and process id, while it runs.
    pub(crate) fn id(&self) -> Option<ProcessId> {
        Some(ProcessId { name: self.name.clone(), id: self.child.id()? })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end, for at most this long.
    pub(crate) async fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(timeout, self.child.wait()).await.ok()?.ok()
    }

    /// Asks it to drain and leave.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // A process that has just ended needs no signal.
            let _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// The last lines that it logged.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

fn log_tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINE_COUNT)..].join("\n")
}
