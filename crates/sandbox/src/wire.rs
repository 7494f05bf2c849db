//! What crosses the control socket between the server and a zygote.
//!
//! The socket is a Unix `SOCK_SEQPACKET` pair: one message is one of these structures, whole or not at all.
//! File descriptors travel with a [`Job`] (the guest's) and with [`EventKind::Started`] (a pidfd). Guests
//! never hold the socket.
//!
//! The server's library and `sluice-sandbox-init` share this module; `build.rs` compiles the file once more
//! into the native half of the zygote, which has no standard library. It therefore uses `core` only.

/// First field of every [`Job`], so that a message of the wrong build is refused instead of misread.
pub const MAGIC: u32 = 0x736c_7303;

/// Descriptors a guest may be given; they become 0, 1, 2, ... in the guest.
pub const MAX_GUEST_FDS: usize = 7;

/// How many different refused system calls one event can name.
pub const MAX_DENIED: usize = 12;

/// What the server asks of a zygote.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fork a guest that shares the zygote's namespaces: no children, nothing writable.
    Direct = 1,
    /// Fork a guest with PID, mount and IPC namespaces and a scratch folder of its own.
    Nested = 2,
    /// End the guest of this run. Ignored where that run is over already.
    Stop = 3,
}

/// What a guest is there for; the zygote hands it to the Python half as a number.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Untrusted: defines the entry point and answers calls.
    Candidate = 1,
    /// Holds the tests and the expected values, reports the verdict.
    Tester = 2,
    /// Untrusted: a whole program that reads stdin and writes stdout.
    Program = 3,
    /// Untrusted: code that comes step by step and shares one namespace.
    Session = 4,
}

/// One run, from the server to the zygote. Zero in a limit means "leave as it is".
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// [`MAGIC`].
    pub magic: u32,
    /// A [`Request`].
    pub request: u32,
    /// Names the run in every event that belongs to it.
    pub run: u64,
    /// A [`Role`].
    pub role: u32,
    /// Descriptors that travel with this message.
    pub fd_count: u32,
    /// `RLIMIT_CPU`, seconds; the server's own clock is finer, this is the backstop.
    pub cpu_seconds: u64,
    /// `RLIMIT_AS`, bytes.
    pub address_space_bytes: u64,
    /// `RLIMIT_FSIZE`, bytes.
    pub file_bytes: u64,
    /// `RLIMIT_NOFILE`.
    pub open_files: u64,
    /// `RLIMIT_NPROC`.
    pub processes: u64,
    /// `RLIMIT_STACK`, bytes.
    pub stack_bytes: u64,
    /// Size of the scratch tmpfs, bytes (nested only).
    pub scratch_bytes: u64,
    /// Files and folders the scratch tmpfs may hold (nested only).
    pub scratch_inodes: u64,
}

impl Job {
    /// A job of this build that asks for nothing and limits nothing.
    pub const EMPTY: Self = Self {
        magic: MAGIC,
        request: 0,
        run: 0,
        role: 0,
        fd_count: 0,
        cpu_seconds: 0,
        address_space_bytes: 0,
        file_bytes: 0,
        open_files: 0,
        processes: 0,
        stack_bytes: 0,
        scratch_bytes: 0,
        scratch_inodes: 0,
    };
}

/// What a zygote reports.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The interpreter is warm and waits for jobs.
    Ready = 1,
    /// The run exists; its pidfd travels with the message.
    Started = 2,
    /// The guest is dead: how it ended and what it was refused.
    Ended = 3,
    /// Nothing of the run is left in the kernel.
    Gone = 4,
    /// A set-up step failed; no guest code ran.
    Failed = 5,
}

/// The guest tried to start a process or another program where it may not.
pub const WANTED_PROCESS: u32 = 1;
/// The guest tried to write a file where it has no scratch folder.
pub const WANTED_SCRATCH: u32 = 2;
/// The guest was killed for a system call that no program under test needs.
pub const DANGEROUS: u32 = 4;

/// A refused system call and how often it was tried.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Denied {
    /// Number in the kernel's table of this architecture.
    pub syscall: u32,
    /// Attempts.
    pub count: u32,
}

/// One report, from the zygote (or a run's first process) to the server.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// An [`EventKind`].
    pub kind: u32,
    /// A [`Step`], where `kind` is `Failed`.
    pub step: u32,
    /// The run, or 0 where none is meant.
    pub run: u64,
    /// `errno` of the failed step.
    pub errno: i32,
    /// The guest's status as `waitpid` gives it.
    pub status: i32,
    /// `WANTED_*` and `DANGEROUS`.
    pub flags: u32,
    /// The system call the guest was killed for, where `DANGEROUS` is set.
    pub dangerous_syscall: u32,
    /// User and system time of the guest and its reaped children, microseconds.
    pub cpu_micros: u64,
    /// Peak resident set of the guest, KiB.
    pub max_rss_kib: u64,
    /// Entries of `denied` in use.
    pub denied_len: u32,
    /// Keeps the size free of hidden padding.
    pub reserved: u32,
    /// Refused system calls, in the order of their first attempt.
    pub denied: [Denied; MAX_DENIED],
}

impl Event {
    /// An event with everything but its kind and run at zero.
    pub const fn new(kind: EventKind, run: u64) -> Self {
        Self {
            kind: kind as u32,
            step: 0,
            run,
            errno: 0,
            status: 0,
            flags: 0,
            dangerous_syscall: 0,
            cpu_micros: 0,
            max_rss_kib: 0,
            denied_len: 0,
            reserved: 0,
            denied: [Denied { syscall: 0, count: 0 }; MAX_DENIED],
        }
    }
}

/// What the supervisor answers to a system call that the filter does not allow.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// `EPERM`; also the answer to every call without an entry.
    Refuse = 0,
    /// `ENOSYS`, so that the C library falls back to an older call.
    Absent = 1,
    /// The guest dies: no program under test needs this call.
    Kill = 2,
    /// Goes through where the target is the guest itself, else `EPERM`.
    SelfOnly = 3,
    /// `EPERM`, and the run is marked [`WANTED_PROCESS`].
    Process = 4,
    /// `EACCES`, and the run is marked [`WANTED_SCRATCH`].
    Scratch = 5,
    /// Goes through (Landlock decides), and the run is marked [`WANTED_SCRATCH`].
    Write = 6,
}

/// The ruling on one system call in both kinds of run.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RulingEntry {
    /// Number in the kernel's table of this architecture.
    pub syscall: u16,
    /// A [`Ruling`] for [`Request::Direct`].
    pub direct: u8,
    /// A [`Ruling`] for [`Request::Nested`].
    pub nested: u8,
}

/// Bytes a whole blueprint may have; the zygote reads it into a buffer of this size.
pub const MAX_BLUEPRINT: usize = 48 * 1024;

/// Head of the blueprint: what `sluice-sandbox-init` worked out once and every run of a zygote uses. The
/// three seccomp programs (8 bytes an instruction) and the rulings follow it in the same memfd, in the order
/// of the length fields.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Blueprint {
    /// [`MAGIC`].
    pub magic: u32,
    /// The Landlock ruleset every guest enters.
    pub landlock_fd: i32,
    /// User id of guests, or `u32::MAX` to keep the zygote's.
    pub guest_uid: u32,
    /// Group id of guests, or `u32::MAX` to keep the zygote's.
    pub guest_gid: u32,
    /// Instructions of the filter for [`Request::Direct`]; decides by user notification.
    pub direct_len: u32,
    /// Instructions of the filter for [`Request::Nested`]; decides by user notification.
    pub nested_len: u32,
    /// Instructions of the filter that closes what installing the first one needed.
    pub closing_len: u32,
    /// Entries of the table of [`RulingEntry`].
    pub rulings_len: u32,
    /// 1 where the zygote holds `CAP_SETPCAP`, so that guests can empty their bounding set.
    pub drop_bounding: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// A step of the set-up. Every failure names one; `STEPS` says what it means.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reading the specification from the server.
    ReadSpec = 1,
    /// Creating the namespaces.
    Namespaces = 2,
    /// Mapping user and group ids.
    IdMaps = 3,
    /// Arming the parent-death signal.
    DeathSignal = 4,
    /// Making mounts private.
    PrivateMounts = 5,
    /// The root file system.
    RootMount = 6,
    /// Read-only binds.
    Binds = 7,
    /// Device nodes.
    Devices = 8,
    /// The process file system.
    ProcMount = 9,
    /// Changing the root.
    PivotRoot = 10,
    /// The Landlock ruleset.
    LandlockRules = 11,
    /// The seccomp programs.
    SeccompRules = 12,
    /// Resource limits of the zygote.
    ZygoteLimits = 13,
    /// Starting the interpreter.
    Exec = 14,
    /// Loading the native half.
    Native = 15,
    /// Receiving a job.
    Receive = 20,
    /// Forking the run.
    Clone = 21,
    /// Forking the guest.
    Fork = 22,
    /// The scratch file system.
    Scratch = 23,
    /// Own `/proc` of a run.
    RunProc = 24,
    /// The channel for the seccomp listener.
    ListenerChannel = 25,
    /// Descriptors of the guest.
    Descriptors = 26,
    /// A new session.
    Session = 27,
    /// Resource limits of the guest.
    Limits = 28,
    /// Dropping capabilities.
    Capabilities = 29,
    /// Changing the user.
    Identity = 30,
    /// `no_new_privs` and the dumpable flag.
    Privileges = 31,
    /// Landlock.
    Landlock = 32,
    /// Seccomp.
    Seccomp = 33,
    /// Closing what is left.
    CloseRange = 34,
    /// The working folder.
    WorkingFolder = 35,
    /// A pidfd of the run.
    Pidfd = 36,
    /// Supervising the guest.
    Supervise = 37,
}

/// Each step as an operator reads it.
pub(crate) const STEPS: &[(Step, &str)] = &[
    (Step::ReadSpec, "read the specification"),
    (Step::Namespaces, "create user, PID, mount, network, IPC, UTS and cgroup namespaces"),
    (Step::IdMaps, "write the user and group id maps"),
    (Step::DeathSignal, "arm the parent-death signal"),
    (Step::PrivateMounts, "make mounts private"),
    (Step::RootMount, "mount the root tmpfs"),
    (Step::Binds, "bind the interpreter's folders read-only"),
    (Step::Devices, "bind the device nodes"),
    (Step::ProcMount, "mount /proc"),
    (Step::PivotRoot, "pivot_root and detach the old root"),
    (Step::LandlockRules, "build the Landlock ruleset"),
    (Step::SeccompRules, "compile the seccomp filters"),
    (Step::ZygoteLimits, "set the zygote's resource limits"),
    (Step::Exec, "start the interpreter"),
    (Step::Native, "read the blueprint in the zygote"),
    (Step::Receive, "receive the job"),
    (Step::Clone, "fork the run into its namespaces"),
    (Step::Fork, "fork the guest"),
    (Step::Scratch, "mount the scratch tmpfs"),
    (Step::RunProc, "mount the run's /proc"),
    (Step::ListenerChannel, "open the channel for the seccomp listener"),
    (Step::Descriptors, "place the guest's descriptors"),
    (Step::Session, "start a session"),
    (Step::Limits, "set the resource limits"),
    (Step::Capabilities, "drop the capabilities"),
    (Step::Identity, "change to the guest's user"),
    (Step::Privileges, "set no_new_privs"),
    (Step::Landlock, "enter the Landlock domain"),
    (Step::Seccomp, "install the seccomp filter"),
    (Step::CloseRange, "close all other descriptors"),
    (Step::WorkingFolder, "enter the working folder"),
    (Step::Pidfd, "open the run's pidfd"),
    (Step::Supervise, "wait for the guest"),
];
