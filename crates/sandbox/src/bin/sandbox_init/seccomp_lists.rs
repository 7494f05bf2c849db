//! System calls by what becomes of them. Numbers differ between architectures, so everything is by name.

use libc::*;

/// Without conditions in every guest.
pub(crate) const ALLOWED: &[c_long] = &[
    // Memory.
    SYS_brk,
    SYS_madvise,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_msync,
    SYS_munmap,
    SYS_membarrier,
    // Descriptors the guest has.
    SYS_close,
    SYS_close_range,
    SYS_dup,
    SYS_dup3,
    SYS_fadvise64,
    SYS_fdatasync,
    SYS_fstat,
    SYS_fsync,
    SYS_ftruncate,
    SYS_getdents64,
    SYS_lseek,
    SYS_pread64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwrite64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_read,
    SYS_readv,
    SYS_sendfile,
    SYS_write,
    SYS_writev,
    // Looking at names; Landlock decides what can be opened.
    SYS_chdir,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fchdir,
    SYS_fstatfs,
    SYS_getcwd,
    SYS_newfstatat,
    SYS_readlinkat,
    SYS_statfs,
    SYS_statx,
    SYS_umask,
    // Pipes, waiting, timers.
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_pipe2,
    SYS_ppoll,
    SYS_pselect6,
    SYS_timerfd_create,
    SYS_timerfd_gettime,
    SYS_timerfd_settime,
    SYS_getitimer,
    SYS_setitimer,
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_gettimeofday,
    SYS_nanosleep,
    SYS_times,
    // Socket pairs: no call here can name a peer.
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_recvfrom,
    SYS_shutdown,
    // Threads and signals of the guest itself.
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_get_robust_list,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigpending,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_set_tid_address,
    SYS_sigaltstack,
    SYS_wait4,
    SYS_waitid,
    // Facts.
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getgroups,
    SYS_getpgid,
    SYS_getpid,
    SYS_getppid,
    SYS_getpriority,
    SYS_getrandom,
    SYS_getresgid,
    SYS_getresuid,
    SYS_getrusage,
    SYS_getsid,
    SYS_gettid,
    SYS_getuid,
    SYS_getcpu,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_sched_getaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_sched_rr_get_interval,
    SYS_sysinfo,
    SYS_uname,
    SYS_capget,
];

/// Handing over the listener needs these two; the closing program takes them back.
pub(crate) const UNTIL_CLOSED: &[c_long] = &[SYS_sendmsg, SYS_seccomp];

/// Additionally where the guest has namespaces and a scratch folder of its own.
pub(crate) const ALLOWED_NESTED: &[c_long] = &[
    SYS_execve,
    SYS_kill,
    SYS_tgkill,
    SYS_tkill,
    SYS_setpgid,
    SYS_setsid,
    SYS_pidfd_open,
    SYS_openat,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat2,
    SYS_linkat,
    SYS_symlinkat,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_utimensat,
    SYS_truncate,
    SYS_fallocate,
    SYS_copy_file_range,
];

#[cfg(target_arch = "x86_64")]
pub(crate) mod old {
    //! Calls that newer architectures never had.
    use libc::*;

    pub(crate) const ALLOWED: &[c_long] = &[
        SYS_access,
        SYS_alarm,
        SYS_arch_prctl,
        SYS_dup2,
        SYS_epoll_create,
        SYS_epoll_wait,
        SYS_eventfd,
        SYS_getpgrp,
        SYS_getrlimit,
        SYS_lstat,
        SYS_pause,
        SYS_pipe,
        SYS_poll,
        SYS_readlink,
        SYS_select,
        SYS_stat,
        SYS_time,
    ];
    pub(crate) const ALLOWED_NESTED: &[c_long] = &[
        SYS_fork,
        SYS_vfork,
        SYS_open,
        SYS_creat,
        SYS_mkdir,
        SYS_rmdir,
        SYS_unlink,
        SYS_rename,
        SYS_link,
        SYS_symlink,
        SYS_chmod,
        SYS_utime,
        SYS_utimes,
        SYS_renameat,
        SYS_futimesat,
    ];
    pub(crate) const PROCESS: &[c_long] = &[SYS_fork, SYS_vfork];
    pub(crate) const SCRATCH: &[c_long] = &[
        SYS_creat,
        SYS_mkdir,
        SYS_rmdir,
        SYS_unlink,
        SYS_rename,
        SYS_link,
        SYS_symlink,
        SYS_chmod,
        SYS_utime,
        SYS_utimes,
        SYS_renameat,
        SYS_futimesat,
    ];
    pub(crate) const KILL: &[c_long] = &[
        SYS_ioperm,
        SYS_iopl,
        SYS_modify_ldt,
        SYS_uselib,
        SYS_ustat,
        SYS__sysctl,
        SYS_nfsservctl,
        SYS_lookup_dcookie,
    ];
    pub(crate) const OPEN: Option<c_long> = Some(SYS_open);
}
#[cfg(target_arch = "aarch64")]
pub(crate) mod old {
    use libc::c_long;

    pub(crate) const ALLOWED: &[c_long] = &[];
    pub(crate) const ALLOWED_NESTED: &[c_long] = &[];
    pub(crate) const PROCESS: &[c_long] = &[];
    pub(crate) const SCRATCH: &[c_long] = &[];
    pub(crate) const KILL: &[c_long] = &[];
    pub(crate) const OPEN: Option<c_long> = None;
}

/// No program under test needs these; whoever makes one is trying to get out.
pub(crate) const KILL: &[c_long] = &[
    SYS_acct,
    SYS_add_key,
    SYS_adjtimex,
    SYS_bpf,
    SYS_chroot,
    SYS_clock_adjtime,
    SYS_clock_settime,
    SYS_delete_module,
    SYS_fanotify_init,
    SYS_fanotify_mark,
    SYS_finit_module,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fsopen,
    SYS_fspick,
    SYS_init_module,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_io_uring_setup,
    SYS_kcmp,
    SYS_kexec_file_load,
    SYS_kexec_load,
    SYS_keyctl,
    SYS_mount,
    SYS_mount_setattr,
    SYS_move_mount,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    SYS_open_tree,
    SYS_perf_event_open,
    SYS_personality,
    SYS_pidfd_getfd,
    SYS_pivot_root,
    SYS_process_madvise,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_ptrace,
    SYS_quotactl,
    SYS_reboot,
    SYS_request_key,
    SYS_setdomainname,
    SYS_sethostname,
    SYS_setns,
    SYS_settimeofday,
    SYS_swapoff,
    SYS_swapon,
    SYS_syslog,
    SYS_umount2,
    SYS_unshare,
    SYS_userfaultfd,
    SYS_vhangup,
];

/// New calls whose absence the C library knows how to live with.
pub(crate) const ABSENT: &[c_long] = &[SYS_clone3, SYS_openat2, SYS_fchmodat2, SYS_futex_waitv];

/// Needs another process.
pub(crate) const PROCESS: &[c_long] = &[SYS_clone, SYS_execve, SYS_execveat];

/// Needs a place to write to.
pub(crate) const SCRATCH: &[c_long] = &[
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat2,
    SYS_linkat,
    SYS_symlinkat,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_utimensat,
    SYS_truncate,
    SYS_fallocate,
    SYS_copy_file_range,
    SYS_mknodat,
    SYS_memfd_create,
];
