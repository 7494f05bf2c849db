//! The ring stage: coordinator, reward servers, learner and actors as processes of this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use learner::Checkpoints;
use serde::Serialize;
use service::{BadInput, StopSignals};
use types::BatchId;

use super::observer_client::Observer;
use super::process::Program;
use super::progress::RingProgress;
use super::recipe::Recipe;
use super::supervisor::{RingEnd, Supervisor, Unit};

/// How often processes are looked after.
const TEND: Duration = Duration::from_millis(100);
/// How often the coordinator is asked how things are.
const ASK: Duration = Duration::from_millis(250);

/// Where a ring keeps its things.
#[derive(Debug, Clone)]
pub(crate) struct RingFolder(PathBuf);

impl RingFolder {
    /// Below a run's output folder.
    pub(crate) fn of(output: &Path) -> Self {
        Self(output.join("ring"))
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    fn create(&self) -> anyhow::Result<()> {
        for folder in [self.0.clone(), self.logs(), self.configs()] {
            std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        Ok(())
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// One JSON line per training step.
    pub(crate) fn steps(&self) -> PathBuf {
        self.0.join("steps.jsonl")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    fn configs(&self) -> PathBuf {
        self.0.join("config")
    }

    fn address_file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.address.json"))
    }

    /// A role as a program: its configuration goes to a file of its own, and another one will say where it listens.
    fn program<C: Serialize>(&self, name: &str, binary: &'static str, config: &C) -> anyhow::Result<Program> {
        let file = self.configs().join(format!("{name}.toml"));
        let text = toml::to_string(config).with_context(|| format!("write the configuration of {name}"))?;
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        let address_file = format!("service.address_file={}", self.address_file(name).display());
        Ok(Program {
            name: name.to_owned(),
            binary,
            arguments: ["--config", &file.display().to_string(), "--set", &address_file]
                .map(str::to_owned)
                .into(),
            log: self.logs().join(format!("{name}.log")),
        })
    }
}

/// Runs the ring to its end.
///
/// # Errors
/// When it cannot start or cannot go on; the message holds the last words of the role concerned.
pub(crate) async fn run(recipe: &Recipe, resume: bool, stop: &mut StopSignals) -> anyhow::Result<RingEnd> {
    let folder = RingFolder::of(&recipe.output);
    if folder.journal().exists() && !resume {
        let journal = folder.journal();
        let advice = "go on with --resume, or remove the folder to start anew";
        return Err(BadInput(format!("{} holds an unfinished run: {advice}", journal.display())).into());
    }
    folder.create()?;
    let (mut supervisor, address) =
        Supervisor::start(coordinator(recipe, &folder)?, &folder.address_file("coordinator")).await?;
    for unit in members(recipe, &folder, &address)? {
        supervisor.add(unit)?;
    }
    let mut progress = RingProgress::new(recipe, &folder, &address);
    progress.started(&supervisor.process_ids());
    let ended = watch(&mut supervisor, &mut progress, &address, stop).await;
    supervisor.kill_all();
    let ended = ended?;
    progress.finish(ended, supervisor.restarts);
    Ok(ended)
}

async fn watch(
    supervisor: &mut Supervisor,
    progress: &mut RingProgress,
    address: &str,
    stop: &mut StopSignals,
) -> anyhow::Result<RingEnd> {
    let mut observer = Observer::new(address.to_owned());
    let mut tend = tokio::time::interval(TEND);
    let mut ask = tokio::time::interval(ASK);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = tend.tick() => {
                if let Some(ended) = supervisor.tend()? {
                    // Told to stop once more: those who have not left yet are killed.
                    tokio::select! {
                        () = supervisor.dismiss() => {}
                        () = stop.next() => {}
                    }
                    return Ok(ended);
                }
            }
            _ = ask.tick() => {
                // A coordinator that is being restarted does not answer; the progress stays as it was.
                if let Some(status) = observer.status().await {
                    progress.show(&status);
                }
            }
            () = stop.next() => {
                supervisor.interrupt();
                progress.interrupted();
            }
        }
    }
}

fn coordinator(recipe: &Recipe, folder: &RingFolder) -> anyhow::Result<Program> {
    let mut config = recipe.coordinator.clone();
    config.listen = loopback();
    config.journal = folder.journal();
    config.steps_file = Some(folder.steps());
    config.send_filtered = recipe.sends_filtered();
    folder.program("coordinator", "sluice-coordinator", &config)
}

/// Every process but the coordinator.
fn members(recipe: &Recipe, folder: &RingFolder, address: &str) -> anyhow::Result<Vec<Unit>> {
    let mut units = Vec::new();
    for number in 0..recipe.processes.reward_servers {
        let name = format!("reward-server-{number}");
        let mut config = recipe.reward_server.clone();
        config.member = name.clone();
        config.coordinator = Some(address.to_owned());
        config.listen = loopback();
        config.deterministic = recipe.scores_deterministically();
        let program = folder.program(&name, "sluice-reward-server", &config)?;
        units.push(Unit::new(vec![program]));
    }
    units.push(learner(recipe, folder, address)?);
    for number in 0..recipe.processes.actors {
        let name = format!("actor-{number}");
        let mut config = recipe.actor.clone();
        config.member = name.clone();
        config.coordinator = address.to_owned();
        let program = folder.program(&name, "sluice-actor", &config)?;
        units.push(Unit::new(vec![program]));
    }
    Ok(units)
}

/// All ranks of the learner: one unit.
fn learner(recipe: &Recipe, folder: &RingFolder, address: &str) -> anyhow::Result<Unit> {
    let ranks = recipe.processes.learner_ranks;
    let rendezvous = format!("127.0.0.1:{}", if ranks > 1 { free_port()? } else { 0 });
    let mut programs = Vec::new();
    for rank in 0..ranks {
        let name = if ranks == 1 { "learner".to_owned() } else { format!("learner-rank-{rank}") };
        let mut config = recipe.learner.clone();
        config.coordinator = address.to_owned();
        config.listen = loopback();
        config.checkpoints = folder.checkpoints();
        (config.rank, config.world_size) = (rank, ranks);
        config.rendezvous = rendezvous.clone();
        programs.push(folder.program(&name, "sluice-learner", &config)?);
    }
    Ok(Unit::new(programs))
}

fn loopback() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind(loopback()).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// The newest whole checkpoint and the last batch in its weights.
///
/// # Errors
/// When there is none.
pub(crate) fn newest_checkpoint(checkpoints: &Path) -> anyhow::Result<(PathBuf, BatchId)> {
    let newest = Checkpoints::new(checkpoints, 0).newest()?;
    newest.with_context(|| format!("{} holds no checkpoint", checkpoints.display()))
}
