//! Python interpreters of episodes: one for each that has called it, in the sandbox.
//!
//! A session blocks the thread that uses it, so each call has a thread for its time; between two calls the
//! guest stands still. Who waits for an interpreter waits here and keeps no thread busy.

use std::sync::Arc;
use std::time::Duration;

use sandbox::{GraderConfig, Interpreters, Session, SessionLimits};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::config::{EpisodeBounds, PythonTool};
use crate::metrics;

use super::EnvironmentError;

/// The server's interpreters.
#[derive(Debug, Clone)]
pub(super) struct InterpreterPool {
    interpreters: Interpreters,
    limits: SessionLimits,
    /// One for each interpreter.
    places: Arc<Semaphore>,
}

/// The interpreter of an episode.
#[derive(Debug)]
pub(super) struct Held {
    session: Option<Session>,
    place: Option<OwnedSemaphorePermit>,
}

/// What a call of the interpreter brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ran {
    /// What the policy is shown.
    Output(String),
    /// The episode's time in tools is used up.
    TimeOver,
}

impl InterpreterPool {
    /// Starts the interpreters. Blocks meanwhile.
    ///
    /// # Errors
    /// As [`Interpreters::start`].
    pub(super) fn start(
        grader: GraderConfig,
        tool: &PythonTool,
        bounds: &EpisodeBounds,
    ) -> Result<Self, sandbox::Error> {
        let interpreters = Interpreters::start(GraderConfig { workers: tool.interpreters, ..grader })?;
        metrics::sandbox_tier(interpreters.tier());
        let limits = SessionLimits {
            step: tool.limits.clone(),
            // Each turn may call several times.
            steps: u32::MAX,
            cpu: bounds.tool_time,
            wall: bounds.tool_time,
            shown_bytes: bounds.observation_bytes,
        };
        Ok(Self { interpreters, limits, places: Arc::new(Semaphore::new(tool.interpreters)) })
    }

    /// Runs code in an episode's interpreter, which it is given with its first code.
    ///
    /// # Errors
    /// Where there is no interpreter, or its sandbox failed: the episode has none any more then.
    pub(super) async fn run(&self, held: &mut Option<Held>, code: String) -> Result<Ran, EnvironmentError> {
        let mut used = match held.take() {
            Some(used) => used,
            None => self.open().await?,
        };
        // Given up in the middle, the thread ends its step and drops the session then.
        let ran = spawn_blocking(move || {
            let step = used.session.as_mut().map(|session| session.step(&code));
            (used, step)
        });
        let (used, step) = ran.await.map_err(|error| EnvironmentError::failed(format!("python: {error}")))?;
        match step {
            Some(Ok(step)) => {
                metrics::tool_called("python", step.wall, step.left_out);
                *held = Some(used);
                Ok(Ran::Output(step.output))
            }
            Some(Err(sandbox::Error::SessionOver)) => Ok(Ran::TimeOver),
            Some(Err(error)) => Err(of_sandbox(&error)),
            None => Err(EnvironmentError::failed("python: the interpreter is gone")),
        }
    }

    /// Waits for an interpreter, as long as the episode may.
    async fn open(&self) -> Result<Held, EnvironmentError> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| EnvironmentError::failed("python: the server is leaving"))?;
        let (interpreters, limits) = (self.interpreters.clone(), self.limits.clone());
        let opened = spawn_blocking(move || {
            let session = interpreters.open(limits)?;
            Ok(Held { session: Some(session), place: Some(place) })
        });
        let opened = opened.await.map_err(|error| EnvironmentError::failed(format!("python: {error}")))?;
        opened.map_err(|error: sandbox::Error| of_sandbox(&error))
    }
}

impl Held {
    /// How long its calls have taken.
    pub(super) fn tool_time(&self) -> Duration {
        self.session.as_ref().map_or(Duration::ZERO, |session| session.usage().wall)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (session, place) = (self.session.take(), self.place.take());
        // Ending a guest that resists takes seconds, which no async thread has.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop((session, place)))),
            Err(_) => drop((session, place)),
        }
    }
}

/// What a failure of the sandbox means for an episode.
fn of_sandbox(error: &sandbox::Error) -> EnvironmentError {
    let detail = format!("python: {error}");
    match error {
        sandbox::Error::Overloaded { .. } | sandbox::Error::Starved { .. } => {
            EnvironmentError::overload(detail)
        }
        _ => EnvironmentError::failed(detail),
    }
}
