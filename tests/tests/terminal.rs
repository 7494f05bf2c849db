//! What is said on a terminal: a question before something is moved, and a view that is left by a key.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use tests::{TinyRing, binary};
use tokio::time::Instant;

/// Longer than anything here takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A command on a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    fn start(mut command: Command) -> Self {
        let size = Winsize { ws_row: 60, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let ours = File::from(pty.master);
        let theirs = File::from(pty.slave);
        command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
        command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
        let child = command.spawn().unwrap();
        // It holds their end open, so that ours would never see the last one closed.
        drop(command);
        let (sends, shown) = channel();
        let mut reads = ours.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The other end closed is an error here.
            while let Ok(count) = reads.read(&mut bytes)
                && count > 0
                && sends.send(bytes[..count].to_vec()).is_ok()
            {}
        });
        Self { child, keys: ours, shown, text: String::new() }
    }

    /// Waits until something is shown that was not before.
    fn wait_for(&mut self, wanted: &str) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.text.contains(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{wanted:?} was not shown:\n{}", self.text),
            }
        }
        let (_, rest) = self.text.split_once(wanted).unwrap();
        self.text = rest.to_owned();
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + TIMEOUT;
        while let Ok(bytes) = self.shown.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
        (self.child.wait().unwrap(), std::mem::take(&mut self.text))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn moved_aside(output: &Path) -> usize {
    let names = fs::read_dir(output).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains(".until-")).count()
}

#[test]
fn what_is_to_be_done_again_is_moved_when_the_user_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=1");
    ring.run().unwrap();
    let again = || {
        let mut command = Command::new(binary("sluice").unwrap());
        command.arg("run").arg(folder.path().join("recipe.toml")).args(["--redo-from", "ring"]);
        command.args(["--set", "coordinator.batches=1"]);
        command.args(["--set", &format!("output={}", ring.output().display())]);
        Terminal::start(command)
    };
    let weights = ring.weights().unwrap();
    for no in ["n\n", "\n"] {
        let mut terminal = again();
        terminal.wait_for("move ");
        terminal.wait_for("aside and do it again? [y/N]");
        terminal.press(no);
        let (status, said) = terminal.end();
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("nothing was moved and nothing was started"), "{said}");
        assert_eq!(moved_aside(&ring.output()), 0);
        assert_eq!(ring.weights().unwrap(), weights);
    }
    let mut terminal = again();
    terminal.wait_for("[y/N]");
    terminal.press("y\n");
    let (status, said) = terminal.end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(moved_aside(&ring.output()), 2, "the ring and its policy: {said}");
    ring.check_complete(1).unwrap();
}

#[test]
fn a_live_view_shows_the_run_says_when_nobody_answers_and_is_left_by_q() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=200");
    let mut running = ring.start().unwrap();
    running.wait_for_batches(1).unwrap();
    let addresses = fs::read_to_string(ring.output().join("ring/coordinator.address.json")).unwrap();
    let addresses: serde_json::Value = serde_json::from_str(&addresses).unwrap();
    let top = || {
        let mut command = Command::new(binary("sluice").unwrap());
        command.args(["top", "--every", "0.2", "--coordinator", addresses["grpc"].as_str().unwrap()]);
        command
    };
    let mut view = Terminal::start(top());
    view.wait_for("tiny-ring · Running · waits for ");
    view.wait_for("batch");
    view.wait_for("/200");
    // Curves of the steps before it was started, too.
    // What was blank and is blank is not drawn: words of a line come one by one.
    view.wait_for("┌score:");
    view.wait_for("┌scored");
    view.wait_for("actor-0");
    view.press("q");
    let (status, said) = view.end();
    assert!(status.success(), "{said}");
    let is_left = said.contains("\u{1b}[?1049l") && said.ends_with("\u{1b}[?25h");
    assert!(is_left, "the terminal is as it was: {said:?}");

    // Without a terminal there are lines, and whoever reads no further ends it without a word.
    let mut lines = top().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut reader = BufReader::new(lines.stdout.take().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(
            line.starts_with("batch ") && line.contains("/200: ") && line.contains("waits for "),
            "{line}"
        );
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
    drop(reader);
    let output = lines.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");

    let mut view = Terminal::start(top());
    view.wait_for("tiny-ring");
    // Twice: at once.
    for _ in 0..2 {
        running.stop().unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    running.end().unwrap();
    view.wait_for("(the coordinator does not answer; this is its last word)");
    view.press("q");
    let (status, said) = view.end();
    assert!(status.success(), "{said}");
    // Without a terminal there is nobody to press a key: it says so and ends where nobody answers at first.
    let output = top().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no coordinator answers at "), "{said}");
}
