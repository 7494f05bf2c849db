//! A tracker that is a Python package: a child process hands it what it is told.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

/// The program.
const PROGRAM: &str = include_str!("bridge.py");
/// Whether a package can be found, in a folder too that is none of the interpreter's.
const LOOK: &str = "import sys, importlib.util as util; sys.path.append(sys.argv[1]); \
    sys.exit(util.find_spec(sys.argv[2]) is None)";
/// How often an end is looked for.
const END_INTERVAL: Duration = Duration::from_millis(50);

/// How the packages of trackers are found.
#[derive(Debug, Clone)]
pub(super) struct Interpreter {
    pub(super) program: PathBuf,
    /// A folder with packages that the interpreter may lack.
    pub(super) packages: PathBuf,
}

impl Interpreter {
    /// The interpreter as a command.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(PROGRAM).arg(&self.packages);
        command
    }

    /// Why a package cannot be imported, if it cannot.
    pub(super) fn lacks(&self, package: &str) -> Option<String> {
        let mut look = Command::new(&self.program);
        look.arg("-c").arg(LOOK).arg(&self.packages).arg(package);
        let found = look.stderr(Stdio::null()).status();
        match found {
            Ok(status) if status.success() => None,
            Ok(_) => Some(format!("{} has no package {package}", self.program.display())),
            Err(error) => Some(format!("{} cannot be started: {error}", self.program.display())),
        }
    }
}

/// The child process.
#[derive(Debug)]
pub(super) struct Bridge {
    child: Child,
    input: Option<ChildStdin>,
    log: PathBuf,
}

impl Bridge {
    /// Starts it and tells it what run this is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(interpreter: &Interpreter, log: &Path, told: &Value) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("open the log {}", log.display()))?;
        let mut command = interpreter.command();
        // Ctrl-C is for the run, which closes its input.
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let mut child =
            command.spawn().with_context(|| format!("start {}", interpreter.program.display()))?;
        let input = child.stdin.take();
        let mut bridge = Self { child, input, log: log.to_owned() };
        bridge.tell(told)?;
        Ok(bridge)
    }

    /// Hands on a line.
    ///
    /// # Errors
    /// When it has ended; with its last words.
    pub(super) fn tell(&mut self, line: &Value) -> anyhow::Result<()> {
        let told = self.input.as_mut().map(|input| writeln!(input, "{line}"));
        match told {
            Some(Ok(())) => Ok(()),
            _ => anyhow::bail!("it has ended: {}", self.last_words()),
        }
    }

    /// Closes its input and waits for its end.
    ///
    /// # Errors
    /// When it failed, or takes longer than `timeout`; then it is ended.
    pub(super) fn finish(&mut self, timeout: Duration) -> anyhow::Result<()> {
        self.input = None;
        let mut waited = Duration::ZERO;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => anyhow::bail!("it ended with {status}: {}", self.last_words()),
                None if waited >= timeout => {
                    self.child.kill()?;
                    anyhow::bail!("it took longer than {timeout:?} to hand everything on")
                }
                None => {
                    std::thread::sleep(END_INTERVAL);
                    waited += END_INTERVAL;
                }
            }
        }
    }

    /// The last line that it said.
    fn last_words(&self) -> String {
        let said = std::fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing was said");
        format!("{last} ({})", self.log.display())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // What has ended needs no signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
