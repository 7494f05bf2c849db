//! An engine on an OS thread of its own, reached from async code (docs/decisions.md, D8).
//!
//! ```text
//!  EngineHandle, EngineClient --commands (bounded)--> thread: commands, then a step, then events
//!        ^    one-shot replies <----------------------+  |
//!        +---- one queue of events a client <------------+
//! ```
//!
//! The thread sleeps in the command queue while the engine is idle. It never waits for a reader: a request is
//! refused when its events might not find room in its client's queue. A client that is dropped takes its
//! responses with it; the thread ends when all handles and clients are gone, or when the engine fails, which
//! everybody who waits is told.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use types::PolicyVersion;

use super::worker::{self, Command, Worker};
use super::{EngineParts, Error, Event, Load, PolicyWeights, Refusal, Request, Totals};

/// Commands that may wait for the step under way.
const COMMAND_CAPACITY: usize = 64;
/// Events that may wait for one client. The queue's memory grows with what waits, not with this.
const EVENT_CAPACITY: usize = 1 << 20;
/// Longest wait for an answer: many times the longest step.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// The way to an engine that runs on its own thread. Clones reach the same engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    /// Why the thread ended, once it has.
    ending: Arc<OnceLock<String>>,
    /// What was done by the end of the last step.
    totals: watch::Receiver<Totals>,
    context_tokens: usize,
    /// For a person.
    summary: Arc<str>,
}

/// Somebody who submits requests and reads what comes of them. Ids are its own: other clients may use the
/// same.
#[derive(Debug)]
pub struct EngineClient {
    handle: EngineHandle,
    client: u64,
    events: mpsc::Receiver<Event>,
}

impl EngineHandle {
    /// Makes an engine on a new thread.
    ///
    /// # Errors
    /// Those of [`super::Engine::new`], and when the system has no thread left.
    pub async fn start(parts: EngineParts) -> Result<Self, Error> {
        let (commands, inbox) = mpsc::channel(COMMAND_CAPACITY);
        let (ready, started) = oneshot::channel();
        let ending = Arc::new(OnceLock::new());
        let thread_ending = Arc::clone(&ending);
        let body = move || {
            let made = worker::guard(|| Worker::new(parts));
            let worker = match made {
                Ok(worker) => worker,
                Err(error) => {
                    // Nobody waiting means that the caller gave up.
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok((worker.context_tokens(), worker.summary().into(), worker.watch())));
            if let Err(error) = worker.run(inbox) {
                tracing::error!(error = format!("{error:#}"), "the engine stopped");
                let _ = thread_ending.set(error.to_string());
            }
        };
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(body)
            .map_err(Error::system("a thread for the engine"))?;
        let (context_tokens, summary, totals) =
            started.await.map_err(|_| Error::Stopped("it did not start".to_owned()))??;
        Ok(Self { commands, ending, totals, context_tokens, summary })
    }

    /// A new client.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn client(&self) -> Result<EngineClient, Error> {
        let (sender, events) = mpsc::channel(EVENT_CAPACITY);
        let client = self.ask(|reply| Command::Open { events: sender, reply }).await?;
        Ok(EngineClient { handle: self.clone(), client, events })
    }

    /// Exchanges the policy between two steps; see [`super::Engine::swap_weights`].
    ///
    /// # Errors
    /// When the weights do not follow those in use, or the engine has stopped.
    pub async fn swap_weights(&self, weights: PolicyWeights) -> Result<(), Error> {
        let weights = Box::new(weights);
        let old = self.ask(|reply| Command::Swap { weights, reply }).await??;
        // Giving back gigabytes takes a while, which neither the engine nor this task should spend.
        drop(tokio::task::spawn_blocking(move || drop(old)));
        Ok(())
    }

    /// Gives the weights in use another number between two steps; see [`super::Engine::renumber`].
    ///
    /// # Errors
    /// When the version is older than the one in use, or the engine has stopped.
    pub async fn renumber(&self, version: PolicyVersion) -> Result<(), Error> {
        self.ask(|reply| Command::Renumber { version, reply }).await?
    }

    /// How busy the engine is.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn load(&self) -> Result<Load, Error> {
        Ok(self.ask(Command::Report).await?.0)
    }

    /// What the engine has done so far.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn totals(&self) -> Result<Totals, Error> {
        Ok(self.ask(Command::Report).await?.1)
    }

    /// What the engine had done by the end of its last step, without waiting for the one under way.
    pub fn totals_so_far(&self) -> Totals {
        *self.totals.borrow()
    }

    /// Where it runs and with how much, for a person.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// Longest prompt and response together, in tokens.
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.commands.send(command(reply)).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.stopped()),
            Err(_) => Err(Error::Stopped(format!("no answer within {ANSWER_TIMEOUT:?}"))),
        }
    }

    fn stopped(&self) -> Error {
        Error::Stopped(self.ending.get().cloned().unwrap_or_else(|| "its thread has ended".to_owned()))
    }
}

impl EngineClient {
    /// Queues requests, all before the next step; for each whether it was taken.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn submit(&self, requests: Vec<Request>) -> Result<Vec<Result<(), Refusal>>, Error> {
        let client = self.client;
        self.handle.ask(|reply| Command::Submit { client, requests, reply }).await
    }

    /// Gives up a response: an event about it may still be on its way, but no other comes. False when none of
    /// this id is under way.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn cancel(&self, id: u64) -> Result<bool, Error> {
        let client = self.client;
        self.handle.ask(|reply| Command::Cancel { client, id, reply }).await
    }

    /// The next event. The future may be dropped at any time; nothing is lost.
    ///
    /// # Errors
    /// When the engine has stopped.
    pub async fn next_event(&mut self) -> Result<Event, Error> {
        let event = self.events.recv().await;
        event.ok_or_else(|| self.handle.stopped())
    }
}
