//! Thousands of steps of sessions, several at once and hostile ones among them, leave nothing behind, and
//! no session sees anything of another.
//!
//! `SLUICE_SOAK_STEPS` sets how many in each tier (1,000 where not set). All of what the sandbox promises
//! is looked at with `SLUICE_SOAK_STEPS=10000 cargo test -p sandbox --test session_soak -- --nocapture`.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/allocated.rs"]
mod allocated;
#[path = "support/arena.rs"]
mod arena;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use allocated::allocated;
use arena::{Census, Moment, alone, descendants, tight};
use sandbox::{GraderConfig, Interpreters, Limits, Session, SessionLimits, StepEnd, Tier};

/// Sessions at a time.
const AT_ONCE: usize = 4;
/// Steps of a session. Of two in three sessions every third step is an attack.
const STEPS: u64 = 25;

/// Says what there is of any session.
const LOOK: &str = "
import builtins, math, os, sys
seen = [name for name in list(globals()) + dir(builtins) + dir(math) + list(os.environ) + list(sys.modules)
        if 'planted' in name]
for folder in ('.', '..', '/', '/tmp', '/var/tmp', '/dev/shm', '/run'):
    try:
        seen += [os.path.join(folder, name) for name in os.listdir(folder) if 'planted' in name]
    except OSError:
        pass
print(sorted(set(seen)))
";

/// Leaves a mark wherever one can be left. `NUMBER` is the session's.
const PLANT: &str = "
import builtins, math, os, sys, threading, time
planted_NUMBER = NUMBER
builtins.planted_NUMBER = math.planted_NUMBER = NUMBER
os.environ['planted_NUMBER'] = 'NUMBER'
sys.modules['planted_NUMBER'] = math
for folder in ('.', '..', '/', '/tmp', '/var/tmp', '/dev/shm', '/run'):
    try:
        open(folder + '/planted_NUMBER', 'w').write('NUMBER')
    except OSError:
        pass
count = 0
";

/// What harms neither the one who watches nor other sessions.
const HOSTILE: [&str; 20] = [
    "import os\nfor n in range(200): open(f'planted_NUMBER_{n}', 'w').write('x' * 1000)",
    "import os\nos.mkfifo('planted_NUMBER_fifo')\nos.symlink('/', 'planted_NUMBER_link')",
    "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        time.sleep(1000)",
    "import os\nif os.fork() == 0:\n    while True: pass",
    "import os\nwhile True: os.fork()",
    "import os, signal, time\nif os.fork() == 0:\n    os.setsid()\n    for n in range(1, 30):\n        try: signal.signal(n, signal.SIG_IGN)\n        except OSError: pass\n    if os.fork() == 0:\n        while True: time.sleep(1)\n    os._exit(0)",
    "import threading, time\nfor _ in range(8): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
    "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()",
    "import threading, time\nfor _ in range(300): threading.Thread(target=time.sleep, args=(1000,)).start()",
    "print('x' * 100000)",
    "while True: print('x' * 1000)",
    "1 / 0",
    "raise SystemExit(1)",
    "def deep(n): return deep(n + 1)\ndeep(0)",
    "while True: pass",
    "import time\ntime.sleep(1000)",
    "held = bytearray(400 << 20)\nfor at in range(0, len(held), 4096): held[at] = 1",
    "import os\nos.kill(-1, 9)",
    "import os\nheld = []\nfor _ in range(100): held.append(os.pipe())",
    "import os\nfor fd in range(3, 32):\n    try: os.write(fd, b'F' * 100); os.close(fd)\n    except OSError: pass",
];

fn interpreters(tier: Tier) -> Interpreters {
    let config = GraderConfig {
        tier: Some(tier),
        workers: AT_ONCE,
        max_runs_per_zygote: 20,
        ..GraderConfig::default()
    };
    Interpreters::start(config).unwrap_or_else(|error| panic!("{error}"))
}

fn limits() -> SessionLimits {
    SessionLimits {
        step: Limits {
            cpu: Duration::from_millis(100),
            wall: Duration::from_millis(400),
            memory_bytes: 64 << 20,
            ..tight()
        },
        steps: u32::MAX,
        cpu: Duration::from_secs(60),
        wall: Duration::from_secs(240),
        shown_bytes: 2000,
    }
}

/// A session, and what is known of it.
struct Watched {
    session: Session,
    number: u64,
    state: State,
}

/// What is known of its interpreter.
#[derive(Clone, Copy)]
enum State {
    New,
    /// It has left its marks, and so many steps have counted since.
    Planted(u64),
    /// An attack has run in it and not ended it: what it answers with may be that of its own threads and
    /// copies.
    Attacked,
}

impl Watched {
    fn step(&mut self, code: &str) -> (StepEnd, String) {
        let code = code.replace("NUMBER", &self.number.to_string());
        let step = self.session.step(&code).unwrap_or_else(|error| panic!("{code}: {error}"));
        assert!(step.output.len() < 3000, "{} bytes are shown of {code}", step.output.len());
        for mark in step.output.split("planted_").skip(1) {
            // A long output is cut, so that a number may be.
            let digits = mark.split(|character: char| !character.is_ascii_digit()).next().unwrap();
            let is_own = self.number.to_string().starts_with(digits);
            assert!(is_own, "session {} sees what is none of its own: {}", self.number, step.output);
        }
        if matches!(step.end, StepEnd::Ended(_)) {
            self.state = State::New;
        }
        (step.end, step.output)
    }

    /// A step that comes to its end with this output.
    fn says(&mut self, code: &str, output: &str) {
        assert_eq!(self.step(code), (StepEnd::Finished, output.to_owned()), "{code}");
    }

    /// Its own state is there, and nobody else's. A new interpreter has none.
    fn honest(&mut self) {
        match self.state {
            State::New => {
                self.says(LOOK, "[]\n");
                self.says(PLANT, "");
                // What looks sees what is there.
                let (_, own) = self.step(LOOK);
                assert!(
                    own.contains("'planted_"),
                    "session {} does not see its own marks: {own}",
                    self.number
                );
                self.state = State::Planted(0);
            }
            State::Planted(counted) => {
                let expected = format!("{} {}\n", self.number, counted + 1);
                self.says("count += 1\nprint(planted_NUMBER, count)", &expected);
                self.state = State::Planted(counted + 1);
            }
            State::Attacked => drop(self.step(LOOK)),
        }
    }

    /// How an attack ended.
    fn attacked(&mut self, code: &str) -> StepEnd {
        let (end, _) = self.step(code);
        if !matches!(end, StepEnd::Ended(_)) {
            self.state = State::Attacked;
        }
        end
    }
}

/// Plays sessions until so many have begun; how often attacks ended how.
fn play(interpreters: &Interpreters, begun: &AtomicU64, sessions: u64) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    loop {
        let place = begun.fetch_add(1, Ordering::Relaxed);
        if place >= sessions {
            return ends;
        }
        let session = interpreters.open(limits()).unwrap();
        let mut watched = Watched { session, number: 100_000 + place, state: State::New };
        let mut attacks = 0;
        while u64::from(watched.session.usage().steps) < STEPS {
            watched.honest();
            watched.honest();
            // A third of the sessions is honest, beside those that are not.
            if !place.is_multiple_of(3) {
                // Another one each time, and each behind each in the course of time.
                let which = (place * 7 + attacks * (1 + place % 13)) % HOSTILE.len() as u64;
                attacks += 1;
                *ends.entry(format!("{:?}", watched.attacked(HOSTILE[which as usize]))).or_default() += 1;
            }
        }
    }
}

/// The census once it stays as it is: zygotes that are replaced come and go.
fn settled() -> Census {
    let deadline = Moment::now() + Duration::from_secs(20);
    let mut last = Census::take();
    let mut since = Moment::now();
    while since.elapsed() < Duration::from_millis(300) {
        assert!(Moment::now() < deadline, "processes come and go: {:?}", descendants(std::process::id()));
        std::thread::yield_now();
        let now = Census::take();
        if now != last {
            (last, since) = (now, Moment::now());
        }
    }
    last
}

/// What hostile steps have left where everybody writes.
fn planted() -> Vec<String> {
    let folders = ["/tmp", "/var/tmp", "/dev/shm", "/run", "/"].iter().flat_map(std::fs::read_dir);
    let names = folders.flatten().flatten().map(|entry| entry.path().display().to_string());
    names.filter(|path| path.contains("planted_")).collect()
}

fn soak(tier: Tier) {
    let _alone = alone();
    let steps: u64 =
        std::env::var_os("SLUICE_SOAK_STEPS").map_or(1000, |text| text.to_string_lossy().parse().unwrap());
    let interpreters = interpreters(tier);
    let round = |sessions: u64| {
        let begun = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let played: Vec<_> =
                (0..AT_ONCE).map(|_| scope.spawn(|| play(&interpreters, &begun, sessions))).collect();
            let mut all: BTreeMap<String, u64> = BTreeMap::new();
            for ends in played {
                ends.join()
                    .unwrap()
                    .into_iter()
                    .for_each(|(end, times)| *all.entry(end).or_default() += times);
            }
            all
        })
    };
    let started = Moment::now();
    // Pools and buffers reach their size first.
    round(2 * AT_ONCE as u64);
    let (before, live) = (settled(), allocated());
    let sessions = steps.div_ceil(STEPS);
    let ends = round(sessions);
    before.await_again(Duration::from_secs(20));
    assert_eq!(planted(), Vec::<String>::new());
    let grown = allocated().saturating_sub(live);
    assert!(grown < 256 << 10, "{live} bytes were allocated before, {grown} more after");
    println!(
        "tier {tier}: {steps} steps of {sessions} sessions in {:?}, {grown} bytes more; hostile ones ended {ends:?}",
        started.elapsed()
    );
    drop(interpreters);
    assert_eq!(descendants(std::process::id()), [], "processes outlive their server");
}

#[test]
fn hostile_sessions_leave_nothing_and_see_nothing_of_each_other_in_tier_a() {
    soak(Tier::A);
}

#[test]
fn hostile_sessions_leave_nothing_and_see_nothing_of_each_other_in_tier_b() {
    soak(Tier::B);
}
