//! Sessions: state that lasts, limits that end an interpreter or an episode, output that is cut, isolation
//! between episodes, and nothing that is left behind. In both tiers.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use std::time::Duration;

use arena::{Census, Moment, alone, descendants, tight};
use sandbox::{
    Error, GraderConfig, Interpreters, Interruption, Limits, Session, SessionLimits, Step, StepEnd, Tier,
};

const TIERS: [Tier; 2] = [Tier::A, Tier::B];

fn interpreters(tier: Tier, workers: usize) -> Interpreters {
    let config = GraderConfig { tier: Some(tier), workers, ..GraderConfig::default() };
    Interpreters::start(config).unwrap_or_else(|error| panic!("{error}"))
}

fn limits() -> SessionLimits {
    SessionLimits {
        step: Limits { value_bytes: 64 << 10, ..tight() },
        steps: 1000,
        cpu: Duration::from_secs(60),
        wall: Duration::from_secs(240),
        shown_bytes: 2000,
    }
}

fn opened(tier: Tier) -> (Interpreters, Session) {
    let interpreters = interpreters(tier, 1);
    let session = interpreters.open(limits()).unwrap();
    (interpreters, session)
}

fn ran(session: &mut Session, code: &str) -> Step {
    session.step(code).unwrap_or_else(|error| panic!("{code}: {error}"))
}

/// The output of code that comes to its end.
fn says(session: &mut Session, code: &str) -> String {
    let step = ran(session, code);
    assert_eq!(step.end, StepEnd::Finished, "{code}: {step:?}");
    step.output
}

/// The interpreter is new: nothing of the steps before is there, and it works.
fn is_new(session: &mut Session) {
    let step = ran(session, "x");
    assert!(step.end == StepEnd::Raised && step.output.contains("NameError"), "{step:?}");
    assert_eq!(says(session, "x = 6\nx * 7"), "42\n");
}

#[test]
fn what_a_step_defines_the_next_one_has() {
    let _alone = alone();
    for tier in TIERS {
        let (_interpreters, mut session) = opened(tier);
        assert_eq!(says(&mut session, "import math\nx = [1, 2]\ndef f(n):\n    return n + len(x)\n"), "");
        assert_eq!(says(&mut session, "x.append(3)\nprint('é', f(1), end='!')\nmath.floor(2.5)"), "é 4!2\n");
        assert_eq!(says(&mut session, "_ + 1"), "3\n");
        assert_eq!(says(&mut session, "None"), "");
        assert_eq!(says(&mut session, "import sys\nprint('to stderr', file=sys.stderr)"), "to stderr\n");
        assert_eq!(says(&mut session, ""), "");
        // An exception is shown with its line, and what was defined before it stays.
        let raised = ran(&mut session, "y = 5\nx.nothing\ny = 6");
        assert_eq!(raised.end, StepEnd::Raised);
        assert!(raised.output.contains("line 2") && raised.output.contains("x.nothing"), "{raised:?}");
        assert!(raised.output.contains("AttributeError") && !raised.output.contains("console"), "{raised:?}");
        assert_eq!(says(&mut session, "y"), "5\n");
        for (code, complaint) in [
            ("x = (", "SyntaxError"),
            ("\0", "null byte"),
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("exit()", "SystemExit"),
            ("input()", "EOFError"),
            ("def deep(n):\n    return deep(n + 1)\ndeep(0)", "RecursionError"),
            ("class E(Exception):\n    def __str__(self):\n        raise self\nraise E()", "E"),
        ] {
            let raised = ran(&mut session, code);
            assert!(raised.end == StepEnd::Raised && raised.output.contains(complaint), "{code}: {raised:?}");
        }
        assert_eq!(says(&mut session, "x"), "[1, 2, 3]\n");
        assert_eq!(session.usage().steps, 16);
    }
}

#[test]
fn a_step_beyond_a_limit_ends_the_interpreter_and_not_the_session() {
    let _alone = alone();
    for tier in TIERS {
        let (_interpreters, mut session) = opened(tier);
        let cases: [(&str, Interruption); 7] = [
            ("while True: pass", Interruption::Cpu),
            (
                "b = bytearray(400 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nwhile True: pass",
                Interruption::Memory,
            ),
            ("while True: print('x' * 1000)", Interruption::Output),
            ("import os\nos._exit(0)", Interruption::Died),
            ("import os\nos.kill(os.getpid(), 9)", Interruption::Died),
            ("import os\nos.close(3)\nos.close(4)\nos._exit(1)", Interruption::Died),
            ("import os\nos.abort()", Interruption::Died),
        ];
        for (code, why) in cases {
            says(&mut session, "x = 1\nprint('before')");
            let step = ran(&mut session, code);
            // Without memory the program may be told so first.
            let is_told = why == Interruption::Memory && step.output.contains("MemoryError");
            assert!(step.end == StepEnd::Ended(why) || is_told, "{tier} {code}: {step:?}");
            if !is_told {
                assert!(step.output.contains("what was defined in it is gone"), "{step:?}");
                is_new(&mut session);
            }
        }
        let mut slow =
            SessionLimits { step: Limits { wall: Duration::from_millis(700), ..limits().step }, ..limits() };
        slow.steps = 3;
        drop(session);
        let mut session = _interpreters.open(slow).unwrap();
        let step = ran(&mut session, "import time\nprint('sleeps', flush=True)\ntime.sleep(30)");
        assert_eq!(step.end, StepEnd::Ended(Interruption::Wall), "{step:?}");
        assert!(step.output.starts_with("sleeps\n[time limit: "), "{step:?}");
        assert!(step.wall >= Duration::from_millis(600) && step.cpu < Duration::from_millis(400), "{step:?}");
        is_new(&mut session);
        assert!(session.is_over());
        assert!(matches!(session.step("1"), Err(Error::SessionOver)));
    }
}

#[test]
fn an_episode_is_bounded_over_all_its_steps() {
    let _alone = alone();
    for tier in TIERS {
        let interpreters = interpreters(tier, 1);
        let limits = SessionLimits { cpu: Duration::from_millis(600), ..limits() };
        let mut session = interpreters.open(limits).unwrap();
        // Each step is within its own limit of half a second.
        let burn = "import time\nend = time.process_time() + 0.25\nwhile time.process_time() < end: pass";
        let mut ends = Vec::new();
        while !session.is_over() {
            ends.push(ran(&mut session, burn).end);
            assert!(ends.len() < 6, "{ends:?} {:?}", session.usage());
        }
        assert!(ends.len() >= 2, "{ends:?}");
        assert!(session.usage().cpu >= Duration::from_millis(600), "{:?}", session.usage());
        assert!(matches!(session.step("1"), Err(Error::SessionOver)));
    }
}

#[test]
fn long_output_is_cut_marked_and_counted() {
    let _alone = alone();
    let (_interpreters, mut session) = opened(Tier::A);
    let step = ran(&mut session, "for i in range(10000): print(i)\n1 / 0");
    let whole: usize = (0..10000).map(|i| i.to_string().len() + 1).sum();
    assert!(
        step.output.starts_with("0\n1\n2\n")
            && step.output.ends_with("ZeroDivisionError: division by zero\n")
    );
    let mark = format!("\n[{} bytes are left out here]\n", step.left_out);
    assert!(step.output.contains(&mark), "{}", step.output);
    assert!(step.output.len() - mark.len() <= 2000);
    let shown = step.output.len() - mark.len();
    let traceback = session.usage().output_bytes as usize - whole;
    assert_eq!(shown + step.left_out as usize, whole + traceback);
    assert!((50..400).contains(&traceback), "{traceback}");
    let long = ran(&mut session, &"#".repeat(70_000));
    assert!(long.end == StepEnd::Raised && long.output.contains("at most 65536"), "{long:?}");
}

/// Processor time of the guest's process.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields.split_ascii_whitespace().skip(11).take(4).map(|field| field.parse::<u64>().unwrap()).sum()
}

#[test]
fn nothing_runs_between_two_steps() {
    let _alone = alone();
    for tier in TIERS {
        let before: Vec<u32> = descendants(std::process::id()).iter().map(|(pid, _)| *pid).collect();
        let (_interpreters, mut session) = opened(tier);
        says(
            &mut session,
            "import threading\ncount = 0\ndef spin():\n    global count\n    while True: count += 1\nthreading.Thread(target=spin, daemon=True).start()",
        );
        if tier == Tier::A {
            let fork = "import os\nif os.fork() == 0:\n    while True: pass";
            says(&mut session, fork);
        }
        let guests = || {
            let all = descendants(std::process::id()).into_iter().filter(|(pid, _)| !before.contains(pid));
            all.map(|(pid, _)| (pid, ticks(pid))).collect::<Vec<_>>()
        };
        // Other zygotes may still be warming up: once all stand still, all have to stay so.
        let until = Moment::now() + Duration::from_secs(5);
        let first = loop {
            let before = guests();
            std::thread::sleep(Duration::from_millis(200));
            if guests() == before || Moment::now() >= until {
                break before;
            }
        };
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(guests(), first, "{tier}: something runs while nobody waits for it");
        // And it goes on with the next step.
        let counted = "import time\nbefore = count\ntime.sleep(0.1)\nprint(count > before)";
        assert_eq!(says(&mut session, counted), "True\n");
    }
}

#[test]
fn forged_replies_fool_only_their_own_step() {
    let _alone = alone();
    let (_interpreters, mut session) = opened(Tier::A);
    // Junk in advance, more than a pipe holds, in place of the reply, and a key that is guessed.
    says(&mut session, "import os\nos.write(4, b'F' * 100)\nos.write(4, bytes(16) + b'F')");
    assert_eq!(says(&mut session, "print(1)"), "1\n");
    says(&mut session, "os.write(4, b'x' * 60000)");
    assert_eq!(says(&mut session, "print(2)"), "2\n");
    let guess = "import time\nos.write(4, (5).to_bytes(8, 'little') + bytes(8) + b'F')\ntime.sleep(0.3)\nprint('late')";
    let fooled = ran(&mut session, guess);
    assert_eq!((fooled.end, fooled.output.as_str()), (StepEnd::Finished, ""));
    // Its rest comes with the next step, and the one after that is right again.
    let next = ran(&mut session, "print(3)");
    assert!(next.output.contains("late"), "{next:?}");
    assert_eq!(says(&mut session, "print(4)").lines().last(), Some("4"));
    // Streams that are replaced or closed harm nobody.
    says(&mut session, "import sys, io\nsys.stdout = io.StringIO()\nprint('nowhere')");
    says(&mut session, "sys.stdout = sys.__stdout__\nsys.stderr.close()");
    assert_eq!(says(&mut session, "print(5)"), "5\n");
    // A reply that never comes is a wall limit, of a process whose pipe is closed too.
    let mut short = limits();
    short.step.wall = Duration::from_millis(600);
    drop(session);
    let mut session = _interpreters.open(short).unwrap();
    let mute = ran(&mut session, "import os\nos.close(4)");
    assert!(matches!(mute.end, StepEnd::Ended(_)), "{mute:?}");
    is_new(&mut session);
}

#[test]
fn sessions_do_not_see_each_other() {
    let _alone = alone();
    for tier in TIERS {
        let interpreters = interpreters(tier, 2);
        let (mut one, mut other) =
            (interpreters.open(limits()).unwrap(), interpreters.open(limits()).unwrap());
        let write = "import os\ntry:\n    open('mark', 'w').write('1')\n    open('/tmp/mark', 'w').write('1')\nexcept OSError as error:\n    print('no', error.errno)\nsecret = 7";
        let wrote = ran(&mut one, write);
        assert!(tier == Tier::A || wrote.output.starts_with("no "), "{wrote:?}");
        let look =
            "import os\nprint(os.path.exists('mark'), os.path.exists('/tmp/mark'), 'secret' in globals())";
        assert_eq!(says(&mut other, look), "False False False\n");
        if tier == Tier::A {
            assert_eq!(says(&mut one, "open('mark').read()"), "'1'\n");
        }
        // The other's process can neither be seen nor signalled.
        let pid = says(&mut one, "import os\nos.getpid()");
        let kill = format!(
            "import os\ntry:\n    os.kill({}, 0)\n    print('reached', os.getpid())\nexcept OSError:\n    print('no')",
            pid.trim()
        );
        let reached = says(&mut other, &kill);
        // With a PID namespace of its own the same number is its own process.
        let own = says(&mut other, "os.getpid()");
        assert!(
            reached == "no\n" || reached.trim() == format!("reached {}", own.trim()) && own == pid,
            "{reached} {own}"
        );
        // The zygote of a session that is over serves the next one, which finds nothing of it.
        drop(one);
        let mut third = interpreters.open(limits()).unwrap();
        assert_eq!(says(&mut third, look), "False False False\n");
        // There is an interpreter for two at a time, and a third waits.
        drop(third);
    }
}

#[test]
fn hostile_steps_leave_nothing_behind() {
    let _alone = alone();
    for tier in TIERS {
        let before = Census::take();
        {
            let interpreters = interpreters(tier, 1);
            let mut session = interpreters.open(limits()).unwrap();
            let warm = Census::take();
            for code in [
                "import os\nfor _ in range(200):\n    try:\n        if os.fork() == 0:\n            while True: pass\n    except OSError:\n        break",
                "import threading, time\nfor _ in range(300): threading.Thread(target=time.sleep, args=(60,)).start()",
                "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass\n    os._exit(0)\nos.wait()",
                "import signal\nfor n in range(1, 30):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
                "import os\nos.kill(-1, 19)",
                "import os\nopen('hard', 'w').write('x' * (3 << 20))\nos.symlink('/', 'result')",
            ] {
                let step = ran(&mut session, code);
                assert!(step.wall < Duration::from_secs(20), "{code}: {step:?}");
                // Whatever became of it: the next step works, or says that the interpreter is a new one.
                let next = ran(&mut session, "print(6 * 7)");
                assert!(
                    next.output.ends_with("42\n") || matches!(next.end, StepEnd::Ended(_)),
                    "{code}: {next:?}"
                );
            }
            drop(session);
            let mut session = interpreters.open(limits()).unwrap();
            assert_eq!(says(&mut session, "1 + 1"), "2\n");
            drop(session);
            let again = interpreters.open(limits()).unwrap();
            assert!(
                Census::take().processes <= warm.processes + 1,
                "{:?} {warm:?}",
                descendants(std::process::id())
            );
            drop(again);
        }
        before.await_again(Duration::from_secs(10));
    }
}

#[test]
fn ten_thousand_steps_leave_no_residue() {
    let _alone = alone();
    let before = Census::take();
    {
        let interpreters = interpreters(Tier::A, 2);
        let steps = 10_000 / 2;
        let mut middle = None;
        let started = Moment::now();
        for episode in 0..100 {
            let limits = SessionLimits {
                steps: 1 << 20,
                wall: Duration::from_secs(3600),
                cpu: Duration::from_secs(3600),
                ..limits()
            };
            let (mut one, mut other) =
                (interpreters.open(limits.clone()).unwrap(), interpreters.open(limits).unwrap());
            for step in 0..steps / 100 {
                let code = "import os\nopen(f'mark{len(os.listdir())}', 'w').write('x' * 1000)\nx = globals().get('x', 0) + 1\nx";
                assert_eq!(says(&mut one, code), format!("{}\n", step + 1));
                assert_eq!(says(&mut other, code), format!("{}\n", step + 1));
            }
            drop((one, other));
            if episode == 10 {
                middle = Some((Census::take(), resident()));
            }
        }
        let (census, memory) = middle.unwrap();
        census.await_again(Duration::from_secs(10));
        let grown = resident().saturating_sub(memory);
        assert!(grown < 8 << 20, "the server has grown by {grown} bytes");
        println!("10,000 steps in {:?}; the server has grown by {grown} bytes", started.elapsed());
    }
    before.await_again(Duration::from_secs(10));
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}
