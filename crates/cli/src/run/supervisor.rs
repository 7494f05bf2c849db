//! Starts the roles of a ring as child processes, restarts what dies, and ends them all.
//!
//! | event                    | what follows                                                                 |
//! |--------------------------|------------------------------------------------------------------------------|
//! | a role dies              | restarted under its name after a pause; the others go on                     |
//! | a role exits with 0      | it was told to leave: not restarted                                          |
//! | a learner rank dies      | all ranks are ended and started again: they live and die together            |
//! | a role exits with 2      | the run ends: its input is bad, trying again cannot help                     |
//! | a role dies too often    | the run ends, with the last lines of its log                                 |
//! | the coordinator exits 0  | the run is over (or stopped); the others get a moment to leave               |
//! | Ctrl-C or SIGTERM        | the coordinator is asked to drain; the second ends everything at once        |
//! | this process dies        | the children's standard input closes, and they drain                         |

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use service::Backoff;
use tokio::time::Instant;

use super::process::{Process, Program};

/// Restarts of one unit within [`RESTART_WINDOW`] before the run is given up.
const MAX_RESTARTS: usize = 6;
const RESTART_WINDOW: Duration = Duration::from_secs(300);
/// How long a role may take to say where it listens.
const START_TIME_LIMIT: Duration = Duration::from_secs(60);
/// How long the others may take to leave of themselves once the coordinator has told them to and left.
const HEARD_TIME_LIMIT: Duration = Duration::from_secs(2);
/// How long they may take in all.
const LEAVE_TIME_LIMIT: Duration = Duration::from_secs(20);
const BAD_INPUT: i32 = 2;

/// Processes that live and die together: a role, or all ranks of the learner.
#[derive(Debug)]
pub(crate) struct Unit {
    programs: Vec<Program>,
    running: Vec<Process>,
    /// When it was restarted lately.
    restarts: VecDeque<Instant>,
    backoff: Backoff,
    /// When to start it again.
    start_at: Option<Instant>,
}

impl Unit {
    /// A unit that is not running.
    pub(crate) fn new(programs: Vec<Program>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        Self { programs, running: Vec::new(), restarts: VecDeque::new(), backoff, start_at: None }
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.start_at = None;
        self.running = self.programs.iter().map(Process::start).collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    /// The first of its processes that has failed, and how.
    fn failed(&mut self) -> Option<(usize, ExitStatus)> {
        let ended =
            self.running.iter_mut().enumerate().filter_map(|(at, process)| Some((at, process.ended()?)));
        ended.into_iter().find(|(_, status)| !status.success())
    }

    /// Whether all of its processes have left as they were told.
    fn has_left(&mut self) -> bool {
        self.running.iter_mut().all(|process| process.ended().is_some_and(|status| status.success()))
    }

    fn kill(&mut self) {
        self.running.iter().for_each(Process::kill);
    }
}

/// How a ring ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RingEnd {
    /// The coordinator left by itself: finished, or drained.
    Complete,
    /// Ended at once, on a second Ctrl-C.
    Aborted,
}

/// The supervisor of a ring.
#[derive(Debug)]
pub(crate) struct Supervisor {
    coordinator: Unit,
    members: Vec<Unit>,
    /// Restarts so far, by unit.
    pub(crate) restarts: u64,
    interrupts: u32,
}

impl Supervisor {
    /// Starts the coordinator and waits until it says where it listens.
    ///
    /// # Errors
    /// When it does not start; its log's last lines say why.
    pub(crate) async fn start(
        coordinator: Program,
        address_file: &PathBuf,
    ) -> anyhow::Result<(Self, String)> {
        // An old file would name an old address.
        let _ = std::fs::remove_file(address_file);
        let mut unit = Unit::new(vec![coordinator]);
        unit.start()?;
        let mut this = Self { coordinator: unit, members: Vec::new(), restarts: 0, interrupts: 0 };
        let address = this.wait_for_address(address_file).await?;
        // After a restart it has to be found where it was.
        let listen = format!("listen={address}");
        this.coordinator.programs[0].arguments.extend(["--set".to_owned(), listen]);
        Ok((this, address))
    }

    async fn wait_for_address(&mut self, file: &PathBuf) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(file) {
                let addresses: serde_json::Value = serde_json::from_str(&text)?;
                let address = addresses.get("grpc").and_then(serde_json::Value::as_str);
                return Ok(address.context("the coordinator did not say where it listens")?.to_owned());
            }
            if let Some((_, status)) = self.coordinator.failed() {
                let tail = self.coordinator.running[0].log_tail();
                let error = anyhow::anyhow!("the coordinator did not start ({status}):\n{tail}");
                return Err(bad_input_if(status, error));
            }
            anyhow::ensure!(
                started.elapsed() < START_TIME_LIMIT,
                "the coordinator does not listen after {START_TIME_LIMIT:?}; see {}",
                self.coordinator.running[0].log.display()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts a member.
    ///
    /// # Errors
    /// When a binary or log is missing.
    pub(crate) fn add(&mut self, mut unit: Unit) -> anyhow::Result<()> {
        unit.start()?;
        self.members.push(unit);
        Ok(())
    }

    /// Process ids by name, for people and tests.
    pub(crate) fn process_ids(&self) -> Vec<(String, u32)> {
        let units = std::iter::once(&self.coordinator).chain(&self.members);
        let processes = units.flat_map(|unit| &unit.running);
        processes.filter_map(|process| Some((process.name.clone(), process.id()?))).collect()
    }

    /// Somebody pressed Ctrl-C, or sent SIGTERM.
    pub(crate) fn interrupt(&mut self) {
        self.interrupts += 1;
        if self.interrupts == 1 {
            self.coordinator.running.iter().for_each(Process::terminate);
        }
    }

    /// Looks after the processes once: call it several times a second. Yields how the ring ended, once it has: then comes
    /// [`dismiss`](Self::dismiss).
    ///
    /// # Errors
    /// When the run cannot go on; the message holds the last lines of the log concerned.
    pub(crate) fn tend(&mut self) -> anyhow::Result<Option<RingEnd>> {
        if self.interrupts > 1 {
            self.kill_all();
            return Ok(Some(RingEnd::Aborted));
        }
        let gone = !self.coordinator.running.is_empty() && self.coordinator.has_left();
        if gone || (self.interrupts > 0 && self.coordinator.failed().is_some()) {
            return Ok(Some(RingEnd::Complete));
        }
        // While the run drains nobody is started again.
        let draining = self.interrupts > 0;
        let units = std::iter::once(&mut self.coordinator).chain(&mut self.members);
        for unit in units {
            match tend_unit(unit, draining) {
                Ok(restarted) => self.restarts += u64::from(restarted),
                Err(error) => {
                    self.kill_all();
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// The coordinator has told everybody to leave: waits a moment for those who heard it, tells the others, then insists.
    pub(crate) async fn dismiss(&mut self) {
        let (told, deadline) = (Instant::now() + HEARD_TIME_LIMIT, Instant::now() + LEAVE_TIME_LIMIT);
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        for process in self.members.iter_mut().flat_map(|unit| &mut unit.running) {
            if process.wait(left(told)).await.is_none() {
                tracing::info!(name = process.name, "did not leave by itself: told again");
                process.terminate();
            }
        }
        for process in self.members.iter_mut().flat_map(|unit| &mut unit.running) {
            if process.wait(left(deadline)).await.is_none() {
                process.kill();
            }
        }
    }

    /// Ends everything at once.
    pub(crate) fn kill_all(&mut self) {
        self.coordinator.kill();
        self.members.iter_mut().for_each(Unit::kill);
    }
}

/// Restarts a unit that has died. Yields whether it did.
fn tend_unit(unit: &mut Unit, draining: bool) -> anyhow::Result<bool> {
    if let Some(at) = unit.start_at {
        if at <= Instant::now() && !draining {
            unit.start()?;
            return Ok(true);
        }
        return Ok(false);
    }
    let Some((at, status)) = unit.failed() else {
        return Ok(false);
    };
    let (name, tail) = (unit.running[at].name.clone(), unit.running[at].log_tail());
    unit.kill();
    unit.running.clear();
    if draining {
        return Ok(false);
    }
    let now = Instant::now();
    unit.restarts.retain(|restart| now.duration_since(*restart) < RESTART_WINDOW);
    unit.restarts.push_back(now);
    let too_often = unit.restarts.len() > MAX_RESTARTS;
    if status.code() == Some(BAD_INPUT) || too_often {
        let why =
            if too_often { format!("died {} times in a row", unit.restarts.len()) } else { "gave up".into() };
        return Err(bad_input_if(
            status,
            anyhow::anyhow!("{name} {why} ({status}); its last words:\n{tail}"),
        ));
    }
    if unit.restarts.len() == 1 {
        unit.backoff.reset();
    }
    let pause = unit.backoff.next_pause();
    tracing::warn!(name, %status, ?pause, "died; starting it again");
    unit.start_at = Some(now + pause);
    Ok(false)
}

/// A role that was given bad input makes this command's exit code say so too.
fn bad_input_if(status: ExitStatus, error: anyhow::Error) -> anyhow::Error {
    if status.code() == Some(BAD_INPUT) { service::BadInput(format!("{error:#}")).into() } else { error }
}
