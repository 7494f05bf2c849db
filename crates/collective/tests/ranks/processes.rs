//! Ranks as processes of their own, which can be killed and stopped.
//!
//! A member process runs a few scenarios and says on its standard output how far it is.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use collective::{GroupConfig, ProcessGroup, Reduce, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tch::{Device, Kind, Tensor};

use crate::threads::{TIMEOUT, barrier, config, on_threads};

/// What a member process does once it has joined.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scenario {
    /// Broadcasts of 32 MiB from rank 0, for ever.
    Broadcasts,
    /// All-reduces of 4 KiB, for ever.
    AllReduces,
    /// Nothing, until its input is closed or its group has ended.
    Idle,
    /// Hosts the store, joins as rank 0, then all-reduces for ever.
    Hosts,
    /// Joins nobody, but forms one group after the other on threads, and counts what is left of them.
    Groups,
}

impl Scenario {
    const ALL: [Self; 5] = [Self::Broadcasts, Self::AllReduces, Self::Idle, Self::Hosts, Self::Groups];

    fn name(self) -> String {
        format!("{self:?}")
    }
}

/// The size of the broadcasts in elements.
pub(crate) const BROADCAST: i64 = 8 << 20;

/// A member process; killed when dropped.
pub(crate) struct Member {
    child: Child,
    lines: Mutex<Receiver<String>>,
    _input: Option<ChildStdin>,
}

impl Member {
    /// Starts a member; with [`Scenario::Hosts`], the port is not used.
    pub(crate) fn start(scenario: Scenario, port: u16, config: &GroupConfig) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(program)
            .args(["member", &scenario.name(), &port.to_string(), &config.name])
            .args(
                [config.rank, config.world_size, config.timeout.as_millis() as usize]
                    .map(|number| number.to_string()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a member");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { _input: child.stdin.take(), child, lines: Mutex::new(lines) }
    }

    /// The rest of the next line that starts with `word`.
    pub(crate) fn line(&self, word: &str) -> String {
        let start = Instant::now();
        let lines = self.lines.lock().expect("one reader at a time");
        loop {
            let line =
                lines.recv_timeout(TIMEOUT).unwrap_or_else(|error| panic!("no line {word:?}: {error}"));
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
            assert!(start.elapsed() < TIMEOUT, "no line {word:?} among many");
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("signal a member");
    }

    /// Waits for the member to end by itself.
    pub(crate) fn ends(&mut self) {
        let start = Instant::now();
        while self.child.try_wait().expect("wait for a member").is_none() {
            assert!(start.elapsed() < TIMEOUT, "the member does not end");
            thread::yield_now();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side: `SCENARIO PORT GROUP RANK WORLD_SIZE TIMEOUT_MS`.
pub(crate) fn member(arguments: &[String]) -> ExitCode {
    let [scenario, port, name, numbers @ ..] = arguments else { return ExitCode::from(2) };
    let numbers: Vec<usize> = numbers.iter().map(|number| number.parse().expect("a number")).collect();
    let scenario = Scenario::ALL.into_iter().find(|known| known.name() == *scenario).expect("a scenario");
    let store = match scenario {
        Scenario::Groups => return groups(),
        Scenario::Hosts => Store::serve("127.0.0.1", 0, TIMEOUT).expect("serve"),
        _ => Store::connect("127.0.0.1", port.parse().expect("a port"), TIMEOUT).expect("connect"),
    };
    println!("port {}", store.port());
    let timeout = Duration::from_millis(numbers[2] as u64);
    let group = ProcessGroup::new(&store, GroupConfig { timeout, ..config(name, numbers[0], numbers[1]) });
    let group = group.expect("join");
    println!("joined");
    let start = Instant::now();
    let error = match scenario {
        Scenario::Broadcasts => {
            for_ever(|| group.broadcast(&mut Tensor::zeros([BROADCAST], (Kind::Float, Device::Cpu)), 0))
        }
        Scenario::AllReduces | Scenario::Hosts => {
            for_ever(|| group.all_reduce(&mut Tensor::zeros([1024], (Kind::Float, Device::Cpu)), Reduce::Sum))
        }
        Scenario::Groups => unreachable!("returned above"),
        Scenario::Idle => {
            thread::spawn(|| {
                // Whatever comes, it is the end of input.
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                std::process::exit(0);
            });
            while group.ended().is_none() && start.elapsed() < 2 * TIMEOUT {
                thread::yield_now();
            }
            barrier(&group).expect_err("ended, or alone for too long")
        }
    };
    println!("missing {:?}", error.missing());
    println!("error {error}");
    let start = Instant::now();
    drop(group);
    println!("dropped {}", start.elapsed().as_millis());
    ExitCode::SUCCESS
}

/// Repeats an operation until it fails, and says when it has been through a few.
fn for_ever(operation: impl Fn() -> collective::Result<()>) -> collective::Error {
    for round in 0.. {
        if let Err(error) = operation() {
            return error;
        }
        if round == 2 {
            println!("running");
        }
    }
    unreachable!("rounds do not end")
}

/// Forms 10 groups, then 50, and prints the open files and threads after each batch.
fn groups() -> ExitCode {
    for batch in [0..10, 10..60] {
        on_threads(3, |rank, store| {
            for number in batch.clone() {
                let name = format!("group-{number}");
                let group = ProcessGroup::new(&store, config(&name, rank, 3)).expect("join");
                let mut tensor = Tensor::ones([1024], (Kind::Float, Device::Cpu));
                let outcome = group.broadcast(&mut tensor, 0);
                if number % 2 == 0 {
                    outcome.expect("broadcast");
                } else if rank == 0 {
                    // Others may be in the middle of it.
                    group.abort_handle().abort("every other group");
                }
            }
        });
        // Some of it goes on threads of its own; so look until nothing has changed for a second.
        let start = Instant::now();
        let mut counts = (0, 0);
        let mut since = start;
        while since.elapsed() < Duration::from_secs(1) && start.elapsed() < TIMEOUT {
            let now = (entries("/proc/self/fd"), entries("/proc/self/task"));
            if now != counts {
                (counts, since) = (now, Instant::now());
            }
            thread::yield_now();
        }
        println!("files {} threads {}", counts.0, counts.1);
    }
    ExitCode::SUCCESS
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).expect("proc is mounted").count()
}
