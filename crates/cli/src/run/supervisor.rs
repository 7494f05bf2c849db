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
//! | the coordinator has not  | the same: those who are connected to it wait for it                          |
//! | answered for 30 s        |                                                                              |
//! | a role that has started  | the same: it may have a large model to load before, or a long journal to     |
//! | is not heard of for 15   | read, but not for ever                                                       |
//! | minutes                  |                                                                              |
//! | the coordinator exits 0  | the run is over (or stopped); the others get a moment to leave               |
//! | Ctrl-C or SIGTERM        | the coordinator is asked to drain; the second ends everything at once        |
//! | this process dies        | the children's standard input closes, and they drain                         |

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::process::{Process, ProcessId, Program};
use super::unit::{Failure, Restarts, Tended, Unit, with_code_of};

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

    /// The coordinator answers, and these members are connected to it: who stays away is replaced.
    pub(crate) fn connected(&mut self, members: &[&str]) {
        self.coordinator.heard();
        for unit in &mut self.members {
            if members.contains(&unit.member.as_str()) {
                unit.heard();
            } else {
                unit.missed();
            }
        }
    }

    /// The coordinator does not say who is connected: nobody is missed. It is replaced itself when it has
    /// not answered at all for long.
    pub(crate) fn status_is_unknown(&mut self, answered: bool) {
        self.members.iter_mut().for_each(|unit| unit.lost_since = None);
        if answered {
            self.coordinator.heard();
        } else {
            self.coordinator.missed();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::unit::LOST_TIMEOUT;
    use crate::run::unit::tests::{die_once, unit};

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_answers_nothing_is_replaced_and_its_members_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut ticks = tokio::time::interval(SUPERVISION_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let [coordinator, member] = ["coordinator", "actor-0"].map(|member| {
            let mut unit = unit(&folder, "exec sleep 1000");
            unit.member = member.to_owned();
            unit.start().unwrap();
            unit
        });
        let mut ring = Supervisor { coordinator, members: vec![member], ticks, restarts: 0, interrupts: 0 };
        ring.connected(&["actor-0"]);
        let ids = ring.process_ids();
        // What it says is not understood, but it is there.
        for answered in [true, false] {
            for _ in 0..2 {
                ring.status_is_unknown(answered);
                tokio::time::advance(LOST_TIMEOUT - Duration::from_secs(1)).await;
            }
        }
        ring.status_is_unknown(false);
        die_once(&mut ring.coordinator).await.unwrap();
        let now = ring.process_ids();
        assert_ne!(now[0], ids[0]);
        assert_eq!(now[1], ids[1]);
        ring.kill_all();
    }
}
