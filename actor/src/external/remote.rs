//! The server as the actor knows it: whether it is there, which weights it has, and how it gets others.
//!
//! ```text
//!          take_up          answered            lost: somebody may have started it again
//! Empty ------------> Exchanging -----> Ready ------------------------------> Down
//!                         ^               |  take_up: the next version          |
//!                         +---------------+                                     |
//!                         +------- watch: the version that it had last ---------+
//! ```
//!
//! A server that was lost is asked for nothing before it has read its weights again: one that was started
//! anew has others, and does not say so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::{CacheOnSwap, EngineConfig};
use service::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{MemberId, PolicyVersion, Sampling, SamplingParams};

use super::http::{Call, CallError, Server};
use super::protocol::{Answer, Draw, Pause, Protocol};
use super::refusal::{self, Measured};
use crate::metrics;

/// How often a server is asked whether it is there.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for an answer that needs no computing.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server that is to read weights may take to be there.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long responses may take to end with what they have, once the server was told to pause.
pub(super) const ABORT_GRACE: Duration = Duration::from_secs(10);
/// Silent health pages in a row, before a server counts as lost.
const SILENT_LIMIT: u32 = 3;
/// Names of versions that are remembered for the responses that span them.
const NAMES_LIMIT: usize = 64;
/// Alternatives that are compared to learn what log-probs are of: what vLLM gives at most.
const ALTERNATIVES: u32 = 20;
/// Prompts of one token that are tried for that.
const PROBES: u32 = 8;

/// What the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// No weights of ours yet.
    Empty,
    /// It reads weights.
    Exchanging,
    Ready(Ready),
    /// It was lost, for this reason.
    Down(String),
}

/// Weights in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) version: PolicyVersion,
    /// Their name at the server.
    pub(super) name: String,
    /// Counts the times that weights were read.
    pub(super) epoch: u64,
}

/// Why weights were not taken up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The server is not there, or refuses.
    #[error("the {server} server: {source}{hint}")]
    Call { server: &'static str, source: CallError, hint: String },
    /// It has newer ones.
    #[error("this actor generates with {held}, and does not go back to {offered}")]
    Older { held: PolicyVersion, offered: PolicyVersion },
    /// Its log-probs are not those that rollouts need: the run cannot have this actor.
    #[error("{0}")]
    Refused(String),
    /// Responses under way did not end.
    #[error("{0} responses did not end within {ABORT_GRACE:?} of the pause")]
    Busy(usize),
    /// What the log-probs are of cannot be told.
    #[error("the {0} server's log-probs do not tell whether they are those of temperature {1} or of 1")]
    Unclear(&'static str, f32),
    /// The version was not written.
    #[error(transparent)]
    Folder(#[from] super::folder::Error),
}

/// The weights that the server was told to read last.
#[derive(Debug, Clone)]
struct Held {
    version: PolicyVersion,
    folder: PathBuf,
}

/// The server with what is known of it.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(super) protocol: Protocol,
    pub(super) server: Server,
    pub(super) member: MemberId,
    pub(super) request_timeout: Duration,
    pub(super) pause: Pause,
    pub(super) state: watch::Sender<State>,
    /// Calls for tokens that are under way.
    pub(super) in_flight: watch::Sender<usize>,
    /// Held while weights are exchanged.
    held: tokio::sync::Mutex<Option<Held>>,
    /// The versions of names, and how often weights were read.
    names: Mutex<Names>,
    /// Temperatures of the run, by their bits, and whether log-probs were found to be theirs.
    temperatures: Mutex<BTreeMap<u32, bool>>,
    /// Held while log-probs are looked at, which is done once.
    measuring: tokio::sync::Mutex<()>,
    /// Why this server can be no part of the run.
    refused: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Names {
    versions: BTreeMap<String, PolicyVersion>,
    epoch: u64,
}

impl Remote {
    /// A server that was asked for nothing yet; none where the engine is the actor's own.
    ///
    /// # Errors
    /// When its URL is none.
    pub(crate) fn new(config: &EngineConfig, member: MemberId) -> Result<Option<Arc<Self>>, String> {
        let Some(protocol) = Protocol::of(config.backend) else { return Ok(None) };
        Ok(Some(Arc::new(Self {
            protocol,
            server: Server::new(&config.url)?,
            member,
            request_timeout: config.request_timeout,
            pause: if config.on_swap == CacheOnSwap::Keep { Pause::Keep } else { Pause::Abort },
            state: watch::Sender::new(State::Empty),
            in_flight: watch::Sender::new(0),
            held: tokio::sync::Mutex::new(None),
            names: Mutex::default(),
            temperatures: Mutex::default(),
            measuring: tokio::sync::Mutex::new(()),
            refused: Mutex::default(),
        })))
    }

    /// Why this server can be no part of the run, once that is known.
    pub(crate) fn refusal(&self) -> Option<String> {
        lock(&self.refused).clone()
    }

    /// Tokens will be drawn at this temperature: whether log-probs are its own is found out with the next
    /// weights.
    pub(crate) fn expect_temperature(&self, temperature: f32) {
        lock(&self.temperatures).entry(temperature.to_bits()).or_insert(false);
    }

    /// Whether log-probs are known to be those of a temperature. At 1 they are those of 1 whatever the server
    /// does, and greedy draws are promised those of 1.
    pub(super) fn is_measured(&self, temperature: f32) -> bool {
        temperature.to_bits() == 1.0_f32.to_bits()
            || temperature <= 0.0
            || lock(&self.temperatures).get(&temperature.to_bits()) == Some(&true)
    }

    /// The version of a name that the server gives weights.
    pub(super) fn version_of(&self, name: &str) -> Option<PolicyVersion> {
        lock(&self.names).versions.get(name).copied()
    }

    /// The weights in use are those of another version, too.
    pub(crate) fn renumber(&self, version: PolicyVersion) {
        self.state.send_if_modified(|state| {
            let State::Ready(ready) = state else { return false };
            ready.version = version;
            lock(&self.names).versions.insert(ready.name.clone(), version);
            true
        });
    }

    /// The server reads a version; it draws with it from now on.
    ///
    /// # Errors
    /// When it does not; it keeps what it has where that is known, and is lost where it is not.
    pub(crate) async fn take_up(&self, version: PolicyVersion, folder: &Path) -> Result<(), Error> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().map(|held| held.version).filter(|held| *held > version) {
            return Err(Error::Older { held, offered: version });
        }
        let next = Held { version, folder: folder.to_owned() };
        self.exchange(&next).await?;
        *held = Some(next);
        Ok(())
    }

    /// Exchanges the weights. The state is `Ready` or `Down` or what it was afterwards, never `Exchanging`.
    async fn exchange(&self, next: &Held) -> Result<(), Error> {
        let before = self.state.send_replace(State::Exchanging);
        let mut exchange =
            Exchange { state: &self.state, after: State::Down("an exchange of weights was given up".into()) };
        if !matches!(before, State::Ready(_)) {
            // It may be another process, with other options.
            lock(&self.temperatures).values_mut().for_each(|measured| *measured = false);
        }
        let arrival = self.await_arrival().await;
        let paused = match arrival {
            Ok(()) => self.control(&self.protocol.pause(self.pause)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = paused {
            // It refuses, and has what it had; or it is not there.
            let refuses = matches!(error, CallError::Status { .. }) && matches!(before, State::Ready(_));
            exchange.after = if refuses { before } else { State::Down(error.to_string()) };
            return Err(self.failed(error));
        }
        let exchanged = self.exchange_paused(next).await;
        let resumed = self.control(&self.protocol.resume()).await;
        let measured = match (exchanged, resumed) {
            (Ok(()), Ok(_)) => self.measure_all().await,
            (Err(error), _) => Err(error),
            (Ok(()), Err(error)) => Err(self.failed(error)),
        };
        if let Err(error) = measured {
            exchange.after = State::Down(error.to_string());
            return Err(error);
        }
        let mut names = lock(&self.names);
        names.epoch += 1;
        let name = name_of(next.version);
        // Weights that are read again may have another number by now.
        let version = *names.versions.entry(name.clone()).or_insert(next.version);
        while names.versions.len() > NAMES_LIMIT {
            let Some(oldest) = names.versions.iter().min_by_key(|(_, version)| **version) else { break };
            let oldest = oldest.0.clone();
            names.versions.remove(&oldest);
        }
        exchange.after = State::Ready(Ready { version, name, epoch: names.epoch });
        Ok(())
    }

    /// The same between pause and resume.
    async fn exchange_paused(&self, next: &Held) -> Result<(), Error> {
        if self.pause == Pause::Abort {
            // Whoever does not end in time gives itself up.
            let mut in_flight = self.in_flight.subscribe();
            let ended = in_flight.wait_for(|count| *count == 0);
            let ended = tokio::time::timeout(ABORT_GRACE + CONTROL_TIMEOUT, ended).await.is_ok();
            if !ended {
                return Err(Error::Busy(*self.in_flight.borrow()));
            }
        }
        let load = self.protocol.load(&next.folder, &name_of(next.version), self.pause);
        let answer = self.server.call(&load, self.request_timeout).await;
        let loaded = answer.and_then(|answer| self.protocol.loaded(&load, &answer));
        loaded.map_err(|error| self.failed(error))
    }

    /// Waits until the server is there.
    async fn await_arrival(&self) -> Result<(), CallError> {
        let deadline = Instant::now() + ARRIVAL_TIMEOUT;
        let mut backoff = Backoff::new(Duration::from_millis(200), WATCH_INTERVAL);
        loop {
            let Err(error) = self.control(&self.protocol.health()).await else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(error);
            }
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    async fn control(&self, call: &Call) -> Result<(), CallError> {
        self.server.call(call, CONTROL_TIMEOUT).await.map(|_| ())
    }

    fn failed(&self, source: CallError) -> Error {
        metrics::engine_call_failed(source.label());
        let missing = matches!(source, CallError::Status { code: 404 | 405, .. });
        let hint = if missing { format!("; {}", self.protocol.hint()) } else { String::new() };
        Error::Call { server: self.protocol.name(), source, hint }
    }

    /// Finds out what log-probs are of, for all temperatures for which it is not known.
    async fn measure_all(&self) -> Result<(), Error> {
        let temperatures: Vec<f32> =
            lock(&self.temperatures).keys().map(|bits| f32::from_bits(*bits)).collect();
        for temperature in temperatures.into_iter().filter(|temperature| !self.is_measured(*temperature)) {
            self.measure(temperature).await?;
        }
        Ok(())
    }

    /// Finds out what log-probs are of at a temperature.
    ///
    /// # Errors
    /// When they are not those of the temperature, or it cannot be told.
    pub(super) async fn measure(&self, temperature: f32) -> Result<(), Error> {
        let _measuring = self.measuring.lock().await;
        if self.is_measured(temperature) {
            return Ok(());
        }
        for token in 0..PROBES {
            let (at_one, at_temperature) =
                (self.alternatives(token, 1.0).await?, self.alternatives(token, temperature).await?);
            match refusal::measure(&at_one, &at_temperature, temperature) {
                Measured::AtTemperature => {
                    lock(&self.temperatures).insert(temperature.to_bits(), true);
                    return Ok(());
                }
                Measured::AtOne => {
                    let said = refusal::wrong_temperature(self.protocol, temperature);
                    *lock(&self.refused) = Some(said.clone());
                    return Err(Error::Refused(said));
                }
                Measured::Unclear => {}
            }
        }
        Err(Error::Unclear(self.protocol.name(), temperature))
    }

    /// The most probable tokens behind one token.
    async fn alternatives(&self, token: u32, temperature: f32) -> Result<Vec<(u32, f32)>, Error> {
        let params = SamplingParams { temperature, max_new_tokens: 1, ..SamplingParams::default() };
        let sampling = Sampling::new(params).unwrap_or_default();
        let draw = Draw {
            name: &format!("{}-measure-{token}-{temperature}", self.member),
            tokens: &[token],
            sampling: &sampling,
            max_tokens: 1,
            seed: 1,
            endings: &[],
            alternatives: ALTERNATIVES,
        };
        let answer = self.draw(&draw, CONTROL_TIMEOUT).await;
        answer.map(|answer| answer.first_alternatives).map_err(|error| self.failed(error))
    }

    /// Asks for a response.
    pub(super) async fn draw(&self, draw: &Draw<'_>, timeout: Duration) -> Result<Answer, CallError> {
        let call = self.protocol.draw(draw);
        let body = self.server.call(&call, timeout).await?;
        self.protocol.answer(&call, &body)
    }

    /// The server was lost while it had these weights.
    pub(super) fn lost(&self, epoch: u64, reason: &str) {
        let was_ready = self.state.send_if_modified(|state| {
            let is_it = matches!(state, State::Ready(ready) if ready.epoch == epoch);
            if is_it {
                *state = State::Down(reason.to_owned());
            }
            is_it
        });
        if was_ready {
            tracing::warn!(
                reason,
                "the external engine was lost; it reads its weights again before it is asked"
            );
        }
    }

    /// Watches the server as long as it is wanted, and brings one that was lost back.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut backoff = Backoff::new(WATCH_INTERVAL / 4, 10 * WATCH_INTERVAL);
        let mut silent = 0;
        loop {
            tokio::time::sleep(WATCH_INTERVAL / 2 + backoff.next_pause()).await;
            let state = self.state.borrow().clone();
            match state {
                State::Empty | State::Exchanging => backoff.reset(),
                State::Ready(ready) => {
                    backoff.reset();
                    match self.control(&self.protocol.health()).await {
                        Ok(()) => silent = 0,
                        Err(CallError::Late { .. }) if silent + 1 < SILENT_LIMIT => silent += 1,
                        Err(error) => self.lost(ready.epoch, &error.to_string()),
                    }
                }
                State::Down(_) => {
                    if self.control(&self.protocol.health()).await.is_ok() {
                        self.bring_back().await;
                    }
                }
            }
        }
    }

    /// Has a server that was lost read the weights again that it had.
    async fn bring_back(&self) {
        let held = self.held.lock().await;
        let Some(last) = held.clone() else { return };
        // An exchange may have brought it back meanwhile.
        if !matches!(*self.state.borrow(), State::Down(_)) {
            return;
        }
        match self.exchange(&last).await {
            Ok(()) => tracing::info!(version = %last.version, "the external engine is back"),
            Err(error) => tracing::info!(%error, "the external engine is still lost"),
        }
    }
}

/// An exchange under way; the state is what is said here, once it is over or given up.
struct Exchange<'a> {
    state: &'a watch::Sender<State>,
    after: State,
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.state.send_replace(self.after.clone());
    }
}

/// A version's name at the server.
fn name_of(version: PolicyVersion) -> String {
    version.0.to_string()
}

/// What is kept is whole between any two statements: a panic elsewhere breaks nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
