//! The system calls a guest may make.
//!
//! An allow-list: what is not on it goes to the supervisor by user notification, which refuses, counts, or
//! kills ([`rulings`]). The 32-bit ABI is killed by the filter itself. Three programs:
//!
//! * *direct*: one process, threads, no files to write. No call that can reach another process or change the
//!   file system, because the guest shares namespaces with others (tier B, and testers in tier A);
//! * *nested*: also children, signals among them, and files; all of it stays in the run's own namespaces;
//! * *closing*: installed after the listener of one of the others was handed over, forbids what that needed.

use std::collections::BTreeMap;

use libc::*;

use crate::bpf::{Action, Condition, Policy, assemble, put};
use crate::seccomp_lists::{ABSENT, ALLOWED, ALLOWED_NESTED, KILL, PROCESS, SCRATCH, UNTIL_CLOSED, old};
use crate::wire::{Ruling, RulingEntry};

/// Programs as the kernel takes them, one `u64` an instruction.
pub(crate) struct Filters {
    pub(crate) direct: Vec<u64>,
    pub(crate) nested: Vec<u64>,
    pub(crate) closing: Vec<u64>,
}

/// The three programs.
pub(crate) fn filters() -> Filters {
    let (mut direct, mut nested) = (common(), common());

    put(&mut direct, SYS_openat, if_reading(2));
    if let Some(open) = old::OPEN {
        put(&mut direct, open, if_reading(1));
    }
    let thread = CLONE_THREAD as u64;
    put(
        &mut direct,
        SYS_clone,
        Action::AllowIf(Condition::Masked { argument: 0, mask: thread, value: thread }),
    );

    for call in ALLOWED_NESTED.iter().chain(old::ALLOWED_NESTED) {
        put(&mut nested, *call, Action::Allow);
    }
    let namespaces = CLONE_NEWNS
        | CLONE_NEWCGROUP
        | CLONE_NEWUTS
        | CLONE_NEWIPC
        | CLONE_NEWUSER
        | CLONE_NEWPID
        | CLONE_NEWNET;
    let mask = u64::from(namespaces.cast_unsigned());
    put(&mut nested, SYS_clone, Action::AllowIf(Condition::Masked { argument: 0, mask, value: 0 }));

    let mut closing = Policy::new();
    for call in UNTIL_CLOSED {
        put(&mut closing, *call, Action::Errno(EPERM as u16));
    }
    Filters {
        direct: assemble(&direct, &Action::Ask),
        nested: assemble(&nested, &Action::Ask),
        closing: assemble(&closing, &Action::Allow),
    }
}

/// What both kinds of guest may do.
fn common() -> Policy {
    let mut policy = Policy::new();
    for call in ALLOWED.iter().chain(old::ALLOWED).chain(UNTIL_CLOSED) {
        put(&mut policy, *call, Action::Allow);
    }
    // A pair of streams inside the guest; never a socket that could be connected.
    put(&mut policy, SYS_socketpair, if_one_of(0, &[AF_UNIX]));
    // Without an address: a datagram pair could otherwise reach a named or abstract socket.
    put(&mut policy, SYS_sendto, if_zero(4));
    // Reading limits, not setting them.
    put(&mut policy, SYS_prlimit64, if_zero(2));
    // No locks or leases (a side channel between runs on shared read-only files), no pipe sizes, no signal
    // owners.
    let fcntls = [F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ];
    put(&mut policy, SYS_fcntl, if_one_of(1, &fcntls));
    let ioctls = [TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX].map(|request| request as c_int);
    put(&mut policy, SYS_ioctl, if_one_of(1, &ioctls));
    let prctls = [PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_CAPBSET_READ, PR_SET_VMA];
    put(&mut policy, SYS_prctl, if_one_of(0, &prctls));
    policy
}

/// Where this argument, the flags of an open, asks for reading only.
fn if_reading(argument: u8) -> Action {
    let mask = (O_ACCMODE | O_CREAT | O_TRUNC) as u64;
    Action::AllowIf(Condition::Masked { argument, mask, value: O_RDONLY as u64 })
}

fn if_zero(argument: u8) -> Action {
    Action::AllowIf(Condition::Masked { argument, mask: u64::MAX, value: 0 })
}

fn if_one_of(argument: u8, values: &[c_int]) -> Action {
    Action::AllowIf(Condition::OneOf(argument, values.iter().map(|value| value.cast_unsigned()).collect()))
}

/// What the supervisor answers; a call without an entry is refused with `EPERM`.
pub(crate) fn rulings() -> Vec<RulingEntry> {
    let table: [(&[c_long], Ruling, Ruling); 11] = [
        (KILL, Ruling::Kill, Ruling::Kill),
        (old::KILL, Ruling::Kill, Ruling::Kill),
        (ABSENT, Ruling::Absent, Ruling::Absent),
        (PROCESS, Ruling::Process, Ruling::Refuse),
        (old::PROCESS, Ruling::Process, Ruling::Refuse),
        // A nested guest's clone is refused by the filter only where it asks for a namespace.
        (&[SYS_clone], Ruling::Process, Ruling::Kill),
        (SCRATCH, Ruling::Scratch, Ruling::Refuse),
        (old::SCRATCH, Ruling::Scratch, Ruling::Refuse),
        (&[SYS_openat], Ruling::Write, Ruling::Refuse),
        (old::OPEN.as_slice(), Ruling::Write, Ruling::Refuse),
        (&[SYS_kill, SYS_tgkill], Ruling::SelfOnly, Ruling::Refuse),
    ];
    let mut rulings = BTreeMap::new();
    for (calls, direct, nested) in table {
        for syscall in calls.iter().filter_map(|call| u16::try_from(*call).ok()) {
            rulings.insert(syscall, RulingEntry { syscall, direct: direct as u8, nested: nested as u8 });
        }
    }
    rulings.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::tests::evaluate;
    use crate::seccomp_lists::{ALLOWED, ALLOWED_NESTED, KILL, old};

    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xc000_003e;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xc000_00b7;

    fn allowed(program: &[u64], call: c_long, arguments: [u64; 6]) -> bool {
        evaluate(program, ARCH, call as u32, arguments) == SECCOMP_RET_ALLOW
    }

    #[test]
    fn no_call_is_both_allowed_and_dangerous() {
        let dangerous: Vec<_> = KILL.iter().chain(old::KILL).collect();
        for call in ALLOWED.iter().chain(ALLOWED_NESTED).chain(old::ALLOWED).chain(old::ALLOWED_NESTED) {
            assert!(!dangerous.contains(&call), "system call {call}");
        }
    }

    #[test]
    fn no_guest_reaches_a_peer_or_sets_a_limit() {
        let Filters { direct, nested, closing } = filters();
        for program in [&direct, &nested] {
            for call in [
                SYS_socket,
                SYS_connect,
                SYS_bind,
                SYS_listen,
                SYS_accept4,
                SYS_sendmmsg,
                SYS_recvmsg,
                SYS_setsockopt,
            ] {
                assert!(!allowed(program, call, [0; 6]), "system call {call}");
            }
            assert!(allowed(program, SYS_socketpair, [AF_UNIX as u64, 0, 0, 0, 0, 0]));
            assert!(!allowed(program, SYS_socketpair, [AF_INET as u64, 0, 0, 0, 0, 0]));
            assert!(allowed(program, SYS_sendto, [3, 4, 5, 0, 0, 0]));
            assert!(!allowed(program, SYS_sendto, [3, 4, 5, 0, 1 << 40, 16]));
            assert!(allowed(program, SYS_prlimit64, [0, 7, 0, 1, 0, 0]));
            assert!(!allowed(program, SYS_prlimit64, [0, 7, 1, 0, 0, 0]));
            assert!(!allowed(program, SYS_ioctl, [0, TIOCSTI, 0, 0, 0, 0]));
            assert!(!allowed(program, SYS_fcntl, [0, F_SETLK as u64, 0, 0, 0, 0]));
            assert!(!allowed(program, SYS_flock, [0; 6]) && !allowed(program, SYS_io_uring_setup, [0; 6]));
        }
        assert!(!allowed(&closing, SYS_sendmsg, [0; 6]) && !allowed(&closing, SYS_seccomp, [0; 6]));
        assert!(allowed(&closing, SYS_read, [0; 6]));
    }

    #[test]
    fn a_direct_guest_makes_threads_and_reads_files_and_no_more() {
        let Filters { direct, nested, .. } = filters();
        let thread =
            (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM) as u64;
        assert!(allowed(&direct, SYS_clone, [thread, 0, 0, 0, 0, 0]));
        assert!(!allowed(&direct, SYS_clone, [SIGCHLD as u64, 0, 0, 0, 0, 0]));
        assert!(allowed(&nested, SYS_clone, [SIGCHLD as u64, 0, 0, 0, 0, 0]));
        assert!(!allowed(
            &nested,
            SYS_clone,
            [(CLONE_NEWUSER | SIGCHLD).cast_unsigned().into(), 0, 0, 0, 0, 0]
        ));
        let open = |flags: c_int| allowed(&direct, SYS_openat, [0, 0, flags.cast_unsigned().into(), 0, 0, 0]);
        assert!(open(O_RDONLY | O_CLOEXEC) && open(O_RDONLY | O_DIRECTORY));
        assert!(
            !open(O_WRONLY) && !open(O_RDWR) && !open(O_CREAT) && !open(O_TRUNC) && !open(O_TMPFILE | O_RDWR)
        );
        for call in [SYS_kill, SYS_tgkill, SYS_execve, SYS_mkdirat, SYS_unlinkat, SYS_fchmodat, SYS_fchownat]
        {
            assert!(!allowed(&direct, call, [0; 6]), "system call {call}");
        }
    }
}
