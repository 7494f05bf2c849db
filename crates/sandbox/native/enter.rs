//! From a fresh fork of the zygote to a confined guest, step by step.

use core::ffi::{CStr, c_char, c_int, c_ulong};

use crate::wire::{Blueprint, Job, MAX_GUEST_FDS, Request, Step};

use super::{LoadedBlueprint, Run, SOCKET, sys, sys::Failure, sys::check};

/// Mounts and IPC; the PID namespace is made before the fork. The network namespace is the zygote's: it is
/// empty, and guests cannot make sockets.
const RUN_NAMESPACES: c_int = 0x0002_0000 | 0x0800_0000;

/// Where the control socket waits while descriptors 0, 1, 2, ... become the guest's.
pub(super) const REPORT_FD: c_int = 120;
const LANDLOCK_FD: c_int = 121;
const CHANNEL_FD: c_int = 122;
/// The job's descriptors are parked from here on.
const PARKED_FD: c_int = 123;

const F_DUPFD_CLOEXEC: c_int = 1030;
const EMFILE: i32 = 24;
const MOUNT_FLAGS: c_ulong = 2 | 4 | 8; // nosuid, nodev, noexec
const SCRATCH: &CStr = c"/box/tmp";

/// The scratch folder and `/proc` of a nested guest, in namespaces of its own.
fn own_namespaces(job: &Job) -> Result<(), Failure> {
    // SAFETY: numbers only.
    check(i64::from(unsafe { sys::unshare(RUN_NAMESPACES) }), Step::Clone)?;
    let mut options = [0_u8; 64];
    scratch_options(job, &mut options);
    mount(c"tmpfs", SCRATCH, options.as_ptr().cast(), Step::Scratch)?;
    mount(c"proc", c"/view/proc", c"hidepid=2,subset=pid".as_ptr(), Step::RunProc)
}

/// Writes `size=N,nr_inodes=N,mode=777` and a NUL.
fn scratch_options(job: &Job, to: &mut [u8; 64]) {
    let mut at = 0;
    for (text, number) in [(&b"mode=777,size="[..], job.scratch_bytes), (b",nr_inodes=", job.scratch_inodes)]
    {
        to[at..at + text.len()].copy_from_slice(text);
        at += text.len();
        let mut digits = [0_u8; 20];
        let (mut n, mut count) = (number.max(1), 0);
        while n > 0 {
            digits[count] = b'0' + (n % 10) as u8;
            n /= 10;
            count += 1;
        }
        for digit in digits[..count].iter().rev() {
            to[at] = *digit;
            at += 1;
        }
    }
}

fn mount(kind: &CStr, target: &CStr, options: *const c_char, step: Step) -> Result<(), Failure> {
    // SAFETY: all strings end in NUL and outlive the call.
    let done =
        unsafe { sys::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), MOUNT_FLAGS, options.cast()) };
    check(i64::from(done), step).map(|_| ())
}

/// The pair over which a guest hands its seccomp listener to the supervisor: `[supervisor, guest]`.
pub(super) fn listener_channel() -> Result<[c_int; 2], Failure> {
    let mut pair = [-1; 2];
    // AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC.
    // SAFETY: the array has room for the two descriptors.
    let made = unsafe { sys::socketpair(1, 5 | 0o2_000_000, 0, pair.as_mut_ptr()) };
    check(i64::from(made), Step::ListenerChannel).map(|_| pair)
}

/// Where a guest comes from.
pub(super) struct Origin {
    /// Its end of the channel for the seccomp listener.
    pub(super) channel: c_int,
    /// The process that forked it.
    pub(super) zygote: c_int,
}

/// In the guest: gives up everything but what the guest may have. On success only Python of the guest runs
/// after it.
pub(super) fn become_guest(
    blueprint: &LoadedBlueprint<'_>,
    run: &Run,
    origin: Origin,
) -> Result<(), Failure> {
    let nested = run.job.request == Request::Nested as u32;
    place_descriptors(blueprint, run, origin.channel)?;
    if nested {
        own_namespaces(&run.job)?;
    }
    // SAFETY: no pointers but one constant string; a guest of the zygote is never a session leader already.
    unsafe {
        check(i64::from(sys::setsid()), Step::Session)?;
        sys::umask(0o077);
        let folder = if nested { SCRATCH } else { c"/" };
        check(i64::from(sys::chdir(folder.as_ptr())), Step::WorkingFolder)?;
    }
    limits(&run.job)?;
    drop_privileges(blueprint)?;
    // A zygote that died before the death signal was armed. A nested guest has its parent in another
    // namespace and dies with that namespace.
    // SAFETY: no arguments.
    if !nested && unsafe { sys::getppid() } != origin.zygote {
        return Err(Failure { step: Step::DeathSignal, errno: 3 });
    }
    let entered = sys::raw(sys::LANDLOCK_RESTRICT_SELF, [LANDLOCK_FD as usize, 0, 0, 0, 0]);
    check(entered, Step::Landlock)?;
    seccomp(blueprint, if nested { blueprint.nested } else { blueprint.direct })?;
    let first = run.job.fd_count as usize;
    check(sys::raw(sys::CLOSE_RANGE, [first, u32::MAX as usize, 0, 0, 0]), Step::CloseRange).map(|_| ())
}

/// Moves the job's descriptors to 0, 1, 2, ... by way of high numbers, so that none overwrites another.
fn place_descriptors(blueprint: &LoadedBlueprint<'_>, run: &Run, channel: c_int) -> Result<(), Failure> {
    park(SOCKET, REPORT_FD)?;
    park(blueprint.head.landlock_fd, LANDLOCK_FD)?;
    park(channel, CHANNEL_FD)?;
    let count = run.job.fd_count as usize;
    let mut parked = [-1; MAX_GUEST_FDS];
    for (index, fd) in run.fds[..count].iter().enumerate() {
        parked[index] = park(*fd, PARKED_FD + index as c_int)?;
    }
    for (index, fd) in parked[..count].iter().enumerate() {
        // SAFETY: both are descriptors of this process.
        check(i64::from(unsafe { sys::dup2(*fd, index as c_int) }), Step::Descriptors)?;
    }
    Ok(())
}

/// Duplicates a descriptor to exactly this number.
fn park(fd: c_int, at: c_int) -> Result<c_int, Failure> {
    // SAFETY: duplicates a descriptor of this process; nothing of the zygote lives above 100.
    let parked = unsafe { sys::fcntl(fd, F_DUPFD_CLOEXEC, at.into()) };
    if check(i64::from(parked), Step::Descriptors)? == i64::from(at) {
        Ok(at)
    } else {
        Err(Failure { step: Step::Descriptors, errno: EMFILE })
    }
}

fn limits(job: &Job) -> Result<(), Failure> {
    // RLIMIT_CPU, FSIZE, STACK, NPROC, NOFILE, AS: numbers shared by x86-64 and arm64.
    let table = [
        (0, job.cpu_seconds),
        (1, job.file_bytes),
        (3, job.stack_bytes),
        (6, job.processes),
        (7, job.open_files),
        (9, job.address_space_bytes),
    ];
    for (resource, value) in table {
        if value == 0 {
            continue;
        }
        let limit = sys::Rlimit { soft: value, hard: value };
        // SAFETY: the limit outlives the call.
        check(i64::from(unsafe { sys::setrlimit(resource, &raw const limit) }), Step::Limits)?;
    }
    Ok(())
}

const PR_SET_PDEATHSIG: c_int = 1;
const PR_SET_DUMPABLE: c_int = 4;
const PR_CAPBSET_DROP: c_int = 24;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const PR_CAP_AMBIENT: c_int = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// More than the kernel knows; it says which is the first it does not.
const CAPABILITIES: usize = 64;

fn prctl(option: c_int, argument: usize, step: Step) -> Result<(), Failure> {
    // SAFETY: the options used here take numbers only.
    check(i64::from(unsafe { sys::prctl(option, argument, 0, 0, 0) }), step).map(|_| ())
}

fn undumpable() -> Result<(), Failure> {
    prctl(PR_SET_DUMPABLE, 0, Step::Privileges)
}

/// In the zygote: makes its memory unreadable to others of its user, and empties the bounding set, so that no
/// guest can gain a capability by executing something. The zygote keeps those it has, because it executes
/// nothing.
pub(super) fn prepare_zygote(head: &Blueprint) -> Result<(), Failure> {
    undumpable()?;
    if head.drop_bounding == 0 {
        return Ok(());
    }
    for capability in 0..CAPABILITIES {
        match prctl(PR_CAPBSET_DROP, capability, Step::Capabilities) {
            Ok(()) => {}
            // The first number that the kernel has no capability for.
            Err(failure) if failure.errno == 22 && capability > 0 => return Ok(()),
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

fn drop_privileges(blueprint: &LoadedBlueprint<'_>) -> Result<(), Failure> {
    let head = &blueprint.head;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, Step::Capabilities)?;
    if head.guest_uid != u32::MAX {
        // SAFETY: no groups are passed, the ids are numbers.
        unsafe {
            check(i64::from(sys::setgroups(0, core::ptr::null())), Step::Identity)?;
            let (user, group) = (head.guest_uid, head.guest_gid);
            check(i64::from(sys::setresgid(group, group, group)), Step::Identity)?;
            check(i64::from(sys::setresuid(user, user, user)), Step::Identity)?;
        }
    }
    let header = [CAPABILITY_VERSION_3, 0];
    let nothing = [0_u32; 6];
    let cleared = [(&raw const header) as usize, (&raw const nothing) as usize, 0, 0, 0];
    check(sys::raw(sys::CAPSET, cleared), Step::Capabilities)?;
    prctl(PR_SET_PDEATHSIG, sys::SIGKILL as usize, Step::DeathSignal)?;
    prctl(PR_SET_NO_NEW_PRIVS, 1, Step::Privileges)?;
    undumpable()
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: u16,
    filter: *const u64,
}

const SET_MODE_FILTER: usize = 1;
const NEW_LISTENER: usize = 8;

/// Installs the filter, hands its listener to the supervisor, and then takes away what handing it over
/// needed.
fn seccomp(blueprint: &LoadedBlueprint<'_>, filter: &[u64]) -> Result<(), Failure> {
    let listener = install(filter, NEW_LISTENER)? as c_int;
    sys::send(CHANNEL_FD, b"l", &[listener]).map_err(|errno| Failure { step: Step::Seccomp, errno })?;
    install(blueprint.closing, 0).map(|_| ())
}

/// Installs one filter; returns its listener where the flags ask for one.
fn install(filter: &[u64], flags: usize) -> Result<i64, Failure> {
    let program = Program { len: filter.len() as u16, filter: filter.as_ptr() };
    let arguments = [SET_MODE_FILTER, flags, (&raw const program) as usize, 0, 0];
    check(sys::raw(sys::SECCOMP, arguments), Step::Seccomp)
}
