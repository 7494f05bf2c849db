//! Processes that live and die together, and when they are started again.

use std::process::ExitStatus;
use std::time::Duration;

use service::Backoff;
use tokio::time::Instant;

use super::process::{Process, Program};

/// Restarts of one unit between two trained batches before the run is given up.
const RESTART_LIMIT: u32 = 6;
/// Shortest and longest delay before a unit is started again. Delays grow from one restart to the next.
const SHORTEST_RESTART_DELAY: Duration = Duration::from_millis(200);
const LONGEST_RESTART_DELAY: Duration = Duration::from_secs(5);
/// What lived so long is started again after the shortest delay.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How long a process that runs and was heard of may be missing before it is replaced.
pub(super) const LOST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process may run before it is heard of for the first time.
const FIRST_HELLO_TIMEOUT: Duration = Duration::from_mins(15);
/// Exit code of a role whose input is bad.
const BAD_INPUT_CODE: i32 = 2;
/// Exit code of a role that has given the run up: it would end in the same way again.
const HOPELESS_CODE: i32 = 3;

/// Processes that live and die together: a role, or all ranks of the learner.
#[derive(Debug)]
pub(crate) struct Unit {
    /// What the coordinator calls it.
    pub(super) member: String,
    pub(super) programs: Vec<Program>,
    pub(super) running: Vec<Process>,
    started_at: Option<Instant>,
    /// It was heard of since it started.
    is_known: bool,
    /// Since when it is missing.
    pub(super) lost_since: Option<Instant>,
    /// How often it has died since the run last trained a batch.
    pub(super) deaths: u32,
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
            is_known: false,
            lost_since: None,
            deaths: 0,
            backoff: Backoff::new(SHORTEST_RESTART_DELAY, LONGEST_RESTART_DELAY),
            start_at: None,
        }
    }

    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        (self.start_at, self.lost_since, self.is_known) = (None, None, false);
        self.started_at = Some(Instant::now());
        self.running = self.programs.iter().map(Process::start).collect::<anyhow::Result<_>>()?;
        Ok(())
    }

    /// The first of its processes that has failed.
    pub(super) fn failed(&mut self) -> Option<Failure> {
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
    pub(super) fn has_left(&mut self) -> bool {
        self.running.iter_mut().all(|process| process.ended().is_some_and(|status| status.success()))
    }

    pub(super) fn kill(&mut self) {
        self.running.iter().for_each(Process::kill);
    }

    /// It is heard of.
    pub(super) fn heard(&mut self) {
        (self.is_known, self.lost_since) = (true, None);
    }

    /// It is not heard of. One that stays so although its process is there is ended.
    pub(super) fn missed(&mut self) {
        if self.running.is_empty() || self.has_left() {
            self.lost_since = None;
            return;
        }
        let lost_since = *self.lost_since.get_or_insert_with(Instant::now);
        let (since, timeout) = match self.started_at {
            Some(started_at) if !self.is_known => (started_at, FIRST_HELLO_TIMEOUT),
            _ => (lost_since, LOST_TIMEOUT),
        };
        if since.elapsed() >= timeout {
            tracing::warn!(
                name = self.member,
                "not heard of for {timeout:?}, though its process is there: ended"
            );
            self.lost_since = None;
            self.kill();
        }
    }

    /// Starts it again when it has died and its delay is over.
    pub(super) fn tend(&mut self, restarts: Restarts) -> anyhow::Result<Tended> {
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
pub(super) struct Failure {
    pub(super) name: String,
    pub(super) status: ExitStatus,
    /// The last lines that it logged.
    pub(super) log_tail: String,
}

/// Whether what dies is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restarts {
    Allowed,
    /// The run drains: nobody is started any more.
    Over,
}

/// What looking after a unit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tended {
    AsItWas,
    Restarted,
}

/// Whether starting again cannot help.
fn is_final(status: ExitStatus) -> bool {
    matches!(status.code(), Some(BAD_INPUT_CODE | HOPELESS_CODE))
}

/// A role that was given bad input, or that has given the run up, makes this command's exit code say so too.
pub(super) fn with_code_of(status: ExitStatus, error: anyhow::Error) -> anyhow::Error {
    match status.code() {
        Some(BAD_INPUT_CODE) => service::BadInput(format!("{error:#}")).into(),
        Some(HOPELESS_CODE) => service::Hopeless(format!("{error:#}")).into(),
        _ => error,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A unit of one shell command. What is appended to every program's arguments is the shell's `$0`.
    pub(in crate::run) fn unit(folder: &tempfile::TempDir, command: &str) -> Unit {
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
    pub(in crate::run) async fn die_once(unit: &mut Unit) -> anyhow::Result<()> {
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
        stuck.heard();
        for is_lost in [true, false, true] {
            if is_lost {
                stuck.missed()
            } else {
                stuck.heard()
            }
            tokio::time::advance(LOST_TIMEOUT - Duration::from_secs(1)).await;
        }
        stuck.missed();
        assert_eq!(stuck.running[0].id(), Some(first.clone()), "it was back in between");
        tokio::time::advance(Duration::from_secs(1)).await;
        stuck.missed();
        die_once(&mut stuck).await.unwrap();
        assert_ne!(stuck.running[0].id(), Some(first));
        stuck.kill();
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_not_come_yet_is_given_longer_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let mut loading = unit(&folder, "exec sleep 1000");
        loading.start().unwrap();
        for _ in 0..2 {
            let id = loading.running[0].id().unwrap();
            loading.missed();
            tokio::time::advance(FIRST_HELLO_TIMEOUT - Duration::from_secs(1)).await;
            loading.missed();
            assert_eq!(loading.running[0].id(), Some(id.clone()), "it may have much to load");
            tokio::time::advance(Duration::from_secs(1)).await;
            loading.missed();
            // After a restart it is given as long again, whoever was heard of before.
            die_once(&mut loading).await.unwrap();
            assert_ne!(loading.running[0].id(), Some(id));
        }
        loading.kill();
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_left_as_it_was_told_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let mut leaving = unit(&folder, "exit 0");
        leaving.start().unwrap();
        leaving.heard();
        while !leaving.has_left() {
            std::thread::yield_now();
        }
        leaving.missed();
        tokio::time::advance(LOST_TIMEOUT).await;
        leaving.missed();
        assert_eq!((leaving.lost_since, leaving.tend(Restarts::Allowed).unwrap()), (None, Tended::AsItWas));
    }
}
