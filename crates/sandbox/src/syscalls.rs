//! Names of the system calls that guests are refused, for details and metrics.

use libc::*;

/// The name, or the number where the call is not one that our filters single out.
pub(crate) fn name(number: u32) -> String {
    NAMES
        .iter()
        .find(|(known, _)| u32::try_from(*known) == Ok(number))
        .map_or_else(|| format!("syscall_{number}"), |(_, name)| (*name).to_owned())
}

const NAMES: &[(c_long, &str)] = &[
    (SYS_accept, "accept"),
    (SYS_accept4, "accept4"),
    (SYS_acct, "acct"),
    (SYS_add_key, "add_key"),
    (SYS_adjtimex, "adjtimex"),
    (SYS_bind, "bind"),
    (SYS_bpf, "bpf"),
    (SYS_capset, "capset"),
    (SYS_chroot, "chroot"),
    (SYS_clock_adjtime, "clock_adjtime"),
    (SYS_clock_settime, "clock_settime"),
    (SYS_clone, "clone"),
    (SYS_clone3, "clone3"),
    (SYS_connect, "connect"),
    (SYS_copy_file_range, "copy_file_range"),
    (SYS_delete_module, "delete_module"),
    (SYS_execve, "execve"),
    (SYS_execveat, "execveat"),
    (SYS_fallocate, "fallocate"),
    (SYS_fanotify_init, "fanotify_init"),
    (SYS_fanotify_mark, "fanotify_mark"),
    (SYS_fchmod, "fchmod"),
    (SYS_fchmodat, "fchmodat"),
    (SYS_fchown, "fchown"),
    (SYS_fchownat, "fchownat"),
    (SYS_fcntl, "fcntl"),
    (SYS_finit_module, "finit_module"),
    (SYS_flock, "flock"),
    (SYS_fsconfig, "fsconfig"),
    (SYS_fsetxattr, "fsetxattr"),
    (SYS_fsmount, "fsmount"),
    (SYS_fsopen, "fsopen"),
    (SYS_fspick, "fspick"),
    (SYS_init_module, "init_module"),
    (SYS_inotify_init1, "inotify_init1"),
    (SYS_io_setup, "io_setup"),
    (SYS_io_uring_enter, "io_uring_enter"),
    (SYS_io_uring_register, "io_uring_register"),
    (SYS_io_uring_setup, "io_uring_setup"),
    (SYS_ioctl, "ioctl"),
    (SYS_ioprio_set, "ioprio_set"),
    (SYS_kcmp, "kcmp"),
    (SYS_kexec_file_load, "kexec_file_load"),
    (SYS_kexec_load, "kexec_load"),
    (SYS_keyctl, "keyctl"),
    (SYS_kill, "kill"),
    (SYS_landlock_create_ruleset, "landlock_create_ruleset"),
    (SYS_linkat, "linkat"),
    (SYS_listen, "listen"),
    (SYS_mbind, "mbind"),
    (SYS_memfd_create, "memfd_create"),
    (SYS_mkdirat, "mkdirat"),
    (SYS_mknodat, "mknodat"),
    (SYS_mlock, "mlock"),
    (SYS_mlockall, "mlockall"),
    (SYS_mount, "mount"),
    (SYS_mount_setattr, "mount_setattr"),
    (SYS_move_mount, "move_mount"),
    (SYS_mq_open, "mq_open"),
    (SYS_msgget, "msgget"),
    (SYS_name_to_handle_at, "name_to_handle_at"),
    (SYS_open_by_handle_at, "open_by_handle_at"),
    (SYS_open_tree, "open_tree"),
    (SYS_openat, "openat"),
    (SYS_openat2, "openat2"),
    (SYS_perf_event_open, "perf_event_open"),
    (SYS_personality, "personality"),
    (SYS_pidfd_getfd, "pidfd_getfd"),
    (SYS_pidfd_open, "pidfd_open"),
    (SYS_pidfd_send_signal, "pidfd_send_signal"),
    (SYS_pivot_root, "pivot_root"),
    (SYS_prctl, "prctl"),
    (SYS_prlimit64, "prlimit64"),
    (SYS_process_madvise, "process_madvise"),
    (SYS_process_vm_readv, "process_vm_readv"),
    (SYS_process_vm_writev, "process_vm_writev"),
    (SYS_ptrace, "ptrace"),
    (SYS_quotactl, "quotactl"),
    (SYS_reboot, "reboot"),
    (SYS_recvmsg, "recvmsg"),
    (SYS_renameat2, "renameat2"),
    (SYS_request_key, "request_key"),
    (SYS_rt_sigqueueinfo, "rt_sigqueueinfo"),
    (SYS_rt_tgsigqueueinfo, "rt_tgsigqueueinfo"),
    (SYS_sched_setaffinity, "sched_setaffinity"),
    (SYS_sched_setattr, "sched_setattr"),
    (SYS_sched_setparam, "sched_setparam"),
    (SYS_sched_setscheduler, "sched_setscheduler"),
    (SYS_seccomp, "seccomp"),
    (SYS_semget, "semget"),
    (SYS_sendmmsg, "sendmmsg"),
    (SYS_sendmsg, "sendmsg"),
    (SYS_sendto, "sendto"),
    (SYS_setdomainname, "setdomainname"),
    (SYS_setgid, "setgid"),
    (SYS_setgroups, "setgroups"),
    (SYS_sethostname, "sethostname"),
    (SYS_setns, "setns"),
    (SYS_setpgid, "setpgid"),
    (SYS_setpriority, "setpriority"),
    (SYS_setresgid, "setresgid"),
    (SYS_setresuid, "setresuid"),
    (SYS_setrlimit, "setrlimit"),
    (SYS_setsid, "setsid"),
    (SYS_settimeofday, "settimeofday"),
    (SYS_setsockopt, "setsockopt"),
    (SYS_setuid, "setuid"),
    (SYS_setxattr, "setxattr"),
    (SYS_shmget, "shmget"),
    (SYS_socket, "socket"),
    (SYS_socketpair, "socketpair"),
    (SYS_splice, "splice"),
    (SYS_swapoff, "swapoff"),
    (SYS_swapon, "swapon"),
    (SYS_symlinkat, "symlinkat"),
    (SYS_syslog, "syslog"),
    (SYS_tgkill, "tgkill"),
    (SYS_timer_create, "timer_create"),
    (SYS_tkill, "tkill"),
    (SYS_truncate, "truncate"),
    (SYS_umount2, "umount2"),
    (SYS_unlinkat, "unlinkat"),
    (SYS_unshare, "unshare"),
    (SYS_userfaultfd, "userfaultfd"),
    (SYS_utimensat, "utimensat"),
    (SYS_vhangup, "vhangup"),
    (SYS_vmsplice, "vmsplice"),
    #[cfg(target_arch = "x86_64")]
    (SYS_chmod, "chmod"),
    #[cfg(target_arch = "x86_64")]
    (SYS_chown, "chown"),
    #[cfg(target_arch = "x86_64")]
    (SYS_creat, "creat"),
    #[cfg(target_arch = "x86_64")]
    (SYS_fork, "fork"),
    #[cfg(target_arch = "x86_64")]
    (SYS_ioperm, "ioperm"),
    #[cfg(target_arch = "x86_64")]
    (SYS_iopl, "iopl"),
    #[cfg(target_arch = "x86_64")]
    (SYS_link, "link"),
    #[cfg(target_arch = "x86_64")]
    (SYS_mkdir, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (SYS_modify_ldt, "modify_ldt"),
    #[cfg(target_arch = "x86_64")]
    (SYS_open, "open"),
    #[cfg(target_arch = "x86_64")]
    (SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (SYS_rmdir, "rmdir"),
    #[cfg(target_arch = "x86_64")]
    (SYS_symlink, "symlink"),
    #[cfg(target_arch = "x86_64")]
    (SYS_unlink, "unlink"),
    #[cfg(target_arch = "x86_64")]
    (SYS_uselib, "uselib"),
    #[cfg(target_arch = "x86_64")]
    (SYS_vfork, "vfork"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_calls_have_names_and_unknown_ones_numbers() {
        assert_eq!(name(SYS_ptrace as u32), "ptrace");
        assert_eq!(name(9999), "syscall_9999");
    }

    #[test]
    fn no_number_is_listed_twice() {
        let mut numbers: Vec<_> = NAMES.iter().map(|(number, _)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), NAMES.len());
    }
}
