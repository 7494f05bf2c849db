//! The zygote's loop: receive a job, fork a guest, supervise it, report.
//!
//! Invariants:
//! 1. The zygote never runs guest code: `serve` returns to Python in guests only, and a guest holds no way
//!    back.
//! 2. Between the fork and the guest's first line of Python every step of `enter` succeeded; otherwise the
//!    process ends and the server hears [`EventKind::Failed`] with the step.
//! 3. One run at a time. A zygote that cannot restore itself after one ends.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};

use crate::wire::{
    Blueprint, Event, EventKind, Job, MAGIC, MAX_BLUEPRINT, MAX_GUEST_FDS, Request, RulingEntry, Step,
};

#[path = "enter.rs"]
mod enter;
#[path = "first_process.rs"]
mod first_process;
#[path = "supervise.rs"]
mod supervise;
#[path = "sys.rs"]
pub(crate) mod sys;

use sys::{Failure, check};

/// The control socket: `sluice-sandbox-init` starts with it as stdin and leaves it there.
const SOCKET: c_int = 0;

/// The stable Python interface, as far as one function needs it (PEP 384; the layouts of `PyMethodDef` and
/// `PyModuleDef` belong to it on builds with the global interpreter lock).
mod python {
    use super::{c_char, c_int, c_long, c_void};

    #[repr(C)]
    pub(crate) struct Method {
        pub(crate) name: *const c_char,
        pub(crate) function: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void>,
        pub(crate) flags: c_int,
        pub(crate) doc: *const c_char,
    }

    #[repr(C)]
    pub(crate) struct Module {
        pub(crate) refcount: isize,
        pub(crate) kind: *mut c_void,
        pub(crate) init: *mut c_void,
        pub(crate) index: isize,
        pub(crate) copy: *mut c_void,
        pub(crate) name: *const c_char,
        pub(crate) doc: *const c_char,
        pub(crate) size: isize,
        pub(crate) methods: *mut Method,
        pub(crate) slots: [*mut c_void; 4],
    }

    unsafe extern "C" {
        pub(crate) fn PyModule_Create2(module: *mut Module, version: c_int) -> *mut c_void;
        pub(crate) fn PyLong_AsLong(value: *mut c_void) -> c_long;
        pub(crate) fn PyLong_FromLong(value: c_long) -> *mut c_void;
        pub(crate) fn PyOS_BeforeFork();
        pub(crate) fn PyOS_AfterFork_Parent();
        pub(crate) fn PyOS_AfterFork_Child();
    }
}

const METH_O: c_int = 8;
const PYTHON_ABI_VERSION: c_int = 3;
const NAME: &CStr = c"sluice_native";

static mut METHODS: [python::Method; 2] = [
    python::Method { name: c"serve".as_ptr(), function: Some(serve), flags: METH_O, doc: core::ptr::null() },
    python::Method { name: core::ptr::null(), function: None, flags: 0, doc: core::ptr::null() },
];

static mut MODULE: python::Module = python::Module {
    refcount: 1,
    kind: core::ptr::null_mut(),
    init: core::ptr::null_mut(),
    index: 0,
    copy: core::ptr::null_mut(),
    name: NAME.as_ptr(),
    doc: core::ptr::null(),
    size: -1,
    methods: core::ptr::null_mut(),
    slots: [core::ptr::null_mut(); 4],
};

/// What the interpreter calls on import.
#[unsafe(no_mangle)]
extern "C" fn PyInit_sluice_native() -> *mut c_void {
    // SAFETY: the interpreter calls this once, holding its lock; the statics live as long as the process.
    unsafe {
        MODULE.methods = (&raw mut METHODS).cast();
        python::PyModule_Create2(&raw mut MODULE, PYTHON_ABI_VERSION)
    }
}

/// Everything a run needs that does not change between runs.
struct LoadedBlueprint<'a> {
    head: Blueprint,
    direct: &'a [u64],
    nested: &'a [u64],
    closing: &'a [u64],
    rulings: &'a [RulingEntry],
    /// The zygote's own PID namespace, to return to after a nested run.
    pid_namespace: c_int,
}

/// A job with its descriptors.
struct Run {
    job: Job,
    fds: [c_int; MAX_GUEST_FDS + 1],
}

/// `serve(blueprint_fd) -> role`: returns in guests only.
unsafe extern "C" fn serve(_module: *mut c_void, blueprint_fd: *mut c_void) -> *mut c_void {
    // SAFETY: the argument is the Python integer that METH_O promises; the lock is held.
    let fd = unsafe { python::PyLong_AsLong(blueprint_fd) } as c_int;
    let mut buffer = [0_u64; MAX_BLUEPRINT / 8];
    let blueprint = match load_blueprint(fd, &mut buffer) {
        Ok(blueprint) => blueprint,
        Err(failure) => give_up(0, failure),
    };
    if let Err(failure) = enter::prepare_zygote(&blueprint.head) {
        give_up(0, failure);
    }
    sys::report(SOCKET, &Event::new(EventKind::Ready, 0), &[]);
    loop {
        let Some(run) = next_run() else { end_process() };
        // A late request to stop belongs to a run that is over.
        if run.job.request == Request::Stop as u32 {
            continue;
        }
        if let Some(role) = guest(&blueprint, &run) {
            // SAFETY: this is the guest, holding the lock that its parent held across the fork.
            return unsafe { python::PyLong_FromLong(c_long::from(role)) };
        }
    }
}

/// Reads the blueprint that `sluice-sandbox-init` left in a memfd and closes it.
fn load_blueprint(fd: c_int, buffer: &mut [u64]) -> Result<LoadedBlueprint<'_>, Failure> {
    let head_words = size_of::<Blueprint>() / 8;
    // SAFETY: the buffer is `MAX_BLUEPRINT` bytes long and alive.
    let got = unsafe { sys::read(fd, buffer.as_mut_ptr().cast(), MAX_BLUEPRINT) };
    let got = check(got as i64, Step::Native)? as usize;
    // SAFETY: `Blueprint` is plain integers, the buffer is aligned for it and longer.
    let head = unsafe { buffer.as_ptr().cast::<Blueprint>().read() };
    let (a, b) = (head.direct_len as usize, head.nested_len as usize);
    let (c, rulings_len) = (head.closing_len as usize, head.rulings_len as usize);
    let words = head_words + a + b + c + rulings_len.div_ceil(2);
    if head.magic != MAGIC || got != words * 8 {
        return Err(Failure { step: Step::Native, errno: 22 });
    }
    let rest = &buffer[head_words..words];
    let (programs, rulings) = rest.split_at(a + b + c);
    // SAFETY: closes a descriptor this module owns; a ruling is 4 bytes of plain integers, two in each word.
    let rulings = unsafe {
        sys::close(fd);
        core::slice::from_raw_parts(rulings.as_ptr().cast::<RulingEntry>(), rulings_len)
    };
    // SAFETY: the path ends in NUL. Close-on-exec only matters to a program that executes something.
    let pid_namespace = unsafe { sys::open(c"/proc/self/ns/pid".as_ptr(), 0o2_000_000) };
    check(i64::from(pid_namespace), Step::Native)?;
    Ok(LoadedBlueprint {
        pid_namespace,
        head,
        direct: &programs[..a],
        nested: &programs[a..a + b],
        closing: &programs[a + b..],
        rulings,
    })
}

/// The next job; `None` when the server has closed the socket.
fn next_run() -> Option<Run> {
    let mut run = Run { job: Job::EMPTY, fds: [-1; MAX_GUEST_FDS + 1] };
    // SAFETY: `Job` is `repr(C)`, plain integers without padding: every byte pattern is a value.
    let bytes = unsafe { core::slice::from_raw_parts_mut((&raw mut run.job).cast::<u8>(), size_of::<Job>()) };
    let (length, fd_count) = match sys::receive(SOCKET, bytes, &mut run.fds) {
        Ok((0, _)) => return None,
        Ok(got) => got,
        Err(errno) => give_up(0, Failure { step: Step::Receive, errno }),
    };
    let whole = length == size_of::<Job>() && run.job.magic == MAGIC;
    if !whole || run.job.fd_count as usize != fd_count || fd_count > MAX_GUEST_FDS {
        give_up(run.job.run, Failure { step: Step::Receive, errno: 22 });
    }
    Some(run)
}

/// Forks a guest and supervises it until nothing of it is left. `Some(role)` in the guest.
fn guest(blueprint: &LoadedBlueprint<'_>, run: &Run) -> Option<u32> {
    let number = run.job.run;
    let nested = run.job.request == Request::Nested as u32;
    let first = if nested { first_process::start().map(Some) } else { Ok(None) };
    let first = first.unwrap_or_else(|failure| give_up(number, failure));
    let [channel, theirs] = enter::listener_channel().unwrap_or_else(|failure| give_up(number, failure));
    // SAFETY: single-threaded process that holds the interpreter's lock, as the interpreter's own `os.fork`
    // has it.
    let (zygote, pid) = unsafe {
        let zygote = sys::getpid();
        python::PyOS_BeforeFork();
        (zygote, sys::fork())
    };
    if pid == 0 {
        // SAFETY: as above, in the child.
        unsafe { python::PyOS_AfterFork_Child() };
        match enter::become_guest(blueprint, run, enter::Origin { channel: theirs, zygote }) {
            Ok(()) => return Some(run.job.role),
            Err(failure) => fail_in_guest(number, failure),
        }
    }
    // SAFETY: as above, in the parent; descriptors that only the guest needs are closed, so that its death is
    // seen.
    unsafe {
        python::PyOS_AfterFork_Parent();
        sys::close(theirs);
    }
    close_fds(run);
    let outcome = check(i64::from(pid), Step::Fork)
        .and_then(|_| first.as_ref().map_or(Ok(()), |first| first.leave(blueprint)))
        .and_then(|()| {
            supervise::until_dead(blueprint, run, &supervise::Guest { pid, channel, first: first.as_ref() })
        });
    // SAFETY: the descriptor came from `listener_channel`.
    unsafe { sys::close(channel) };
    match outcome {
        Ok(event) => sys::report(SOCKET, &event, &[]),
        // A supervisor that cannot supervise must not leave a guest behind: its death ends them.
        Err(failure) => give_up(number, failure),
    };
    if let Some(first) = first {
        first.end();
    }
    sys::report(SOCKET, &Event::new(EventKind::Gone, number), &[]);
    None
}

fn close_fds(run: &Run) {
    for fd in &run.fds[..run.job.fd_count as usize] {
        // SAFETY: the descriptors came with the job and belong to it.
        unsafe { sys::close(*fd) };
    }
}

fn failed(run: u64, failure: Failure) -> Event {
    let mut event = Event::new(EventKind::Failed, run);
    event.step = failure.step as u32;
    event.errno = failure.errno;
    event
}

/// Reports a failure to the server and ends this process, and with it every guest and namespace it has made.
fn give_up(run: u64, failure: Failure) -> ! {
    sys::report(SOCKET, &failed(run, failure), &[]);
    end_process()
}

/// The same in a guest, whose descriptors may or may not have been moved yet.
fn fail_in_guest(run: u64, failure: Failure) -> ! {
    let event = failed(run, failure);
    if !sys::report(enter::REPORT_FD, &event, &[]) {
        sys::report(SOCKET, &event, &[]);
    }
    end_process()
}

fn end_process() -> ! {
    // SAFETY: ends this process without running anything of the interpreter.
    unsafe { sys::_exit(0) }
}
