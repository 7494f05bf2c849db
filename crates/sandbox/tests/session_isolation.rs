//! Two sessions that work together find no way to each other, and none that is over lives on in the next.
//! In both tiers.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use std::time::Duration;

use arena::{Census, alone, descendants, tight};
use sandbox::{GraderConfig, Interpreters, Limits, Session, SessionLimits, Tier};

const TIERS: [Tier; 2] = [Tier::A, Tier::B];

/// Ways from one session to another: what one does, and what another one looks at. Each says `through`
/// where it gets somewhere, and something else, or an exception, or its interpreter's end, where it does
/// not.
const WAYS: [(&str, &str, &str); 11] = [
    (
        "a segment of shared memory",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.shmget(0x5151, 4096, 0o1666) >= 0: print('through')",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.shmget(0x5151, 4096, 0o666) >= 0: print('through')",
    ),
    (
        "a message queue of System V",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.msgget(0x5151, 0o1666) >= 0: print('through')",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.msgget(0x5151, 0o666) >= 0: print('through')",
    ),
    (
        "a message queue of POSIX",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.syscall(240, b'planted', 0o102, 0o666, 0) >= 0: print('through')",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.syscall(240, b'planted', 0o2, 0o666, 0) >= 0: print('through')",
    ),
    (
        "a key of the kernel",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.syscall(248, b'user', b'planted', b'x', 1, -4) >= 0: print('through')",
        "import ctypes\nc = ctypes.CDLL(None)\nif c.syscall(249, b'user', b'planted', 0, 0) >= 0: print('through')",
    ),
    (
        "a socket without a path",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0planted')\ns.listen()\nprint('through')",
        "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0planted')\nprint('through')",
    ),
    (
        "a port of loopback",
        "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 51515))\ns.listen()\nprint('through')",
        "import socket\ns = socket.create_connection(('127.0.0.1', 51515), 1)\nprint('through')",
    ),
    (
        "files in folders that programs share",
        "for folder in ('/tmp', '/var/tmp', '/dev/shm', '/run', '/', '/box'):\n    try: open(folder + '/planted', 'w').write('x')\n    except OSError: pass",
        "import os\nif any(os.path.exists(f + '/planted') for f in ('/tmp', '/var/tmp', '/dev/shm', '/run', '/', '/box')): print('through')",
    ),
    (
        "the lock of a file that both read",
        "import fcntl, os\nheld = open(os.__file__)\nfcntl.flock(held, fcntl.LOCK_EX)",
        "import fcntl, os\nheld = open(os.__file__)\ntry: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: print('through')",
    ),
    (
        "flags and place of the descriptors that a zygote hands on",
        "import fcntl, os\nfor fd in range(32):\n    try:\n        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)\n        os.lseek(fd, 77, 0)\n    except OSError: pass",
        "import fcntl, os\nfor fd in (0, 1, 2, 3, 4):\n    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND: print('through')\n    try:\n        if os.lseek(fd, 0, 1) == 77: print('through')\n    except OSError: pass",
    ),
    (
        "the priority of all processes of the user",
        "import os\nos.setpriority(os.PRIO_USER, 0, 17)\nprint('through')",
        "import os\nif os.getpriority(os.PRIO_PROCESS, 0) == 17: print('through')",
    ),
    (
        "the limits and processors of the parent",
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (3, 3))\nprint('through')",
        "import os\nos.sched_setaffinity(os.getppid(), {0})\nprint('through')",
    ),
];

fn limits() -> SessionLimits {
    let (cpu, wall) = (Duration::from_secs(60), Duration::from_secs(240));
    let step = Limits { cpu: Duration::from_secs(10), wall: Duration::from_secs(3), ..tight() };
    SessionLimits { step, steps: 1000, cpu, wall, shown_bytes: 2000 }
}

fn interpreters(tier: Tier, workers: usize) -> Interpreters {
    let config = GraderConfig { tier: Some(tier), workers, ..GraderConfig::default() };
    Interpreters::start(config).unwrap_or_else(|error| panic!("{error}"))
}

fn says(session: &mut Session, code: &str) -> String {
    session.step(code).unwrap_or_else(|error| panic!("{code}: {error}")).output
}

#[test]
fn sessions_that_work_together_find_no_way_to_each_other() {
    let _alone = alone();
    for tier in TIERS {
        let interpreters = interpreters(tier, 2);
        let [mut one, mut other] = [(); 2].map(|()| interpreters.open(limits()).unwrap());
        for (name, leave, look) in WAYS {
            let left = says(&mut one, leave);
            assert!(!left.contains("through"), "{tier}: {name} can be made: {left}");
            let seen = says(&mut other, look);
            assert!(!seen.contains("through"), "{tier}: {name} leads to another session: {seen}");
        }
        // Nor is there anything for the one that has the zygote next.
        drop(one);
        let mut next = interpreters.open(limits()).unwrap();
        for (name, _, look) in WAYS {
            let seen = says(&mut next, look);
            assert!(!seen.contains("through"), "{tier}: {name} outlives its session: {seen}");
        }
    }
}

#[test]
fn a_session_finds_no_process_but_its_own() {
    let _alone = alone();
    for tier in TIERS {
        let interpreters = interpreters(tier, 2);
        let [mut one, mut other] = [(); 2].map(|()| interpreters.open(limits()).unwrap());
        says(&mut other, "kept = 'its own'");
        // Every process that there can be, by its number, its group and its folder.
        let search = "import os\nfound = set()\nfor pid in range(1, 33000):\n    if pid == os.getpid(): continue\n    \
                      for target in (pid, -pid):\n        try:\n            os.kill(target, 0)\n            found.add(target)\n        except OSError: pass\n\
                      for name in ('cmdline', 'environ', 'mem', 'maps', 'status'):\n    for pid in list(range(1, 500)) + [os.getppid()]:\n        \
                      if pid == os.getpid(): continue\n        try:\n            open(f'/proc/{pid}/{name}', 'rb')\n            found.add((pid, name))\n        except OSError: pass\n\
                      print(found - {-os.getpid(), -os.getpgid(0)})";
        assert_eq!(says(&mut one, search), "set()\n", "{tier}");
        // Signals to everybody.
        says(
            &mut one,
            "import os, signal\nfor name in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL): os.kill(-1, name)",
        );
        says(
            &mut one,
            "import os, signal\nfor name in (signal.SIGSTOP, signal.SIGKILL): os.kill(os.getppid(), name)",
        );
        assert_eq!(says(&mut other, "kept"), "'its own'\n", "{tier}");
    }
}

#[test]
fn nothing_of_a_session_survives_its_end() {
    let _alone = alone();
    for tier in TIERS {
        let interpreters = interpreters(tier, 1);
        let warm = {
            let mut session = interpreters.open(limits()).unwrap();
            says(&mut session, "1");
            drop(session);
            interpreters.open(limits()).map(drop).unwrap();
            Census::take()
        };
        let mut session = interpreters.open(limits()).unwrap();
        // A process without a parent, a terminal, a group and ears; and a thread that begins another one.
        let stay = "import os, signal, threading, time\ndef stay():\n    os.setsid()\n    for number in range(1, 65):\n        \
                    try: signal.signal(number, signal.SIG_IGN)\n        except (OSError, ValueError): pass\n    \
                    if os.fork() == 0:\n        os.setsid()\n        while True:\n            try: open('/tmp/planted', 'a').write('x')\n            \
                    except OSError: pass\n            time.sleep(0.01)\n    os._exit(0)\n\
                    def again():\n    while True: threading.Thread(target=time.sleep, args=(0.01,)).start(); time.sleep(0.01)\n\
                    threading.Thread(target=again, daemon=True).start()\nif os.fork() == 0: stay()";
        says(&mut session, stay);
        let left: Vec<u32> = descendants(std::process::id()).iter().map(|(pid, _)| *pid).collect();
        assert!(tier == Tier::B || left.len() > warm.processes + 1, "nothing was left to survive: {left:?}");
        drop(session);
        warm.await_again(Duration::from_secs(10));
        let mut next = interpreters.open(limits()).unwrap();
        let look =
            "import os, time\ntime.sleep(0.05)\nprint(os.path.exists('/tmp/planted'), 'stay' in globals())";
        assert_eq!(says(&mut next, look), "False False\n", "{tier}");
    }
}
