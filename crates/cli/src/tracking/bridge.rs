//! A tracker that is a Python package: a child process hands it what it is told.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

/// The program.
const PROGRAM: &str = include_str!("bridge.py");
/// Whether a package can be found, in a folder too that is none of the interpreter's.
const LOOK: &str = "import sys, importlib.util as util; sys.path.append(sys.argv[1]); \
    sys.exit(util.find_spec(sys.argv[2]) is None)";
/// How long it may leave the pipe full: a tracker that hangs is given up, and the others go on.
const TAKE_TIMEOUT: Duration = Duration::from_secs(60);
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
        if let Some(input) = &input {
            fcntl(input, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let mut bridge = Self { child, input, log: log.to_owned() };
        bridge.tell(told)?;
        Ok(bridge)
    }

    /// Hands on a line.
    ///
    /// # Errors
    /// When it has ended, or takes nothing for a while; with its last words.
    pub(super) fn tell(&mut self, line: &Value) -> anyhow::Result<()> {
        self.tell_within(line, TAKE_TIMEOUT)
    }

    fn tell_within(&mut self, line: &Value, timeout: Duration) -> anyhow::Result<()> {
        let line = format!("{line}\n");
        let mut left = line.as_bytes();
        while !left.is_empty() {
            let Some(input) = &mut self.input else { anyhow::bail!("its input is closed") };
            match input.write(left) {
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let wait = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
                    let mut room = [PollFd::new(input.as_fd(), PollFlags::POLLOUT)];
                    if matches!(poll(&mut room, wait), Ok(0)) {
                        anyhow::bail!("it has taken nothing for {timeout:?}: {}", self.last_words());
                    }
                }
                Err(_) => anyhow::bail!("it has ended: {}", self.last_words()),
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracker_that_hangs_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        fcntl(input.as_ref().unwrap(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut bridge = Bridge { child, input, log };
        let (line, timeout) = (Value::from("x".repeat(1000)), Duration::from_millis(100));
        let error = (0..1000).find_map(|_| bridge.tell_within(&line, timeout).err()).unwrap();
        assert!(error.to_string().contains("taken nothing for 100ms"), "{error}");
    }

    #[test]
    fn what_a_tracker_needs_comes_from_the_folder_that_it_lies_in() {
        let folder = tempfile::tempdir().unwrap();
        let interpreter = Interpreter { program: "python3".into(), packages: folder.path().join("packages") };
        if interpreter.lacks("trackio").is_none() {
            // It is this interpreter's own here, and the folder is not asked.
            return;
        }
        std::fs::create_dir(&interpreter.packages).unwrap();
        let write = |name: &str, text: &str| std::fs::write(interpreter.packages.join(name), text).unwrap();
        // The interpreter has a module of this name, as it may have an older release of what a tracker needs.
        write("colorsys.py", "OURS = True\n");
        write(
            "trackio.py",
            "import colorsys\nassert colorsys.OURS\nclass Run:\n    def log(self, values, step): print('logged', step)\n    \
             def finish(self): print('finished')\ndef init(**told): return Run()\n",
        );
        let log = folder.path().join("log");
        let told = serde_json::json!({
            "tracker": "trackio", "project": "p", "name": "n", "id": "i", "offline": true, "config": {},
            "folder": folder.path().join("tracking"),
        });
        let mut bridge = Bridge::start(&interpreter, &log, &told).unwrap();
        bridge.tell(&serde_json::json!({"step": 7, "time": 1, "values": {"score_mean": 0.5}})).unwrap();
        bridge.finish(Duration::from_secs(60)).unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "logged 7\nfinished\n");
    }
}
