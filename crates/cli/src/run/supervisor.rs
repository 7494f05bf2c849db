//! Starts the roles of a ring as child processes, restarts what dies, and ends them all.
//!
//! | event                    | what follows                                                                 |
//! |--------------------------|------------------------------------------------------------------------------|
//! | a role dies              | restarted under its name after a pause; the others go on                     |
//! | a role exits with 0      | it was told to leave: not restarted                                          |
//! | a learner rank dies      | all ranks are ended and started again: they live and die together            |
//! | a role exits with 2      | the run ends: its input is bad, trying again cannot help                     |
//! | a role exits with 3      | the run ends: it cannot go on, and would not after a restart                 |
//! | a role dies too often    | the run ends, with the last lines of its log: too often is 7 times without   |
//! |                          | a batch trained meanwhile, by whomever                                       |
//! | the coordinator calls a  | it is ended, and started again as what has died: stopped, swapped out or     |
//! | role lost for 30 s       | stuck, it would be missing for ever                                          |
//! | the coordinator exits 0  | the run is over (or stopped); the others get a moment to leave               |
//! | Ctrl-C or SIGTERM        | the coordinator is asked to drain; the second ends everything at once        |
//! | this process dies        | the children's standard input closes, and they drain                         |

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use service::Backoff;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::process::{Process, ProcessId, Program};

/// Restarts of one unit between two trained batches before the run is given up.
const RESTART_LIMIT: u32 = 6;
/// Shortest and longest delay before a unit is started again. Delays grow from one restart to the next.
const SHORTEST_RESTART_DELAY: Duration = Duration::from_millis(200);
const LONGEST_RESTART_DELAY: Duration = Duration::from_secs(5);
/// What lived so long is started again after the shortest delay.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How long the coordinator may call a process lost that runs before it is replaced.
const LOST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the processes are looked after.
const SUPERVISION_INTERVAL: Duration = Duration::from_millis(100);
/// How often the coordinator's address file is looked for.
const ADDRESS_INTERVAL: Duration = Duration::from_millis(10);
/// How long a role may take to say where it listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the others may take to leave of themselves once the coordinator has told them to and left.
const HEARD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long they may take in all.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Exit code of a role whose input is bad.
const BAD_INPUT_CODE: i32 = 2;
/// Exit code of a role that has given the run up: it would end in the same way again.
const HOPELESS_CODE: i32 = 3;

/// Processes that live and die together: a role, or all ranks of the learner.
#[derive(Debug)]
pub(crate) struct Unit {
    /// What the coordinator calls it.
    member: String,
    programs: Vec<Program>,
    running: Vec<Process>,
    started_at: Option<Instant>,
    /// Since when the coordinator has called it lost.
    lost_since: Option<Instant>,
    /// How often it has died since the run last trained a batch.
    deaths: u32,
    backoff: Backoff,
    /// When to start it again.
    start_at: Option<Instant>,
}

impl Unit {
    /// A unit that is not running.
    pub(crate) fn new(member: impl Into<String>, programs: Vec<Program>) -> Self {
        Self {
            member: member.into(),
            programs,
            running: Vec::new(),
            started_at: None,
            lost_since: None,
            deaths: 0,
            backoff: Backoff::new(SHORTEST_RESTART_DELAY, LONGEST_RESTART_DELAY),
            start_at: None,
        }
    }

    fn start(&mut self) -> anyhow::Result<()> {
        (self.start_at, self.lost_since) = (None, None);
        self.started_at = Some(Instant::now());
        self.running = self.programs.iter().map(Process::start).collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    /// The first of its processes that has failed.
    fn failed(&mut self) -> Option<Failure> {
        let mut first = None;
        for process in &mut self.running {
            let Some(status) = process.ended().filter(|status| !status.success()) else { continue };
            let failure = Failure { name: process.name.clone(), status, log_tail: process.log_tail() };
            if is_final(status) {
                // The others of a unit fail because of it, and do not know why.
                return Some(failure);
            }
            first = first.or(Some(failure));
        }
        first
    }

    /// Whether all of its processes have left as they were told.
    fn has_left(&mut self) -> bool {
        self.running.iter_mut().all(|process| process.ended().is_some_and(|status| status.success()))
    }

    fn kill(&mut self) {
        self.running.iter().for_each(Process::kill);
    }

    /// The coordinator says whether it is lost. One that stays so is ended.
    fn heard(&mut self, is_lost: bool) {
        if !is_lost || self.running.is_empty() {
            self.lost_since = None;
            return;
        }
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        if since.elapsed() < LOST_TIMEOUT {
            return;
        }
        tracing::warn!(
            name = self.member,
            "lost for {LOST_TIMEOUT:?} to the coordinator, though its process is there: ended"
        );
        self.lost_since = None;
        self.kill();
    }

    /// Starts it again when it has died and its delay is over.
    fn tend(&mut self, restarts: Restarts) -> anyhow::Result<Tended> {
        if let Some(start_at) = self.start_at {
            if start_at <= Instant::now() && restarts == Restarts::Allowed {
                self.start()?;
                return Ok(Tended::Restarted);
            }
            return Ok(Tended::AsItWas);
        }
        let Some(failure) = self.failed() else {
            return Ok(Tended::AsItWas);
        };
        self.kill();
        self.running.clear();
        if restarts == Restarts::Allowed {
            self.schedule_restart(&failure)?;
        }
        Ok(Tended::AsItWas)
    }

    /// Says when it is started again.
    ///
    /// # Errors
    /// When trying again cannot help, or was tried often enough.
    fn schedule_restart(&mut self, failure: &Failure) -> anyhow::Result<()> {
        self.deaths += 1;
        let too_often = self.deaths > RESTART_LIMIT;
        let Failure { name, status, log_tail } = failure;
        if is_final(*status) || too_often {
            let why = if too_often {
                format!("died {} times, and no batch was trained meanwhile", self.deaths)
            } else {
                "gave up".to_owned()
            };
            let error = anyhow::anyhow!("{name} {why} ({status}); its last words:\n{log_tail}");
            return Err(with_code_of(*status, error));
        }
        if self.started_at.is_some_and(|started_at| started_at.elapsed() >= LONG_LIFE) {
            self.backoff.reset();
        }
        let delay = self.backoff.next_pause();
        tracing::warn!(name, %status, ?delay, "died; starting it again");
        self.start_at = Some(Instant::now() + delay);
        Ok(())
    }
}

/// A process that has failed.
#[derive(Debug)]
struct Failure {
    name: String,
    status: ExitStatus,
    /// The last lines that it logged.
    log_tail: String,
}

/// Whether what dies is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restarts {
    Allowed,
    /// The run drains: nobody is started any more.
    Over,
}

/// What looking after a unit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tended {
    AsItWas,
    Restarted,
}

/// Where a coordinator listens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Addresses {
    /// For members, `host:port`.
    pub(crate) grpc: String,
    /// For people: page and metrics.
    #[serde(rename = "metrics")]
    pub(crate) page: String,
}

impl Addresses {
    /// As its address file says.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
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
    /// When to look after them again.
    ticks: Interval,
    /// Restarts of units so far.
    restarts: u64,
    interrupts: u32,
}

impl Supervisor {
    /// Starts the coordinator and waits until it says where it listens.
    ///
    /// # Errors
    /// When it does not start; its log's last lines say why.
    pub(crate) async fn start(
        coordinator: Program,
        address_file: &Path,
    ) -> anyhow::Result<(Self, Addresses)> {
        // An old file would name an old address.
        let _ = std::fs::remove_file(address_file);
        let mut unit = Unit::new(coordinator.name.clone(), vec![coordinator]);
        unit.start()?;
        let mut ticks = tokio::time::interval(SUPERVISION_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut this = Self { coordinator: unit, members: Vec::new(), ticks, restarts: 0, interrupts: 0 };
        let addresses = this.wait_for_addresses(address_file).await?;
        // After a restart it has to be found where it was, by members and by people.
        let Addresses { grpc, page } = &addresses;
        for listen in [format!("listen={grpc}"), format!("service.listen_metrics={page}")] {
            this.coordinator.programs[0].arguments.extend(["--set".to_owned(), listen]);
        }
        Ok((this, addresses))
    }

    async fn wait_for_addresses(&mut self, file: &Path) -> anyhow::Result<Addresses> {
        let started = Instant::now();
        loop {
            if file.exists() {
                return Addresses::read(file).context("the coordinator did not say where it listens");
            }
            if let Some(Failure { status, log_tail, .. }) = self.coordinator.failed() {
                let error = anyhow::anyhow!("the coordinator did not start ({status}):\n{log_tail}");
                return Err(with_code_of(status, error));
            }
            anyhow::ensure!(
                started.elapsed() < START_TIMEOUT,
                "the coordinator does not listen after {START_TIMEOUT:?}; see {}",
                self.coordinator.running[0].log.display()
            );
            tokio::time::sleep(ADDRESS_INTERVAL).await;
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

    /// The processes that run.
    pub(crate) fn process_ids(&self) -> Vec<ProcessId> {
        let units = std::iter::once(&self.coordinator).chain(&self.members);
        units.flat_map(|unit| &unit.running).filter_map(Process::id).collect()
    }

    /// Restarts of units so far.
    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// The run has trained a batch: what died before it has not kept the run from going on.
    pub(crate) fn batch_trained(&mut self) {
        for unit in std::iter::once(&mut self.coordinator).chain(&mut self.members) {
            unit.deaths = 0;
        }
    }

    /// The coordinator answers, and calls these members lost: who stays so is replaced.
    pub(crate) fn replace_lost(&mut self, lost: &[&str]) {
        for unit in &mut self.members {
            unit.heard(lost.contains(&unit.member.as_str()));
        }
    }

    /// The coordinator does not answer: it cannot say who is lost.
    pub(crate) fn forget_lost(&mut self) {
        self.members.iter_mut().for_each(|unit| unit.lost_since = None);
    }

    /// Somebody pressed Ctrl-C, or sent SIGTERM.
    pub(crate) fn interrupt(&mut self) {
        self.interrupts += 1;
        if self.interrupts == 1 {
            self.coordinator.running.iter().for_each(Process::terminate);
        }
    }

    /// Looks after the processes until the ring has ended: then comes [`dismiss`](Self::dismiss). It may be
    /// cancelled and called again at any time.
    ///
    /// # Errors
    /// When the run cannot go on; the message holds the last lines of the log concerned.
    pub(crate) async fn supervise(&mut self) -> anyhow::Result<RingEnd> {
        loop {
            self.ticks.tick().await;
            if let Some(ended) = self.tend()? {
                return Ok(ended);
            }
        }
    }

    /// Looks after the processes once. Yields how the ring ended, once it has.
    fn tend(&mut self) -> anyhow::Result<Option<RingEnd>> {
        if self.interrupts > 1 {
            self.kill_all();
            return Ok(Some(RingEnd::Aborted));
        }
        let gone = !self.coordinator.running.is_empty() && self.coordinator.has_left();
        if gone || (self.interrupts > 0 && self.coordinator.failed().is_some()) {
            return Ok(Some(RingEnd::Complete));
        }
        let restarts = if self.interrupts == 0 { Restarts::Allowed } else { Restarts::Over };
        let units = std::iter::once(&mut self.coordinator).chain(&mut self.members);
        for unit in units {
            match unit.tend(restarts) {
                Ok(Tended::AsItWas) => {}
                Ok(Tended::Restarted) => self.restarts += 1,
                Err(error) => {
                    self.kill_all();
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// The coordinator has told everybody to leave: waits a moment for those who heard it, tells the others,
    /// then insists.
    pub(crate) async fn dismiss(&mut self) {
        let told_at = Instant::now();
        for process in self.members.iter_mut().flat_map(|unit| &mut unit.running) {
            if process.wait(HEARD_TIMEOUT.saturating_sub(told_at.elapsed())).await.is_none() {
                tracing::info!(name = process.name, "did not leave by itself: told again");
                process.terminate();
            }
        }
        for process in self.members.iter_mut().flat_map(|unit| &mut unit.running) {
            if process.wait(LEAVE_TIMEOUT.saturating_sub(told_at.elapsed())).await.is_none() {
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

/// Whether starting again cannot help.
fn is_final(status: ExitStatus) -> bool {
    matches!(status.code(), Some(BAD_INPUT_CODE | HOPELESS_CODE))
}

/// A role that was given bad input, or that has given the run up, makes this command's exit code say so too.
fn with_code_of(status: ExitStatus, error: anyhow::Error) -> anyhow::Error {
    match status.code() {
        Some(BAD_INPUT_CODE) => service::BadInput(format!("{error:#}")).into(),
        Some(HOPELESS_CODE) => service::Hopeless(format!("{error:#}")).into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit of one shell command. What is appended to every program's arguments is the shell's `$0`.
    fn unit(folder: &tempfile::TempDir, command: &str) -> Unit {
        Unit::new(
            "actor-0",
            vec![Program {
                name: "actor-0".to_owned(),
                binary: "/bin/sh".to_owned(),
                arguments: ["-c", command].map(str::to_owned).into(),
                log: folder.path().join("log"),
            }],
        )
    }

    /// Lets the unit die once and be started again.
    async fn die_once(unit: &mut Unit) -> anyhow::Result<()> {
        // Time is the test's own and stands still; the process has the machine's.
        while unit.running.iter_mut().any(|process| process.ended().is_none()) {
            std::thread::yield_now();
        }
        unit.tend(Restarts::Allowed)?;
        tokio::time::advance(LONGEST_RESTART_DELAY).await;
        assert_eq!(unit.tend(Restarts::Allowed)?, Tended::Restarted);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn deaths_count_from_one_trained_batch_to_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let mut dying = unit(&folder, "echo its words; exit 1");
        dying.start().unwrap();
        for _ in 0..2 {
            for _ in 0..RESTART_LIMIT {
                die_once(&mut dying).await.unwrap();
            }
            dying.deaths = 0;
        }
        for _ in 0..RESTART_LIMIT {
            die_once(&mut dying).await.unwrap();
        }
        let error = die_once(&mut dying).await.unwrap_err().to_string();
        assert!(error.contains("died 7 times, and no batch was trained meanwhile"), "{error}");
        assert!(error.ends_with("its words"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stays_lost_is_replaced_and_one_that_comes_back_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut stuck = unit(&folder, "exec sleep 1000");
        stuck.start().unwrap();
        let first = stuck.running[0].id().unwrap();
        for is_lost in [true, false, true] {
            stuck.heard(is_lost);
            tokio::time::advance(LOST_TIMEOUT - Duration::from_secs(1)).await;
        }
        stuck.heard(true);
        assert_eq!(stuck.running[0].id(), Some(first.clone()), "it was back in between");
        tokio::time::advance(Duration::from_secs(1)).await;
        stuck.heard(true);
        die_once(&mut stuck).await.unwrap();
        let second = stuck.running[0].id().unwrap();
        assert_ne!(second, first);
        stuck.heard(true);
        assert_eq!(stuck.running[0].id(), Some(second), "it has its time again");
        stuck.kill();
    }
}
