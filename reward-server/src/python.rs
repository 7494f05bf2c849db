//! The user's own reward function in Python, in a pool of worker processes.
//!
//! ```text
//! scoring tasks --call--> batch queue --> worker task --JSON lines--> worker.py --> reward.py
//! ```
//!
//! The function is the user's code and not confined; it has a process of its own, so that it can neither
//! block nor crash the server. A call past its timeout ends with its process group; an exception is a failure
//! of that sample, a crash one of the call's samples, and a new process takes over. None of these is ever a
//! number.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use service::Backoff;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::batch_queue::{BatchReceiver, Call};
use crate::config::Python;
use crate::metrics;
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;

const WORKER: &str = include_str!("python/worker.py");
/// No reply of a worker is longer.
const REPLY_LIMIT_BYTES: u64 = 16 << 20;
/// How long a worker may take to import the user's file, libraries included.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a worker process is of no use any more, and what that means for the samples it had.
struct Broken(ScoreError);

/// Why a worker cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot start {interpreter}: {source}")]
    Interpreter { interpreter: PathBuf, source: std::io::Error },
    #[error("the worker has no pipes")]
    NoPipes,
    #[error("{file} took longer than {START_TIMEOUT:?} to load")]
    TimedOut { file: PathBuf },
    /// The user's file, or the process that loads it.
    #[error("{file}: {problem}")]
    File { file: PathBuf, problem: String },
}

/// One running `worker.py`.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// The process group of the worker and of all that it starts; none once it has been killed.
    group: Option<Pid>,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The user's file defines `reward_batch`.
    batched: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Hello {
    Ready { batched: bool },
    Failed { error: String },
}

#[derive(Deserialize)]
struct WorkerReply {
    results: Vec<OneResult>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneResult {
    Score { score: f64 },
    Error { error: String },
}

impl OneResult {
    fn number(self) -> Result<f64, ScoreError> {
        match self {
            Self::Score { score } => Ok(score),
            Self::Error { error } => Err(ScoreError::error(format!("python: {error}"))),
        }
    }
}

impl Process {
    /// Starts a worker and waits until it has the user's function.
    ///
    /// # Errors
    /// Where the interpreter cannot be started, or the user's file cannot be loaded in time.
    pub(crate) async fn start(config: &Python) -> Result<Self, StartError> {
        let Python { file, interpreter, memory_bytes, .. } = config;
        let child = Command::new(interpreter)
            .arg("-c")
            .arg(WORKER)
            .arg(file)
            .arg(memory_bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child =
            child.map_err(|source| StartError::Interpreter { interpreter: interpreter.clone(), source })?;
        metrics::python_started();
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(StartError::NoPipes);
        };
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let mut process = Self { child, group, requests, answers: BufReader::new(answers), batched: false };
        let hello = tokio::time::timeout(START_TIMEOUT, process.read::<Hello>()).await;
        let hello = hello.map_err(|_| StartError::TimedOut { file: file.clone() })?;
        let problem = match hello {
            Ok(Hello::Ready { batched }) => {
                process.batched = batched;
                return Ok(process);
            }
            Ok(Hello::Failed { error }) => error,
            Err(Broken(error)) => error.to_string(),
        };
        Err(StartError::File { file: file.clone(), problem })
    }

    /// One call of the user's function: a number or an error for each response.
    ///
    /// # Errors
    /// Where the worker died, timed out, or replied something else than results: it is of no use any more.
    async fn score(
        &mut self,
        calls: &[Call],
        timeout: Duration,
    ) -> Result<Vec<Result<f64, ScoreError>>, Broken> {
        let inputs: Vec<&ScorerInput> = calls.iter().map(|call| call.input.as_ref()).collect();
        let request = json!({
            "prompts": inputs.iter().map(|input| input.prompt.as_str()).collect::<Vec<_>>(),
            "responses": inputs.iter().map(|input| input.response.as_str()).collect::<Vec<_>>(),
            "fields": inputs.iter().map(|input| Value::Object(input.fields.clone())).collect::<Vec<_>>(),
        });
        let reply = tokio::time::timeout(timeout, self.exchange(format!("{request}\n"))).await;
        let Ok(reply) = reply else {
            return Err(Broken(ScoreError::timeout(format!("python: no score within {timeout:?}"))));
        };
        let results = reply?.results;
        if results.len() != calls.len() {
            let detail = format!("python: {} results for {} responses", results.len(), calls.len());
            return Err(Broken(ScoreError::error(detail)));
        }
        Ok(results.into_iter().map(OneResult::number).collect())
    }

    async fn exchange(&mut self, request: String) -> Result<WorkerReply, Broken> {
        // A worker that has died shows in the answer that does not come; writing to it may or may not fail.
        let _ = self.requests.write_all(request.as_bytes()).await;
        let _ = self.requests.flush().await;
        self.read().await
    }

    /// The worker's next answer. What the user's code has started may hold the pipe open, so that the
    /// worker's death does not show in it; the process itself is watched too.
    async fn read<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, Broken> {
        let mut line = String::new();
        let mut answers = (&mut self.answers).take(REPLY_LIMIT_BYTES);
        let read = tokio::select! {
            biased;
            read = answers.read_line(&mut line) => read,
            _ = self.child.wait() => Ok(0),
        };
        if let Err(error) = read {
            return Err(Broken(ScoreError::error(format!(
                "python: the worker's answer cannot be read: {error}"
            ))));
        }
        if !line.ends_with('\n') {
            return Err(self.died().await);
        }
        let parsed = serde_json::from_str(&line);
        parsed.map_err(|error| {
            Broken(ScoreError::error(format!("python: the worker's answer is not understood: {error}")))
        })
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
        Broken(ScoreError::error(format!("python: the worker has died ({how})")))
    }

    fn kill_group(&mut self) {
        if let Some(group) = self.group.take() {
            // It may have ended by itself meanwhile.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whatever the user's code has started is in its group and ends with it.
        self.kill_group();
    }
}

/// One worker: takes calls and keeps a process running, at first this one if there is one. Lasts until all
/// callers are gone.
pub(crate) async fn work(config: Python, calls: BatchReceiver, mut process: Option<Process>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        // Before there is a call: it shall not wait for the imports of the user's file.
        let mut running = match process.take() {
            Some(running) => running,
            None => match Process::start(&config).await {
                Ok(running) => running,
                Err(problem) => {
                    tracing::warn!(%problem, "a python worker cannot be started");
                    let taken = calls.take(1).await;
                    if taken.is_empty() {
                        return;
                    }
                    answer_all(taken, &ScoreError::error(format!("python: {problem}")));
                    tokio::time::sleep(backoff.next_pause()).await;
                    continue;
                }
            },
        };
        let most = if running.batched { config.batch } else { 1 };
        let taken = tokio::select! {
            taken = calls.take(most) => taken,
            // Nobody's sample is to blame for a worker that ends by itself.
            _ = running.child.wait() => {
                let Broken(error) = running.died().await;
                tracing::warn!(%error, "an idle python worker is replaced");
                tokio::time::sleep(backoff.next_pause()).await;
                continue;
            }
        };
        if taken.is_empty() {
            return;
        }
        match running.score(&taken, config.timeout).await {
            Ok(numbers) => {
                backoff.reset();
                taken.into_iter().zip(numbers).for_each(|(call, number)| call.answer(number));
                process = Some(running);
            }
            Err(Broken(error)) => {
                tracing::warn!(%error, "a python worker is replaced");
                answer_all(taken, &error);
            }
        }
    }
}

fn answer_all(calls: Vec<Call>, error: &ScoreError) {
    calls.into_iter().for_each(|call| call.answer(Err(error.clone())));
}
