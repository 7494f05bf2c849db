//! A coordinator's process in a folder of its own.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longest wait for anything that a process does.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct CoordinatorProcess {
    folder: tempfile::TempDir,
    child: Child,
    pub(crate) address: String,
    pub(crate) metrics: String,
}

impl CoordinatorProcess {
    /// Starts one over a data set of twenty prompts, with these settings on top.
    pub(crate) async fn start(settings: &[&str]) -> Self {
        let folder = Self::folder();
        let child = spawn(command(&folder, settings), &folder);
        Self::started(folder, child).await
    }

    /// Starts one that may have so many descriptors open.
    pub(crate) async fn with_descriptors(limit: u32) -> Self {
        let folder = Self::folder();
        let coordinator = command(&folder, &[]);
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={limit}")).arg(coordinator.get_program()).args(coordinator.get_args());
        let child = spawn(limited, &folder);
        Self::started(folder, child).await
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut prompts = String::new();
        for n in 0..20 {
            writeln!(prompts, "{{\"prompt\": \"question {n}\", \"test\": \"hidden {n}\"}}").unwrap();
        }
        std::fs::write(folder.path().join("prompts.jsonl"), prompts).unwrap();
        folder
    }

    async fn started(folder: tempfile::TempDir, child: Child) -> Self {
        let (address, metrics) = (String::new(), String::new());
        let mut this = Self { folder, child, address, metrics };
        this.listens().await;
        this
    }

    /// Waits until it says where it listens.
    pub(crate) async fn listens(&mut self) {
        let addresses = self.file("addresses.json");
        let deadline = Instant::now() + TIMEOUT;
        while !addresses.exists() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "it does not listen: {}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
        let text = std::fs::read_to_string(addresses).unwrap();
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        self.address = parsed["grpc"].as_str().unwrap().to_owned();
        self.metrics = parsed["metrics"].as_str().unwrap().to_owned();
    }

    /// Kills it and starts another over its journal.
    pub(crate) fn start_again(&mut self, settings: &[&str]) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(command(&self.folder, settings), &self.folder);
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs another one over the same journal, to its end.
    pub(crate) fn second(&self) -> Output {
        let address_file = format!("service.address_file={}", self.file("other.json").display());
        // It waits as long as the first may take to leave.
        command(&self.folder, &[&address_file, "service.grace_period=1s"]).output().unwrap()
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until it has ended, and returns its exit code.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for CoordinatorProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(mut command: Command, folder: &tempfile::TempDir) -> Child {
    let _ = std::fs::remove_file(folder.path().join("addresses.json"));
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

fn command(folder: &tempfile::TempDir, settings: &[&str]) -> Command {
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-coordinator"));
    let fixed = [
        "listen=127.0.0.1:0".to_owned(),
        "service.listen_metrics=127.0.0.1:0".to_owned(),
        format!("service.address_file={}", path("addresses.json")),
        format!("journal={}", path("journal")),
        format!("data.path={}", path("prompts.jsonl")),
        "batch_prompts=2".to_owned(),
        "group_size=4".to_owned(),
    ];
    for setting in fixed.iter().map(String::as_str).chain(settings.iter().copied()) {
        command.args(["--set", setting]);
    }
    command
}
