//! The roles of a ring as processes that nobody supervises.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::{TinyRing, binary};

/// Longest wait for what a process does.
const TIMEOUT: Duration = Duration::from_secs(240);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A ring whose processes are started one by one, each with the configuration that `sluice run` wrote for a
/// ring with the same recipe.
#[derive(Debug)]
pub struct Roles {
    /// Journal, checkpoints, logs.
    folder: PathBuf,
    configs: PathBuf,
    batches: u64,
}

/// One process.
#[derive(Debug)]
pub struct RoleProcess {
    child: Child,
    log: PathBuf,
}

impl Roles {
    /// A ring in `folder` with the models and the configuration of one that has run.
    pub fn of(like: &TinyRing, folder: &Path, batches: u64) -> Self {
        Self { folder: folder.to_owned(), configs: like.output().join("ring/config"), batches }
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts a coordinator over a journal, and returns with where it listens.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn coordinator(&self, journal: &str, listen: &str) -> anyhow::Result<(RoleProcess, String)> {
        let file = self.path("coordinator.address.json");
        let _ = fs::remove_file(&file);
        let settings = [
            format!("journal={}", self.path(journal).display()),
            format!("steps_file={}", self.path(&format!("{journal}.steps.jsonl")).display()),
            format!("samples.file={}", self.path("samples.jsonl").display()),
            format!("service.address_file={}", file.display()),
            format!("batches={}", self.batches),
            format!("listen={listen}"),
        ];
        let process = self.start("coordinator", "coordinator", &settings)?;
        let read = || serde_json::from_slice::<Value>(&fs::read(&file).ok()?).ok();
        let addresses = wait_for("the coordinator to listen", read)?;
        let address = addresses["grpc"].as_str().context("an address")?.to_owned();
        Ok((process, address))
    }

    /// Starts a member with the configuration of this name, and logs under another.
    ///
    /// # Errors
    /// When its binary is missing.
    pub fn member(&self, config: &str, log: &str, coordinator: &str) -> anyhow::Result<RoleProcess> {
        self.member_with(config, log, coordinator, &[])
    }

    /// The same with settings on top.
    ///
    /// # Errors
    /// When its binary is missing.
    pub fn member_with(
        &self,
        config: &str,
        log: &str,
        coordinator: &str,
        settings: &[&str],
    ) -> anyhow::Result<RoleProcess> {
        let mut all = vec![format!("coordinator={coordinator}")];
        if config == "learner" {
            all.push(format!("checkpoints={}", self.path("checkpoints").display()));
        }
        all.extend(settings.iter().map(|setting| (*setting).to_owned()));
        self.start(config, log, &all)
    }

    fn start(&self, config: &str, log: &str, settings: &[String]) -> anyhow::Result<RoleProcess> {
        let role = config.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
        let mut command = Command::new(binary(&format!("sluice-{role}"))?);
        command.arg("--config").arg(self.configs.join(format!("{config}.toml")));
        command.args(["--set", "service.listen_metrics=127.0.0.1:0"]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
        command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
        let log = self.path(&format!("{log}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(RoleProcess { child: command.spawn()?, log })
    }

    /// The batches whose steps the coordinator over `journal` has recorded.
    pub fn steps(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.path("journal.steps.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["batch"].as_u64()).collect()
    }

    /// Waits until so many batches are trained.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn wait_for_batches(&self, batches: usize) -> anyhow::Result<()> {
        wait_for("batches", || (self.steps().len() >= batches).then_some(()))
    }

    /// The checkpoint of the last batch.
    ///
    /// # Errors
    /// When there is none.
    pub fn last_checkpoint(&self) -> anyhow::Result<Checkpoint> {
        checkpoint(&self.path("checkpoints"), self.batches)
    }
}

/// What a checkpoint holds of the training.
#[derive(Debug)]
pub struct Checkpoint {
    /// The policy's file, byte for byte.
    pub policy: Vec<u8>,
    /// For each batch, the places in groups whose responses it trained on, like `e0-p3-s1`. The attempt that
    /// filled a place is left out: one that was lost is issued again, and draws the same tokens.
    pub places: Vec<Vec<String>>,
}

/// The checkpoint of a batch.
///
/// # Errors
/// When there is none.
pub fn checkpoint(folder: &Path, batch: u64) -> anyhow::Result<Checkpoint> {
    let folder = folder.join(format!("step-{batch:08}"));
    let policy = fs::read(folder.join("policy/model.safetensors")).context("read the checkpoint's policy")?;
    let consumed = fs::read_to_string(folder.join("consumed.jsonl")).context("read what it consumed")?;
    let places = consumed.lines().map(places).collect::<anyhow::Result<_>>()?;
    Ok(Checkpoint { policy, places })
}

/// The places of a line of consumed.jsonl.
fn places(line: &str) -> anyhow::Result<Vec<String>> {
    let line: Value = serde_json::from_str(line).context("a line of consumed.jsonl")?;
    let responses = line["responses"].as_array().context("responses of a batch")?;
    responses.iter().map(place).collect()
}

/// The place of a rollout's id: all but its attempt.
fn place(id: &Value) -> anyhow::Result<String> {
    let place = id.as_str().and_then(|id| Some(id.rsplit_once("-a")?.0.to_owned()));
    place.with_context(|| format!("{id} is no rollout's id"))
}

impl RoleProcess {
    /// Its process id.
    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// What it has logged, and those that logged to the same file before.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time; shows what it logged.
    pub fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = wait_for("the end of a process", || self.child.try_wait().ok().flatten());
        ended.with_context(|| fs::read_to_string(&self.log).unwrap_or_default())
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until there is something.
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    for _ in 0..TIMEOUT.as_millis() / POLL_INTERVAL.as_millis() {
        if let Some(found) = found() {
            return Ok(found);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    anyhow::bail!("waited {TIMEOUT:?} for {what}")
}
