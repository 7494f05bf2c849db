//! The user's own reward function in Python, or our comparison of mathematics, in a pool of worker processes.
//!
//! ```text
//! scoring tasks --call--> batch queue --> worker task --JSON lines--> worker.py --> reward.py
//! ```
//!
//! The function is the user's code and not confined; it has a process of its own, so that it can neither
//! block nor crash the server. A call past its timeout ends with its process group; an exception is a failure
//! of that sample, a crash one of the call's samples, and a new process takes over. None of these is ever a
//! number.

use std::borrow::Cow;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use service::Backoff;
use tokio::process::Command;

use crate::batch_queue::{BatchReceiver, Call};
use crate::config::{MathMatch, Python};
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;
use crate::worker_process::WorkerProcess;

mod trial;

pub use trial::try_reward;

const WORKER: &str = concat!(include_str!("python/conversation.py"), include_str!("python/worker.py"));
const MATH: &str = include_str!("python/math.py");
/// How long a worker may take to import the user's file, libraries included.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What workers run.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    /// The file that defines it.
    file: PathBuf,
    /// Its content where it is no file of the user's.
    source: Option<&'static str>,
    name: Option<String>,
    /// The only field that it is given, as `label`; all fields where not given.
    label: Option<String>,
    interpreter: PathBuf,
    /// A folder with packages that the interpreter may lack.
    packages: Option<PathBuf>,
    /// Most responses in a call.
    batch: usize,
    timeout: Duration,
    memory_bytes: u64,
}

impl Function {
    /// The user's.
    pub(crate) fn of_user(config: &Python) -> Self {
        Self {
            file: config.file.clone(),
            source: None,
            name: config.function.clone(),
            label: None,
            interpreter: config.interpreter.clone(),
            packages: None,
            batch: config.batch,
            timeout: config.timeout,
            memory_bytes: config.memory_bytes,
        }
    }

    /// The comparison of expressions.
    pub(crate) fn of_math(config: &MathMatch) -> Self {
        Self {
            file: PathBuf::from("math"),
            source: Some(MATH),
            name: None,
            label: Some(config.field.clone()),
            interpreter: config.interpreter.clone(),
            packages: Some(config.packages.clone()),
            batch: 1,
            timeout: config.timeout,
            memory_bytes: config.memory_bytes,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.interpreter);
        command.arg("-c").arg(WORKER).arg(&self.file).arg(self.memory_bytes.to_string());
        command.arg(self.name.as_deref().unwrap_or_default()).args(self.source);
        if let Some(packages) = &self.packages {
            let given = std::env::var_os("PYTHONPATH").unwrap_or_default();
            let paths = [packages.clone()].into_iter().chain(std::env::split_paths(&given));
            // A path with a colon in it cannot be said, and is not found then.
            command.envs(std::env::join_paths(paths).ok().map(|paths| ("PYTHONPATH", paths)));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
        command
    }

    /// The response as the function sees it: the user's has it as it is.
    fn response<'a>(&self, input: &'a ScorerInput) -> Cow<'a, str> {
        if self.source.is_some() { input.marked_response() } else { Cow::Borrowed(&input.response) }
    }

    /// What the function is told of a prompt.
    fn fields(&self, input: &ScorerInput) -> Value {
        match &self.label {
            Some(label) => json!({ "label": input.fields.get(label) }),
            None => Value::Object(input.fields.clone()),
        }
    }
}

/// Why a worker cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot start {interpreter}: {source}")]
    Interpreter { interpreter: PathBuf, source: std::io::Error },
    #[error("{file} took longer than {START_TIMEOUT:?} to load")]
    TimedOut { file: PathBuf },
    /// The user's file, or the process that loads it.
    #[error("{file}: {problem}")]
    File { file: PathBuf, problem: String },
}

/// One running `worker.py`.
#[derive(Debug)]
pub(crate) struct Process {
    worker: WorkerProcess,
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
    Score {
        score: f64,
    },
    Error {
        error: String,
        /// It cannot be judged, whatever the response.
        #[serde(default)]
        unsupported: bool,
    },
}

impl OneResult {
    fn number(self) -> Result<f64, ScoreError> {
        match self {
            Self::Score { score } => Ok(score),
            Self::Error { error, unsupported: true } => {
                Err(ScoreError::unsupported(format!("python: {error}")))
            }
            Self::Error { error, unsupported: false } => Err(ScoreError::error(format!("python: {error}"))),
        }
    }
}

impl Process {
    /// Starts a worker and waits until it has the user's function.
    ///
    /// # Errors
    /// Where the interpreter cannot be started, or the user's file cannot be loaded in time.
    pub(crate) async fn start(function: &Function) -> Result<Self, StartError> {
        let Function { file, interpreter, .. } = function;
        let worker = WorkerProcess::spawn(function.command());
        let mut worker =
            worker.map_err(|source| StartError::Interpreter { interpreter: interpreter.clone(), source })?;
        let hello = tokio::time::timeout(START_TIMEOUT, worker.read::<Hello>()).await;
        let hello = hello.map_err(|_| StartError::TimedOut { file: file.clone() })?;
        let problem = match hello {
            Ok(Hello::Ready { batched }) => return Ok(Self { worker, batched }),
            Ok(Hello::Failed { error }) => error,
            Err(broken) => broken.to_string(),
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
        function: &Function,
    ) -> Result<Vec<Result<f64, ScoreError>>, ScoreError> {
        let inputs: Vec<&ScorerInput> = calls.iter().map(|call| call.input.as_ref()).collect();
        let request = json!({
            "prompts": inputs.iter().map(|input| input.prompt.as_str()).collect::<Vec<_>>(),
            "responses": inputs.iter().map(|input| function.response(input)).collect::<Vec<_>>(),
            "fields": inputs.iter().map(|input| function.fields(input)).collect::<Vec<_>>(),
        });
        self.ask(&request, calls.len(), function.timeout).await
    }

    /// The same for a request of so many responses as the worker reads it.
    async fn ask(
        &mut self,
        request: &Value,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<f64, ScoreError>>, ScoreError> {
        let exchanged = self.worker.exchange::<WorkerReply>(request.to_string());
        let Ok(reply) = tokio::time::timeout(timeout, exchanged).await else {
            return Err(ScoreError::timeout(format!("python: no score within {timeout:?}")));
        };
        let results = reply.map_err(|broken| ScoreError::error(broken.to_string()))?.results;
        if results.len() != count {
            let detail = format!("python: {} results for {count} responses", results.len());
            return Err(ScoreError::error(detail));
        }
        Ok(results.into_iter().map(OneResult::number).collect())
    }
}

/// One worker: takes calls and keeps a process running, at first this one if there is one. Lasts until all
/// callers are gone.
pub(crate) async fn work(function: Function, calls: BatchReceiver, mut process: Option<Process>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        // Before there is a call: it shall not wait for the imports of the user's file.
        let mut running = match process.take() {
            Some(running) => running,
            None => match Process::start(&function).await {
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
        let most = if running.batched { function.batch } else { 1 };
        let taken = tokio::select! {
            taken = calls.take(most) => taken,
            // Nobody's sample is to blame for a worker that ends by itself.
            error = running.worker.ends() => {
                tracing::warn!(%error, "an idle python worker is replaced");
                tokio::time::sleep(backoff.next_pause()).await;
                continue;
            }
        };
        if taken.is_empty() {
            return;
        }
        match running.score(&taken, &function).await {
            Ok(numbers) => {
                backoff.reset();
                taken.into_iter().zip(numbers).for_each(|(call, number)| call.answer(number));
                process = Some(running);
            }
            Err(error) => {
                tracing::warn!(%error, "a python worker is replaced");
                answer_all(taken, &error);
            }
        }
    }
}

fn answer_all(calls: Vec<Call>, error: &ScoreError) {
    calls.into_iter().for_each(|call| call.answer(Err(error.clone())));
}
