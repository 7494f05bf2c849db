//! Every step of the set-up that fails, fails the execution: with each system call of the set-up refused by a
//! real seccomp filter around the helper, no guest ever runs unprotected, and the failure names the step.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use sandbox::{Error, Grader, GraderConfig, Limits, Tier, Verdict, probe};
use tempfile::TempDir;

/// A program in the helper's place: installs a filter that refuses one system call, where the file beside it
/// says so, and becomes the helper.
const WRAPPER: &str = r#"#!/usr/bin/python3
import ctypes, os, struct, sys
folder = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(folder, "refuse")) as file:
    rule = file.read().split()
if rule:
    number, argument, mask, value, errno = map(int, rule)
    # ld nr; jeq number else allow; ld argument (low half); and mask; jeq value else allow; ret errno; ret
    # allow
    step = lambda code, jt, jf, k: struct.pack("HBBI", code, jt, jf, k)
    test = [step(0x20, 0, 0, 16 + 8 * argument), step(0x54, 0, 0, mask & 0xFFFFFFFF), step(0x15, 0, 1, value)]
    program = [step(0x20, 0, 0, 0), step(0x15, 0, len(test) + 1, number)] + test
    program += [step(0x06, 0, 0, 0x50000 | errno), step(0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(program))
    prog = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.create_string_buffer(prog), 0, 0) == 0
os.execv("@INIT@", ["sluice-sandbox-init"])
"#;

struct Faulty {
    folder: TempDir,
}

impl Faulty {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let wrapper = folder.path().join("init");
        fs::write(&wrapper, WRAPPER.replace("@INIT@", env!("CARGO_BIN_EXE_sluice-sandbox-init"))).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let faulty = Self { folder };
        faulty.refuse(None);
        faulty
    }

    /// From the next zygote on: nothing, or this call where the argument's bits under the mask have the
    /// value.
    fn refuse(&self, fault: Option<&Fault>) {
        let rule = fault.map(|fault| {
            format!("{} {} {} {} {}", fault.call, fault.argument, fault.mask, fault.value, libc::EPERM)
        });
        fs::write(self.folder.path().join("refuse"), rule.unwrap_or_default()).unwrap();
    }

    fn init(&self) -> PathBuf {
        self.folder.path().join("init")
    }

    fn config(&self, tier: Tier) -> GraderConfig {
        GraderConfig { init: Some(self.init()), tier: Some(tier), workers: 1, ..GraderConfig::default() }
    }
}

struct Fault {
    call: libc::c_long,
    argument: u32,
    mask: i32,
    value: i32,
    /// Part of the name of the step that has to be blamed.
    step: &'static str,
}

const fn fault(call: libc::c_long, step: &'static str) -> Fault {
    Fault { call, argument: 0, mask: 0, value: 0, step }
}

/// The call where all these bits of an argument are set.
const fn with(call: libc::c_long, argument: u32, bits: i32, step: &'static str) -> Fault {
    Fault { call, argument, mask: bits, value: bits, step }
}

/// The call where the argument is exactly this.
const fn exactly(call: libc::c_long, argument: u32, value: i32, step: &'static str) -> Fault {
    Fault { call, argument, mask: -1, value, step }
}

/// Every system call of the set-up, by tier. What other steps need too is refused for the arguments of one
/// step only.
fn faults(tier: Tier) -> Vec<Fault> {
    let mut faults = vec![
        fault(libc::SYS_landlock_create_ruleset, "build the Landlock ruleset"),
        fault(libc::SYS_landlock_add_rule, "build the Landlock ruleset"),
        fault(libc::SYS_landlock_restrict_self, "enter the Landlock domain"),
        fault(libc::SYS_seccomp, "install the seccomp filter"),
        fault(libc::SYS_close_range, "descriptors"),
        fault(libc::SYS_capset, "drop the capabilities"),
        fault(libc::SYS_setsid, "start a session"),
        fault(libc::SYS_pidfd_open, "open the run's pidfd"),
        fault(libc::SYS_memfd_create, "compile the seccomp filters"),
        exactly(libc::SYS_prctl, 0, libc::PR_SET_PDEATHSIG, "arm the parent-death signal"),
        exactly(libc::SYS_prctl, 0, libc::PR_SET_DUMPABLE, "set no_new_privs"),
        exactly(libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS, "set no_new_privs"),
        exactly(libc::SYS_prctl, 0, libc::PR_CAP_AMBIENT, "drop the capabilities"),
        exactly(libc::SYS_socketpair, 1, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, "seccomp listener"),
    ];
    if tier == Tier::A {
        faults.extend([
            with(libc::SYS_clone, 0, libc::CLONE_NEWUSER, "create user, PID, mount"),
            exactly(libc::SYS_unshare, 0, libc::CLONE_NEWPID, "fork the run into its"),
            with(libc::SYS_unshare, 0, libc::CLONE_NEWNS, "fork the run into its"),
            with(libc::SYS_mount, 3, libc::MS_PRIVATE as i32, "make mounts private"),
            with(libc::SYS_mount, 3, libc::MS_BIND as i32, "bind the interpreter"),
            with(libc::SYS_mount, 3, libc::MS_NOEXEC as i32, "mount /proc"),
            exactly(libc::SYS_mount, 3, (libc::MS_NOSUID | libc::MS_NODEV) as i32, "mount the root tmpfs"),
            exactly(libc::SYS_prctl, 0, libc::PR_CAPBSET_DROP, "drop the capabilities"),
            fault(libc::SYS_mount_setattr, "bind the interpreter"),
            fault(libc::SYS_pivot_root, "pivot_root"),
            fault(libc::SYS_umount2, "pivot_root and detach"),
            fault(libc::SYS_sethostname, "create user, PID, mount"),
            fault(libc::SYS_setns, "fork the run into its"),
        ]);
        if nix::unistd::geteuid().is_root() {
            faults.extend([
                fault(libc::SYS_setgroups, "change to the guest's user"),
                fault(libc::SYS_setresgid, "change to the guest's user"),
                fault(libc::SYS_setresuid, "change to the guest's user"),
            ]);
        }
    }
    faults
}

/// A fault that is there from the start: no grader.
fn refuses_to_start(tier: Tier) {
    let faulty = Faulty::new();
    for fault in faults(tier) {
        faulty.refuse(Some(&fault));
        let error = match Grader::start(faulty.config(tier)) {
            Err(error @ Error::TierUnavailable { .. }) => error.to_string(),
            other => panic!("system call {} refused: {other:?}", fault.call),
        };
        assert!(error.contains(fault.step), "system call {}: {error}", fault.call);
    }
}

#[test]
fn refuses_to_start_in_tier_a() {
    refuses_to_start(Tier::A);
}

#[test]
fn refuses_to_start_in_tier_b() {
    refuses_to_start(Tier::B);
}

/// A fault that appears later: internal errors or no sandbox, never a verdict on the response; and all is
/// well when the fault is gone. One fault of each kind of step: while the helper builds, while the zygote
/// prepares, in each guest.
fn fails_every_execution(tier: Tier) {
    let faulty = Faulty::new();
    let problem = arena::problem("increment");
    let late = [
        libc::SYS_landlock_add_rule,
        libc::SYS_landlock_restrict_self,
        libc::SYS_seccomp,
        libc::SYS_capset,
        libc::SYS_setns,
        libc::SYS_setresuid,
    ];
    for fault in faults(tier).into_iter().filter(|fault| late.contains(&fault.call)) {
        faulty.refuse(None);
        let grader = arena::grader_with(GraderConfig {
            max_runs_per_zygote: 1,
            queue_timeout: std::time::Duration::from_millis(700),
            ..faulty.config(tier)
        });
        let deadline = arena::Moment::now() + std::time::Duration::from_secs(20);
        while grader.stats().idle_candidates + grader.stats().idle_testers < 4
            && arena::Moment::now() < deadline
        {
            std::thread::yield_now();
        }
        faulty.refuse(Some(&fault));
        let mut failed = false;
        for _ in 0..6 {
            match grader.grade(&problem, arena::RIGHT, &Limits::default()) {
                // The zygotes from before the fault.
                Ok(grade) if grade.verdict == Verdict::Accepted && !failed => {}
                Ok(grade) => {
                    assert_eq!(
                        grade.verdict,
                        Verdict::InternalError,
                        "system call {}: {grade:?}",
                        fault.call
                    );
                    failed = true;
                }
                Err(Error::Unavailable { reason, .. }) => {
                    assert!(reason.contains(fault.step), "system call {}: {reason}", fault.call);
                    failed = true;
                    break;
                }
                Err(Error::Overloaded { .. }) => failed = true,
                Err(other) => panic!("system call {}: {other}", fault.call),
            }
        }
        assert!(failed, "system call {} was refused and nothing happened", fault.call);
        faulty.refuse(None);
        let deadline = arena::Moment::now() + std::time::Duration::from_secs(30);
        loop {
            let grade = grader.grade(&problem, arena::RIGHT, &Limits::default());
            if grade.as_ref().is_ok_and(|grade| grade.verdict == Verdict::Accepted) {
                break;
            }
            assert!(
                arena::Moment::now() < deadline,
                "system call {}: did not recover: {grade:?}",
                fault.call
            );
        }
    }
}

#[test]
fn fails_every_execution_in_tier_a() {
    fails_every_execution(Tier::A);
}

#[test]
fn fails_every_execution_in_tier_b() {
    fails_every_execution(Tier::B);
}

#[test]
fn without_user_namespaces_tier_b_is_chosen_and_the_minimum_is_kept() {
    let faulty = Faulty::new();
    // What the default seccomp profile of a Kubernetes pod does.
    faulty.refuse(Some(&with(libc::SYS_clone, 0, libc::CLONE_NEWUSER, "")));
    let config = GraderConfig { init: Some(faulty.init()), workers: 1, ..GraderConfig::default() };
    let report = probe(&config).unwrap();
    assert_eq!(report.b, None);
    assert!(report.a.as_ref().is_some_and(|failure| failure.errno == libc::EPERM), "{report}");
    assert!(report.to_string().contains("tier A does not work: create user, PID, mount"), "{report}");
    let grader = arena::grader_with(config.clone());
    assert_eq!(grader.tier(), Tier::B);
    drop(grader);
    match Grader::start(GraderConfig { minimum_tier: Tier::A, ..config }) {
        Err(error @ Error::BelowMinimumTier { minimum: Tier::A, .. }) => {
            assert!(
                error
                    .to_string()
                    .starts_with("minimum tier A is not available: tier A does not work: create"),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_landlock_no_tier_works() {
    let faulty = Faulty::new();
    faulty.refuse(Some(&fault(libc::SYS_landlock_create_ruleset, "")));
    let config = GraderConfig { init: Some(faulty.init()), workers: 1, ..GraderConfig::default() };
    assert_eq!(probe(&config).unwrap().best(), None);
    assert!(matches!(Grader::start(config), Err(Error::BelowMinimumTier { minimum: Tier::B, .. })));
}

#[test]
fn what_is_missing_is_named() {
    let config = GraderConfig { init: Some("/does/not/exist".into()), ..GraderConfig::default() };
    let error = Grader::start(config).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("sluice-sandbox-init is not at /does/not/exist"), "{error}");
    let config = GraderConfig { interpreter: Some("/bin/true".into()), ..GraderConfig::default() };
    let error = Grader::start(config).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("python interpreter /bin/true:"), "{error}");
    let config = GraderConfig { workers: 0, ..GraderConfig::default() };
    assert!(matches!(Grader::start(config), Err(Error::Config(_))));
    let config = GraderConfig { import_paths: vec!["relative".into()], ..GraderConfig::default() };
    assert!(matches!(Grader::start(config), Err(Error::Config(_))));
}
