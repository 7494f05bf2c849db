//! A reward server in a process of its own: its memory can be read, and it can be killed.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use reward_server::Config;
use service::config::render;

/// The process; killed with this.
pub(crate) struct Process {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Process {
    pub(crate) fn start(config: &Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("reward.toml");
        std::fs::write(&file, render(config)).unwrap();
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_sluice-reward-server")));
        command.arg("--config").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), _dir: dir }
    }

    /// The most memory it has ever had resident.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let process = procfs::process::Process::new(self.child.id().cast_signed()).unwrap();
        process.status().unwrap().vmhwm.unwrap() * 1024
    }

    /// SIGKILL: it can do nothing about it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killed before, perhaps.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
