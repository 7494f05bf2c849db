//! The ring on this machine: its processes, what each is told, and one loop that watches them.
//!
//! `recipe` says what the roles are told, `supervisor` keeps the processes alive, `progress` shows how the
//! run is doing. None of them knows another; here they meet.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use coordinator::Status;
use service::{BadInput, StopSignals};
use types::Timestamp;

use super::process::Program;
use super::progress::RingProgress;
use super::supervisor::{Addresses, RingEnd, Supervisor};
use super::unit::Unit;
use crate::commands::identity;
use crate::observer_client::Observer;
use crate::recipe::{RecipeFile, RingFolder, Role, RoleConfig, holds_training, remarks, tokenizers};
use crate::say::say;
use crate::tracking::{Tracked, Tracking};

/// How often the coordinator is asked how things are.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Where processes listen: on this machine, at any free port.
const LOOPBACK: &str = "127.0.0.1:0";

/// Runs the ring to its end.
///
/// # Errors
/// When it cannot start or cannot go on; the message holds the last words of the role concerned.
pub(crate) async fn run(file: &RecipeFile, resume: bool, stop: &mut StopSignals) -> anyhow::Result<RingEnd> {
    // Its stages may have made the folders since the preflight.
    if let Some(problem) = tokenizers::problem(&file.recipe) {
        return Err(BadInput(problem).into());
    }
    let security = identity::load("observer", &file.recipe.security)?;
    let ring = Ring::create(file, resume)?;
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let began = Timestamp(u64::try_from(began.as_millis()).unwrap_or(0));
    let (mut supervisor, addresses) =
        Supervisor::start(ring.coordinator()?, &ring.folder.address_file(Role::Coordinator.name())).await?;
    for unit in ring.members(&addresses.grpc)? {
        supervisor.add(unit)?;
    }
    let tracked = Tracked { ring: ring.folder.root().to_owned(), run: file.recipe.coordinator.run.clone() };
    let tracking = Tracking::start(&file.recipe.tracking, &tracked)?;
    let mut progress = RingProgress::new(file.recipe.coordinator.batches, began);
    progress.started(&addresses, &ring.folder.logs(), &supervisor.process_ids());
    for remark in remarks::of_ring(&file.recipe) {
        say(&format!("  {remark}"));
    }
    if let Some(tokens) = &file.recipe.security.token_file {
        let (page, tokens) = (&addresses.page, tokens.display());
        say(&format!(
            "  the page asks who comes: http://{page}/?token=$(sluice token show {tokens} observer)"
        ));
    }
    let observer = Observer::new(addresses.grpc.clone(), security);
    let ended = watch(&mut supervisor, &mut progress, observer, stop).await;
    supervisor.kill_all();
    if let Some(tracking) = tracking {
        tracking.finish();
    }
    progress.finish(ended.as_ref().ok().copied(), supervisor.restarts(), &ring.folder);
    ended
}

/// Shows how the ring is doing until it has ended.
async fn watch(
    supervisor: &mut Supervisor,
    progress: &mut RingProgress,
    mut observer: Observer,
    stop: &mut StopSignals,
) -> anyhow::Result<RingEnd> {
    let mut status_ticks = tokio::time::interval(STATUS_INTERVAL);
    status_ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut trained = 0;
    let ended = loop {
        tokio::select! {
            ended = supervisor.supervise() => break ended?,
            _ = status_ticks.tick() => {
                // A coordinator that is being restarted does not answer.
                let status = observer.status().await;
                match &status {
                    Some(status) => {
                        if status.trained > trained {
                            supervisor.batch_trained();
                        }
                        trained = trained.max(status.trained);
                        supervisor.connected(&connected_members(status));
                    }
                    None => supervisor.status_is_unknown(observer.has_answered()),
                }
                progress.show(status);
            }
            () = stop.next() => {
                supervisor.interrupt();
                progress.interrupted();
            }
        }
    };
    // Told to stop once more: those who have not left yet are killed.
    tokio::select! {
        () = supervisor.dismiss() => {}
        () = stop.next() => {}
    }
    Ok(ended)
}

/// Who is connected to the coordinator, under the names of their [`Unit`]s.
fn connected_members(status: &Status) -> Vec<&str> {
    let actors = status.actors.iter().map(|actor| (actor.member.as_str(), actor.connected));
    let servers = status.reward_servers.iter().map(|server| (server.member.as_str(), server.connected));
    let learner = status.learner.iter().map(|learner| (Role::Learner.name(), learner.connected));
    actors.chain(servers).chain(learner).filter(|(_, connected)| *connected).map(|(name, _)| name).collect()
}

/// The ring of a recipe on its way to processes of this machine.
struct Ring<'a> {
    file: &'a RecipeFile,
    folder: RingFolder,
    configs: [RoleConfig; 4],
}

impl<'a> Ring<'a> {
    /// Makes the ring's folders.
    fn create(file: &'a RecipeFile, resume: bool) -> anyhow::Result<Self> {
        let folder = file.ring_folder().clone();
        let journal = folder.journal();
        if journal.exists() && !resume && !holds_training(folder.root()) {
            // A start that came to nothing is in nobody's way.
            say("  nothing was trained before: it begins anew");
            let removed = std::fs::remove_dir_all(&journal);
            removed.with_context(|| format!("remove {}", journal.display()))?;
        } else if journal.exists() && !resume {
            let advice = "go on with --resume, or remove the folder to start anew";
            return Err(BadInput(format!("{} holds an unfinished run: {advice}", journal.display())).into());
        }
        for folder in [folder.logs(), folder.configs()] {
            std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        Ok(Self { file, folder, configs: file.role_configs() })
    }

    fn config(&self, role: Role) -> RoleConfig {
        self.configs[role as usize].clone()
    }

    fn coordinator(&self) -> anyhow::Result<Program> {
        let mut config = self.config(Role::Coordinator);
        config.set("listen", LOOPBACK);
        // Where people found the page last they find it again, if nobody has taken its port meanwhile.
        let before = Addresses::read(&self.folder.address_file(Role::Coordinator.name()));
        if let Some(page) = before.map(|before| before.page).filter(|page| TcpListener::bind(page).is_ok()) {
            config.set_if_absent("service.listen_metrics", page);
        }
        self.program(Role::Coordinator.name(), &config)
    }

    /// Every process but the coordinator.
    fn members(&self, coordinator: &str) -> anyhow::Result<Vec<Unit>> {
        let mut units = Vec::new();
        for number in 0..self.file.recipe.processes.reward_servers {
            let mut config = self.config(Role::RewardServer);
            config.set("listen", LOOPBACK);
            if config.has_section("sandbox") {
                let servers = self.file.recipe.processes.reward_servers;
                config.set_if_absent("sandbox.grader.workers", sandbox_workers(servers));
            }
            units.push(self.member(config, number, coordinator)?);
        }
        units.push(self.learner(coordinator)?);
        for number in 0..self.file.recipe.processes.actors {
            units.push(self.member(self.config(Role::Actor), number, coordinator)?);
        }
        Ok(units)
    }

    /// One of several equal processes, told apart by their names.
    fn member(&self, mut config: RoleConfig, number: usize, coordinator: &str) -> anyhow::Result<Unit> {
        let name = format!("{}-{number}", config.role().name());
        config.set("member", name.clone());
        config.set("coordinator", coordinator);
        let program = self.program(&name, &config)?;
        Ok(Unit::new(name, vec![program]))
    }

    /// All ranks of the learner: one unit.
    fn learner(&self, coordinator: &str) -> anyhow::Result<Unit> {
        let ranks = self.file.recipe.processes.learner_ranks;
        let rendezvous = format!("127.0.0.1:{}", if ranks > 1 { free_port()? } else { 0 });
        let mut programs = Vec::new();
        for rank in 0..ranks {
            let name = if ranks == 1 { "learner".to_owned() } else { format!("learner-rank-{rank}") };
            let mut config = self.config(Role::Learner);
            config.set("coordinator", coordinator);
            config.set("listen", LOOPBACK);
            config.set("rank", i64::try_from(rank)?);
            config.set("rendezvous", rendezvous.clone());
            programs.push(self.program(&name, &config)?);
        }
        Ok(Unit::new(Role::Learner.name(), programs))
    }

    /// A role as a program: its configuration goes to a file of its own, and another one will say where it
    /// listens.
    fn program(&self, name: &str, config: &RoleConfig) -> anyhow::Result<Program> {
        let file = self.folder.configs().join(format!("{name}.toml"));
        std::fs::write(&file, config.text()?).with_context(|| format!("write {}", file.display()))?;
        let address_file = format!("service.address_file={}", self.folder.address_file(name).display());
        Ok(Program {
            name: name.to_owned(),
            binary: config.role().binary(),
            arguments: ["--config", &file.display().to_string(), "--set", &address_file]
                .map(str::to_owned)
                .into(),
            log: self.folder.logs().join(format!("{name}.log")),
        })
    }
}

/// Gradings at a time of each reward server where the whole ring shares this machine: one core is left to the
/// others.
fn sandbox_workers(reward_servers: usize) -> i64 {
    workers_beside_the_ring(
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        reward_servers,
    )
}

fn workers_beside_the_ring(cores: usize, reward_servers: usize) -> i64 {
    let workers = (cores - 1) / reward_servers.max(1);
    i64::try_from(workers.max(1)).unwrap_or(1)
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_left_to_the_rest_of_the_ring() {
        assert_eq!([1, 2, 3, 16].map(|cores| workers_beside_the_ring(cores, 1)), [1, 1, 2, 15]);
        assert_eq!([2, 4, 7, 100].map(|servers| workers_beside_the_ring(16, servers)), [7, 3, 2, 1]);
        assert_eq!(workers_beside_the_ring(16, 0), 15, "a division by none");
    }
}
