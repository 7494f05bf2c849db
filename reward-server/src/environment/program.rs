//! Environments of the operator's own: the functions of a Python file as tools, or a class with `reset` and
//! `step`, in a pool of worker processes.
//!
//! A worker answers one request after the other. A tool is called at whichever worker is free; an episode of
//! a class stays at the worker that holds its instance, and is lost with it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use types::link::environment::{EnvironmentMessage, Speaker};

use crate::config::ProgramFile;
use crate::worker_process::WorkerProcess;

use super::EnvironmentError;

const WORKER: &str =
    concat!(include_str!("../python/conversation.py"), include_str!("../python/environment.py"));
/// How long a worker may take to import the user's file, libraries included.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What workers run.
#[derive(Debug, Clone)]
pub(super) struct Program {
    file: PathBuf,
    interpreter: PathBuf,
    /// `tools` or `class`.
    kind: &'static str,
    class: String,
    timeout: Duration,
    memory_bytes: u64,
}

/// The workers of a program. A cheap clone.
#[derive(Debug, Clone)]
pub(super) struct ProgramPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: Program,
    workers: Vec<Worker>,
    /// The worker that the next episode or waiting call goes to.
    turn: AtomicUsize,
    /// Names the episodes.
    episodes: AtomicU64,
    /// The schemas of what the policy may call, as a JSON list.
    tools: Option<String>,
}

/// A worker's place: its process comes and goes.
#[derive(Debug)]
struct Worker {
    running: Mutex<Running>,
    /// Episodes that are over, which its process has not been told yet.
    closed: SyncMutex<Vec<u64>>,
}

#[derive(Debug)]
struct Running {
    /// `None` until it is needed again.
    process: Option<WorkerProcess>,
    /// Counts the processes.
    life: u64,
}

/// The instance of an episode.
#[derive(Debug)]
pub(super) struct Instance {
    pool: ProgramPool,
    worker: usize,
    life: u64,
    episode: u64,
}

/// What a step of a class brings.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stepped {
    pub(super) messages: Vec<EnvironmentMessage>,
    pub(super) reward: f64,
    pub(super) done: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply<T> {
    Failed { error: String },
    Done(T),
}

#[derive(Deserialize)]
struct Hello {
    tools: Vec<Value>,
}

#[derive(Deserialize)]
struct Called {
    text: String,
}

#[derive(Deserialize)]
struct Begun {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct StepReply {
    messages: Vec<Message>,
    reward: f64,
    done: bool,
}

#[derive(Deserialize)]
struct Message {
    role: Role,
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Tool,
}

impl From<Message> for EnvironmentMessage {
    fn from(Message { role, content }: Message) -> Self {
        let speaker = match role {
            Role::User => Speaker::User,
            Role::Tool => Speaker::Tool,
        };
        Self { speaker, text: content }
    }
}

impl Program {
    /// The functions of a file.
    pub(super) fn tools(file: &ProgramFile) -> Self {
        Self::new(file, "tools", String::new())
    }

    /// A class of a file.
    pub(super) fn class(file: &ProgramFile, class: Option<&String>) -> Self {
        Self::new(file, "class", class.cloned().unwrap_or_default())
    }

    fn new(file: &ProgramFile, kind: &'static str, class: String) -> Self {
        let ProgramFile { file, interpreter, timeout, memory_bytes, .. } = file.clone();
        Self { file, interpreter, kind, class, timeout, memory_bytes }
    }

    /// Starts a worker and waits until it has the user's file.
    async fn start(&self) -> Result<(WorkerProcess, Hello), String> {
        let mut command = Command::new(&self.interpreter);
        command.arg("-c").arg(WORKER).arg(&self.file).arg(self.memory_bytes.to_string());
        command.args([self.kind, &self.class]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut process = WorkerProcess::spawn(command)
            .map_err(|error| format!("cannot start {}: {error}", self.interpreter.display()))?;
        let file = self.file.display();
        match tokio::time::timeout(START_TIMEOUT, process.read()).await {
            Ok(Ok(Reply::Done(hello))) => Ok((process, hello)),
            Ok(Ok(Reply::Failed { error })) => Err(format!("{file}: {error}")),
            Ok(Err(broken)) => Err(format!("{file}: {broken}")),
            Err(_) => Err(format!("{file} took longer than {START_TIMEOUT:?} to load")),
        }
    }
}

impl ProgramPool {
    /// Starts a worker, so that a file that cannot be loaded is found now; others follow when they are
    /// needed.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub(super) async fn start(program: Program, workers: usize) -> Result<Self, String> {
        let (first, hello) = program.start().await?;
        let tools = (!hello.tools.is_empty()).then(|| Value::from(hello.tools).to_string());
        let mut first = Some(first);
        let workers = (0..workers.max(1)).map(|_| Worker {
            running: Mutex::new(Running { process: first.take(), life: 0 }),
            closed: SyncMutex::default(),
        });
        let (workers, turn, episodes) = (workers.collect(), AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { program, workers, turn, episodes, tools })))
    }

    /// The schemas of what the policy may call.
    pub(super) fn tools(&self) -> Option<String> {
        self.0.tools.clone()
    }

    /// What a call of a tool returns. An exception, and a call that takes too long, is for the policy to
    /// read.
    ///
    /// # Errors
    /// Where no worker can be started.
    pub(super) async fn call(
        &self,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Result<String, EnvironmentError> {
        let free = self.0.workers.iter().find_map(|worker| worker.running.try_lock().ok());
        let mut running = match free {
            Some(running) => running,
            None => self.0.workers[self.next_worker()].running.lock().await,
        };
        self.keep_running(&mut running).await?;
        match self.ask::<Called>(&mut running, json!({ "name": name, "arguments": arguments })).await {
            Ok(Called { text }) => Ok(text),
            Err(problem) => Ok(format!("Error: {problem}")),
        }
    }

    /// Begins an episode of a class with a prompt's fields.
    ///
    /// # Errors
    /// Where the class fails, or its worker.
    pub(super) async fn reset(
        &self,
        fields: &str,
    ) -> Result<(Instance, Vec<EnvironmentMessage>), EnvironmentError> {
        let fields: Value = serde_json::from_str(if fields.is_empty() { "{}" } else { fields })
            .map_err(|error| EnvironmentError::failed(format!("the prompt's fields are no JSON: {error}")))?;
        let (worker, episode) = (self.next_worker(), self.0.episodes.fetch_add(1, Ordering::Relaxed));
        let mut running = self.0.workers[worker].running.lock().await;
        self.keep_running(&mut running).await?;
        let instance = Instance { pool: self.clone(), worker, life: running.life, episode };
        let request = json!({
            "op": "reset", "episode": episode, "fields": fields, "closed": self.closed(worker),
        });
        let begun = self.ask::<Begun>(&mut running, request).await.map_err(EnvironmentError::failed)?;
        drop(running);
        Ok((instance, begun.messages.into_iter().map(EnvironmentMessage::from).collect()))
    }

    fn next_worker(&self) -> usize {
        self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.workers.len()
    }

    /// Episodes that a worker's process is to forget.
    fn closed(&self, worker: usize) -> Vec<u64> {
        let closed = &self.0.workers[worker].closed;
        std::mem::take(&mut *closed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn keep_running(&self, running: &mut MutexGuard<'_, Running>) -> Result<(), EnvironmentError> {
        if running.process.is_none() {
            let (process, _) = self.0.program.start().await.map_err(EnvironmentError::failed)?;
            running.process = Some(process);
        }
        Ok(())
    }

    /// Asks a worker something; why there is no answer. One that is of no use any more is gone then.
    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        running: &mut MutexGuard<'_, Running>,
        request: Value,
    ) -> Result<T, String> {
        let timeout = self.0.program.timeout;
        // Taken out: a caller that gives up in the middle leaves no process whose answer is another's.
        let life = running.life;
        running.life += 1;
        let Some(mut process) = running.process.take() else { return Err("no worker".to_owned()) };
        let problem = match tokio::time::timeout(timeout, process.exchange(request.to_string())).await {
            Ok(Ok(reply)) => {
                (running.process, running.life) = (Some(process), life);
                match reply {
                    Reply::Done(answer) => return Ok(answer),
                    Reply::Failed { error } => error,
                }
            }
            Ok(Err(broken)) => broken.to_string(),
            Err(_) => format!("no answer within {timeout:?}"),
        };
        Err(problem)
    }
}

impl Instance {
    /// Tells the class a turn.
    ///
    /// # Errors
    /// Where the class fails, or its worker has been replaced.
    pub(super) async fn step(&self, text: &str) -> Result<Stepped, EnvironmentError> {
        let mut running = self.pool.0.workers[self.worker].running.lock().await;
        if running.life != self.life || running.process.is_none() {
            return Err(EnvironmentError::failed("its worker process has died or was too slow for another"));
        }
        let closed = self.pool.closed(self.worker);
        let request = json!({ "op": "step", "episode": self.episode, "text": text, "closed": closed });
        let stepped = self.pool.ask::<StepReply>(&mut running, request).await;
        let StepReply { messages, reward, done } = stepped.map_err(EnvironmentError::failed)?;
        Ok(Stepped { messages: messages.into_iter().map(EnvironmentMessage::from).collect(), reward, done })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let closed = &self.pool.0.workers[self.worker].closed;
        closed.lock().unwrap_or_else(PoisonError::into_inner).push(self.episode);
    }
}
