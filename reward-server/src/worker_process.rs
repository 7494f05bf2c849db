//! A Python process of the operator's code that answers requests, a JSON object a line each.
//!
//! The code is not confined; it has a process group of its own, which ends with it, so that it can neither
//! block nor crash the server.

use std::io;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::metrics;

/// No reply of a worker is longer.
const REPLY_LIMIT_BYTES: u64 = 16 << 20;

/// Why a worker is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Broken(String);

/// A running worker.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    child: Child,
    /// The process group of the worker and of all that it starts; none once it has been killed.
    group: Option<Pid>,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl WorkerProcess {
    /// Starts a process whose standard input and output are piped, in a group of its own.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn spawn(mut command: Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        metrics::python_started();
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the worker has no pipes"));
        };
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group, requests, answers: BufReader::new(answers) })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// Where the worker died, or answered something else.
    pub(crate) async fn exchange<T>(&mut self, request: String) -> Result<T, Broken>
    where
        T: for<'de> Deserialize<'de>,
    {
        // A worker that has died shows in the answer that does not come; writing to it may or may not fail.
        let _ = self.requests.write_all(format!("{request}\n").as_bytes()).await;
        let _ = self.requests.flush().await;
        self.read().await
    }

    /// The worker's next answer. What the user's code has started may hold the pipe open, so that the
    /// worker's death does not show in it; the process itself is watched too.
    ///
    /// # Errors
    /// Where the worker died, or answered something else.
    pub(crate) async fn read<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, Broken> {
        let mut line = String::new();
        let mut answers = (&mut self.answers).take(REPLY_LIMIT_BYTES);
        let read = tokio::select! {
            biased;
            read = answers.read_line(&mut line) => read,
            _ = self.child.wait() => Ok(0),
        };
        if let Err(error) = read {
            return Err(Broken(format!("python: the worker's answer cannot be read: {error}")));
        }
        if !line.ends_with('\n') {
            return Err(self.died().await);
        }
        let parsed = serde_json::from_str(&line);
        parsed.map_err(|error| Broken(format!("python: the worker's answer is not understood: {error}")))
    }

    /// Waits until it ends by itself: how it did.
    pub(crate) async fn ends(&mut self) -> Broken {
        let _ = self.child.wait().await;
        self.died().await
    }

    /// The worker has ended, or has stopped to speak: its whole group ends.
    async fn died(&mut self) -> Broken {
        let ended = self.child.try_wait().ok().flatten();
        self.kill_group();
        let status = match ended {
            Some(status) => Ok(status),
            None => self.child.wait().await,
        };
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        Broken(format!("python: the worker has died ({how})"))
    }

    fn kill_group(&mut self) {
        if let Some(group) = self.group.take() {
            // It may have ended by itself meanwhile.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // Whatever the user's code has started is in its group and ends with it.
        self.kill_group();
    }
}
