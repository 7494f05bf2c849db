//! The few calls the native half makes, declared by hand.
//!
//! The library is loaded into an interpreter that brings its own C library, so it links nothing itself; every
//! symbol here is resolved in the interpreter's process. Structure layouts are those of 64-bit Linux.

use core::ffi::{c_char, c_int, c_long, c_uint, c_void};

use crate::wire::{Event, MAX_GUEST_FDS, Step};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
    pub(crate) fn fork() -> c_int;
    pub(crate) fn getpid() -> c_int;
    pub(crate) fn getppid() -> c_int;
    pub(crate) fn _exit(code: c_int) -> !;
    pub(crate) fn close(fd: c_int) -> c_int;
    pub(crate) fn dup2(from: c_int, to: c_int) -> c_int;
    pub(crate) fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int;
    pub(crate) fn ioctl(fd: c_int, request: core::ffi::c_ulong, argument: *mut c_void) -> c_int;
    pub(crate) fn kill(pid: c_int, signal: c_int) -> c_int;
    pub(crate) fn setsid() -> c_int;
    pub(crate) fn umask(mask: c_uint) -> c_uint;
    pub(crate) fn chdir(path: *const c_char) -> c_int;
    pub(crate) fn poll(fds: *mut PollFd, count: core::ffi::c_ulong, timeout_ms: c_int) -> c_int;
    pub(crate) fn wait4(pid: c_int, status: *mut c_int, options: c_int, usage: *mut Rusage) -> c_int;
    pub(crate) fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int;
    pub(crate) fn setrlimit(resource: c_int, limit: *const Rlimit) -> c_int;
    pub(crate) fn setgroups(count: usize, groups: *const u32) -> c_int;
    pub(crate) fn setresgid(real: u32, effective: u32, saved: u32) -> c_int;
    pub(crate) fn setresuid(real: u32, effective: u32, saved: u32) -> c_int;
    pub(crate) fn read(fd: c_int, to: *mut c_void, len: usize) -> isize;
    pub(crate) fn socketpair(domain: c_int, kind: c_int, protocol: c_int, fds: *mut c_int) -> c_int;
    pub(crate) fn sendmsg(fd: c_int, message: *const MessageHeader, flags: c_int) -> isize;
    pub(crate) fn recvmsg(fd: c_int, message: *mut MessageHeader, flags: c_int) -> isize;
    pub(crate) fn unshare(flags: c_int) -> c_int;
    pub(crate) fn setns(fd: c_int, kind: c_int) -> c_int;
    pub(crate) fn pause() -> c_int;
    pub(crate) fn signal(number: c_int, handler: usize) -> usize;
    pub(crate) fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    pub(crate) fn clone(
        run: extern "C" fn(*mut c_void) -> c_int,
        stack: *mut c_void,
        flags: c_int,
        argument: *mut c_void,
        ...
    ) -> c_int;
    pub(crate) fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: core::ffi::c_ulong,
        data: *const c_void,
    ) -> c_int;
}

#[cfg(target_arch = "x86_64")]
mod numbers {
    pub(crate) const CAPSET: i64 = 126;
    pub(crate) const SECCOMP: i64 = 317;
}
#[cfg(target_arch = "aarch64")]
mod numbers {
    pub(crate) const CAPSET: i64 = 91;
    pub(crate) const SECCOMP: i64 = 277;
}
pub(crate) use numbers::{CAPSET, SECCOMP};
/// These three have the same number on every architecture.
pub(crate) const PIDFD_OPEN: i64 = 434;
pub(crate) const CLOSE_RANGE: i64 = 436;
pub(crate) const LANDLOCK_RESTRICT_SELF: i64 = 446;

pub(crate) const EINTR: i32 = 4;
pub(crate) const SIGKILL: i32 = 9;
pub(crate) const POLLIN: i16 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PollFd {
    pub(crate) fd: c_int,
    pub(crate) events: i16,
    pub(crate) revents: i16,
}

#[repr(C)]
pub(crate) struct Rlimit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// `struct rusage`: two times, the peak resident set, thirteen counters nobody reads here.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Rusage {
    pub(crate) user: [i64; 2],
    pub(crate) system: [i64; 2],
    pub(crate) max_rss_kib: i64,
    rest: [i64; 13],
}

#[repr(C)]
pub(crate) struct IoSlice {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
pub(crate) struct MessageHeader {
    name: *mut c_void,
    name_len: u32,
    slices: *mut IoSlice,
    slice_count: usize,
    control: *mut c_void,
    control_len: usize,
    flags: c_int,
}

/// `struct cmsghdr` followed by the descriptors of one `SCM_RIGHTS` message.
#[repr(C, align(8))]
struct Rights {
    len: usize,
    level: c_int,
    kind: c_int,
    fds: [c_int; MAX_GUEST_FDS + 1],
}

const RIGHTS_HEADER: usize = 16;
const SOL_SOCKET: c_int = 1;
const SCM_RIGHTS: c_int = 1;
const MSG_NOSIGNAL: c_int = 0x4000;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;

/// A failed step with its `errno`.
#[derive(Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
}

pub(crate) fn errno() -> i32 {
    // SAFETY: the C library returns the address of this thread's errno.
    unsafe { *__errno_location() }
}

/// `Ok(value)` unless the call returned a negative number.
pub(crate) fn check(value: i64, step: Step) -> Result<i64, Failure> {
    if value < 0 { Err(Failure { step, errno: errno() }) } else { Ok(value) }
}

/// A raw system call with up to five arguments.
pub(crate) fn raw(number: i64, arguments: [usize; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: callers pass numbers from this file with arguments of that call's types; pointers outlive the
    // call.
    unsafe { syscall(number, a, b, c, d, e) }
}

/// Sends `bytes` and descriptors.
pub(crate) fn send(socket: c_int, bytes: &[u8], fds: &[c_int]) -> Result<(), i32> {
    let len = RIGHTS_HEADER + 4 * fds.len();
    let mut rights = Rights { len, level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [-1; MAX_GUEST_FDS + 1] };
    let mut slice = IoSlice { base: bytes.as_ptr().cast_mut().cast(), len: bytes.len() };
    let mut header = header(&mut slice);
    if !fds.is_empty() {
        for (to, from) in rights.fds.iter_mut().zip(fds) {
            *to = *from;
        }
        header.control = (&raw mut rights).cast();
        header.control_len = len.next_multiple_of(8);
    }
    loop {
        // SAFETY: every pointer in the header is to a live local.
        if unsafe { sendmsg(socket, &raw const header, MSG_NOSIGNAL) } >= 0 {
            return Ok(());
        }
        match errno() {
            EINTR => {}
            other => return Err(other),
        }
    }
}

/// Receives one message into `bytes` and its descriptors into `fds`; returns the length and how many
/// descriptors came.
pub(crate) fn receive(socket: c_int, bytes: &mut [u8], fds: &mut [c_int]) -> Result<(usize, usize), i32> {
    let mut rights = Rights { len: 0, level: 0, kind: 0, fds: [-1; MAX_GUEST_FDS + 1] };
    let mut slice = IoSlice { base: bytes.as_mut_ptr().cast(), len: bytes.len() };
    loop {
        let mut header = header(&mut slice);
        header.control = (&raw mut rights).cast();
        header.control_len = core::mem::size_of::<Rights>();
        // SAFETY: every pointer in the header is to a live local.
        let got = unsafe { recvmsg(socket, &raw mut header, MSG_CMSG_CLOEXEC) };
        if got < 0 {
            match errno() {
                EINTR => continue,
                other => return Err(other),
            }
        }
        let present = header.control_len > RIGHTS_HEADER && rights.kind == SCM_RIGHTS;
        let count = if present { (rights.len - RIGHTS_HEADER) / 4 } else { 0 };
        for (to, from) in fds.iter_mut().zip(&rights.fds[..count.min(MAX_GUEST_FDS + 1)]) {
            *to = *from;
        }
        return Ok((got as usize, count));
    }
}

fn header(slice: &mut IoSlice) -> MessageHeader {
    MessageHeader {
        name: core::ptr::null_mut(),
        name_len: 0,
        slices: slice,
        slice_count: 1,
        control: core::ptr::null_mut(),
        control_len: 0,
        flags: 0,
    }
}

/// Sends an event to the server and says whether that worked. A server that is gone is nobody's failure: the
/// death signal ends this process.
pub(crate) fn report(socket: c_int, event: &Event, fds: &[c_int]) -> bool {
    // SAFETY: `Event` is `repr(C)` without padding, so all its bytes are initialised.
    let bytes = unsafe {
        core::slice::from_raw_parts((&raw const *event).cast::<u8>(), core::mem::size_of::<Event>())
    };
    send(socket, bytes, fds).is_ok()
}
