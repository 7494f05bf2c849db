//! The system calls a guest may make.
//!
//! An allow-list: what is not on it goes to the supervisor by user notification, which refuses, counts, or kills
//! ([`rulings`]). The 32-bit ABI is killed by the filter itself. Three programs:
//!
//! * *direct*: one process, threads, no files to write. No call that can reach another process or change the file
//!   system, because the guest shares namespaces with others (tier B, and testers in tier A);
//! * *nested*: also children, signals among them, and files; all of it stays in the run's own namespaces;
//! * *closing*: installed after the listener of one of the others was handed over, forbids what that needed.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::failure::Failure;
use crate::wire::{Ruling, RulingEntry, Step};

/// Programs as the kernel takes them, one `u64` an instruction.
pub(crate) struct Filters {
    pub(crate) direct: Vec<u64>,
    pub(crate) nested: Vec<u64>,
    pub(crate) closing: Vec<u64>,
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Without conditions in every guest.
const ALLOWED: &[c_long] = &[
    // Memory.
    SYS_brk, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_msync, SYS_munmap, SYS_membarrier,
    // Descriptors the guest has.
    SYS_close, SYS_close_range, SYS_dup, SYS_dup3, SYS_fadvise64, SYS_fdatasync, SYS_fstat, SYS_fsync, SYS_ftruncate,
    SYS_getdents64, SYS_lseek, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read,
    SYS_readv, SYS_sendfile, SYS_write, SYS_writev,
    // Looking at names; Landlock decides what can be opened.
    SYS_chdir, SYS_faccessat, SYS_faccessat2, SYS_fchdir, SYS_fstatfs, SYS_getcwd, SYS_newfstatat, SYS_readlinkat,
    SYS_statfs, SYS_statx, SYS_umask,
    // Pipes, waiting, timers.
    SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_pipe2, SYS_ppoll,
    SYS_pselect6, SYS_timerfd_create, SYS_timerfd_gettime, SYS_timerfd_settime, SYS_getitimer, SYS_setitimer,
    SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_gettimeofday, SYS_nanosleep, SYS_times,
    // Socket pairs: no call here can name a peer.
    SYS_getpeername, SYS_getsockname, SYS_getsockopt, SYS_recvfrom, SYS_setsockopt, SYS_shutdown,
    // Threads and signals of the guest itself.
    SYS_exit, SYS_exit_group, SYS_futex, SYS_get_robust_list, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigpending, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_sched_yield,
    SYS_set_robust_list, SYS_set_tid_address, SYS_sigaltstack, SYS_wait4, SYS_waitid,
    // Facts.
    SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getgroups, SYS_getpgid, SYS_getpid, SYS_getppid, SYS_getpriority,
    SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrusage, SYS_getsid, SYS_gettid, SYS_getuid, SYS_getcpu,
    SYS_sched_get_priority_max, SYS_sched_get_priority_min, SYS_sched_getaffinity, SYS_sched_getparam,
    SYS_sched_getscheduler, SYS_sched_rr_get_interval, SYS_sysinfo, SYS_uname, SYS_capget,
];

/// Handing over the listener needs these two; the closing program takes them back.
const UNTIL_CLOSED: &[c_long] = &[SYS_sendmsg, SYS_seccomp];

/// Additionally where the guest has namespaces and a scratch folder of its own.
const ALLOWED_NESTED: &[c_long] = &[
    SYS_execve, SYS_kill, SYS_tgkill, SYS_tkill, SYS_setpgid, SYS_setsid, SYS_pidfd_open, SYS_openat, SYS_mkdirat,
    SYS_unlinkat, SYS_renameat2, SYS_linkat, SYS_symlinkat, SYS_fchmod, SYS_fchmodat, SYS_utimensat, SYS_truncate,
    SYS_fallocate, SYS_copy_file_range,
];

#[cfg(target_arch = "x86_64")]
mod old {
    //! Calls that newer architectures never had.
    use libc::*;

    pub(super) const ALLOWED: &[c_long] = &[
        SYS_access, SYS_alarm, SYS_arch_prctl, SYS_dup2, SYS_epoll_create, SYS_epoll_wait, SYS_eventfd, SYS_getpgrp,
        SYS_getrlimit, SYS_lstat, SYS_pause, SYS_pipe, SYS_poll, SYS_readlink, SYS_select, SYS_stat, SYS_time,
    ];
    pub(super) const ALLOWED_NESTED: &[c_long] = &[
        SYS_fork, SYS_vfork, SYS_open, SYS_creat, SYS_mkdir, SYS_rmdir, SYS_unlink, SYS_rename, SYS_link, SYS_symlink,
        SYS_chmod, SYS_utime, SYS_utimes, SYS_renameat, SYS_futimesat,
    ];
    pub(super) const PROCESS: &[c_long] = &[SYS_fork, SYS_vfork];
    pub(super) const SCRATCH: &[c_long] = &[
        SYS_creat, SYS_mkdir, SYS_rmdir, SYS_unlink, SYS_rename, SYS_link, SYS_symlink, SYS_chmod, SYS_utime,
        SYS_utimes, SYS_renameat, SYS_futimesat,
    ];
    pub(super) const KILL: &[c_long] = &[
        SYS_ioperm, SYS_iopl, SYS_modify_ldt, SYS_uselib, SYS_ustat, SYS__sysctl, SYS_nfsservctl,
        SYS_lookup_dcookie,
    ];
    pub(super) const OPEN: Option<c_long> = Some(SYS_open);
}
#[cfg(target_arch = "aarch64")]
mod old {
    use libc::c_long;

    pub(super) const ALLOWED: &[c_long] = &[];
    pub(super) const ALLOWED_NESTED: &[c_long] = &[];
    pub(super) const PROCESS: &[c_long] = &[];
    pub(super) const SCRATCH: &[c_long] = &[];
    pub(super) const KILL: &[c_long] = &[];
    pub(super) const OPEN: Option<c_long> = None;
}

/// No program under test needs these; whoever makes one is trying to get out.
const KILL: &[c_long] = &[
    SYS_acct, SYS_add_key, SYS_adjtimex, SYS_bpf, SYS_chroot, SYS_clock_adjtime, SYS_clock_settime, SYS_delete_module,
    SYS_fanotify_init, SYS_fanotify_mark, SYS_finit_module, SYS_fsconfig, SYS_fsmount, SYS_fsopen, SYS_fspick,
    SYS_init_module, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_kcmp, SYS_kexec_file_load,
    SYS_kexec_load, SYS_keyctl, SYS_mount, SYS_mount_setattr, SYS_move_mount, SYS_name_to_handle_at,
    SYS_open_by_handle_at, SYS_open_tree, SYS_perf_event_open, SYS_personality, SYS_pidfd_getfd, SYS_pivot_root,
    SYS_process_madvise, SYS_process_vm_readv, SYS_process_vm_writev, SYS_ptrace, SYS_quotactl, SYS_reboot,
    SYS_request_key, SYS_setdomainname, SYS_sethostname, SYS_setns, SYS_settimeofday, SYS_swapoff, SYS_swapon,
    SYS_syslog, SYS_umount2, SYS_unshare, SYS_userfaultfd, SYS_vhangup,
];

/// New calls whose absence the C library knows how to live with.
const ABSENT: &[c_long] = &[SYS_clone3, SYS_openat2, SYS_fchmodat2, SYS_futex_waitv];

/// Needs another process.
const PROCESS: &[c_long] = &[SYS_clone, SYS_execve, SYS_execveat];

/// Needs a place to write to.
const SCRATCH: &[c_long] = &[
    SYS_mkdirat, SYS_unlinkat, SYS_renameat2, SYS_linkat, SYS_symlinkat, SYS_fchmod, SYS_fchmodat, SYS_utimensat,
    SYS_truncate, SYS_fallocate, SYS_copy_file_range, SYS_mknodat, SYS_memfd_create,
];

/// Stands for "ask the supervisor" until the program is built: the library has no word for user notification.
const ASK: SeccompAction = SeccompAction::Trace(ASK_MARK);
const ASK_MARK: u32 = 0x51;

/// The three programs.
pub(crate) fn filters() -> Result<Filters, Failure> {
    let mut direct = common()?;
    let mut nested = common()?;

    let writes = (O_ACCMODE | O_CREAT | O_TRUNC) as u64;
    insert(&mut direct, SYS_openat, vec![condition(2, Len::Dword, Op::MaskedEq(writes), O_RDONLY as u64)?])?;
    if let Some(open) = old::OPEN {
        insert(&mut direct, open, vec![condition(1, Len::Dword, Op::MaskedEq(writes), O_RDONLY as u64)?])?;
    }
    let thread = CLONE_THREAD as u64;
    insert(&mut direct, SYS_clone, vec![condition(0, Len::Qword, Op::MaskedEq(thread), thread)?])?;

    for call in ALLOWED_NESTED.iter().chain(old::ALLOWED_NESTED) {
        nested.insert(*call, vec![]);
    }
    let namespaces = (CLONE_NEWNS
        | CLONE_NEWCGROUP
        | CLONE_NEWUTS
        | CLONE_NEWIPC
        | CLONE_NEWUSER
        | CLONE_NEWPID
        | CLONE_NEWNET) as u32;
    insert(&mut nested, SYS_clone, vec![condition(0, Len::Qword, Op::MaskedEq(namespaces.into()), 0)?])?;

    let closing = UNTIL_CLOSED.iter().map(|call| (*call, vec![])).collect();
    Ok(Filters {
        direct: compile(direct, ASK, SeccompAction::Allow)?,
        nested: compile(nested, ASK, SeccompAction::Allow)?,
        closing: compile(closing, SeccompAction::Allow, SeccompAction::Errno(EPERM.cast_unsigned()))?,
    })
}

/// What both kinds of guest may do.
fn common() -> Result<Rules, Failure> {
    let mut rules: Rules =
        ALLOWED.iter().chain(old::ALLOWED).chain(UNTIL_CLOSED).map(|call| (*call, vec![])).collect();
    // A pair of streams inside the guest; never a socket that could be connected.
    insert(&mut rules, SYS_socketpair, vec![condition(0, Len::Dword, Op::Eq, AF_UNIX as u64)?])?;
    // Without an address: a datagram pair could otherwise reach a named or abstract socket.
    insert(&mut rules, SYS_sendto, vec![condition(4, Len::Qword, Op::Eq, 0)?])?;
    // Reading limits, not setting them.
    insert(&mut rules, SYS_prlimit64, vec![condition(2, Len::Qword, Op::Eq, 0)?])?;
    // No locks or leases (a side channel between runs on shared read-only files), no pipe sizes, no signal owners.
    let fcntls = [F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ];
    one_of(&mut rules, SYS_fcntl, 1, &fcntls.map(|command| command as u64))?;
    let ioctls = [TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX];
    one_of(&mut rules, SYS_ioctl, 1, &ioctls)?;
    let prctls = [PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_CAPBSET_READ, PR_SET_VMA];
    one_of(&mut rules, SYS_prctl, 0, &prctls.map(|option| option as u64))?;
    Ok(rules)
}

fn one_of(rules: &mut Rules, call: c_long, argument: u8, values: &[u64]) -> Result<(), Failure> {
    let any = values.iter().map(|value| rule(vec![condition(argument, Len::Dword, Op::Eq, *value)?]));
    rules.insert(call, any.collect::<Result<_, _>>()?);
    Ok(())
}

fn insert(rules: &mut Rules, call: c_long, all: Vec<Condition>) -> Result<(), Failure> {
    rules.insert(call, vec![rule(all)?]);
    Ok(())
}

fn rule(all: Vec<Condition>) -> Result<SeccompRule, Failure> {
    SeccompRule::new(all).map_err(|error| Failure::other(Step::SeccompRules, error))
}

fn condition(argument: u8, len: Len, op: Op, value: u64) -> Result<Condition, Failure> {
    Condition::new(argument, len, op, value).map_err(|error| Failure::other(Step::SeccompRules, error))
}

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<Vec<u64>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::other(Step::SeccompRules, error);
    let arch = TargetArch::try_from(ARCH).map_err(|error| failed(&error))?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(|error| failed(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error| failed(&error))?;
    Ok(program.iter().map(|step| encode(step.code, (step.jt, step.jf), step.k)).collect())
}

/// One instruction as the kernel reads it, with the placeholder replaced by user notification.
fn encode(code: u16, (if_true, if_false): (u8, u8), constant: u32) -> u64 {
    let returns = u32::from(code) == BPF_RET | BPF_K;
    let constant =
        if returns && constant == SECCOMP_RET_TRACE | ASK_MARK { SECCOMP_RET_USER_NOTIF } else { constant };
    let [a, b] = code.to_ne_bytes();
    let [c, d, e, f] = constant.to_ne_bytes();
    u64::from_ne_bytes([a, b, if_true, if_false, c, d, e, f])
}

/// What the supervisor answers; a call without an entry is refused with `EPERM`.
pub(crate) fn rulings() -> Vec<RulingEntry> {
    let mut table = BTreeMap::new();
    let mut put = |calls: &[c_long], direct: Ruling, nested: Ruling| {
        for call in calls {
            if let Ok(syscall) = u16::try_from(*call) {
                table.insert(syscall, RulingEntry { syscall, direct: direct as u8, nested: nested as u8 });
            }
        }
    };
    put(KILL, Ruling::Kill, Ruling::Kill);
    put(old::KILL, Ruling::Kill, Ruling::Kill);
    put(ABSENT, Ruling::Absent, Ruling::Absent);
    put(PROCESS, Ruling::Process, Ruling::Refuse);
    put(old::PROCESS, Ruling::Process, Ruling::Refuse);
    // A nested guest's clone is refused by the filter only where it asks for a namespace.
    put(&[SYS_clone], Ruling::Process, Ruling::Kill);
    put(SCRATCH, Ruling::Scratch, Ruling::Refuse);
    put(old::SCRATCH, Ruling::Scratch, Ruling::Refuse);
    put(&[SYS_openat], Ruling::Write, Ruling::Refuse);
    put(old::OPEN.as_slice(), Ruling::Write, Ruling::Refuse);
    put(&[SYS_kill, SYS_tgkill], Ruling::SelfOnly, Ruling::Refuse);
    table.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_replaces_the_placeholder_and_nothing_else() {
        let filters = filters().unwrap_or_else(|failure| panic!("{failure:?}"));
        let returns = |program: &[u64], value: u32| {
            let [a, b] = ((BPF_RET | BPF_K) as u16).to_ne_bytes();
            program.iter().filter(|step| {
                let bytes = step.to_ne_bytes();
                bytes[..2] == [a, b] && u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) == value
            }).count()
        };
        for program in [&filters.direct, &filters.nested] {
            assert!(returns(program, SECCOMP_RET_USER_NOTIF) >= 1);
            assert_eq!(returns(program, SECCOMP_RET_TRACE | ASK_MARK), 0);
            assert!(returns(program, SECCOMP_RET_KILL_PROCESS) >= 1, "another architecture must be killed");
        }
        assert_eq!(returns(&filters.closing, SECCOMP_RET_USER_NOTIF), 0);
    }

    #[test]
    fn no_call_is_both_allowed_and_dangerous() {
        let dangerous: Vec<_> = KILL.iter().chain(old::KILL).collect();
        for call in ALLOWED.iter().chain(ALLOWED_NESTED).chain(old::ALLOWED).chain(old::ALLOWED_NESTED) {
            assert!(!dangerous.contains(&call), "system call {call}");
        }
    }

    #[test]
    fn a_direct_guest_has_no_call_that_names_another_process_or_changes_a_file() {
        let forbidden = [
            SYS_kill, SYS_tgkill, SYS_tkill, SYS_execve, SYS_openat, SYS_mkdirat, SYS_unlinkat, SYS_fchmod,
            SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_setxattr, SYS_utimensat, SYS_socket, SYS_connect, SYS_bind,
            SYS_sendmsg, SYS_sendmmsg, SYS_flock, SYS_shmget, SYS_mq_open, SYS_sched_setaffinity, SYS_setpriority,
        ];
        for call in forbidden {
            assert!(!ALLOWED.contains(&call) && !old::ALLOWED.contains(&call), "system call {call}");
        }
    }
}
