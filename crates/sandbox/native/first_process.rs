//! The first process of a run's PID namespace: it does nothing, and its death kills everything else in it.
//!
//! It shares the zygote's memory (`CLONE_VM`, on a stack of its own), because a second copy of the
//! interpreter's page tables for a process that only waits would cost as much as the guest's. The guest is
//! the zygote's child, not this process's, and is forked by the zygote itself into the same namespace.

use core::ffi::{c_int, c_void};

use crate::wire::Step;

use super::{LoadedBlueprint, sys, sys::Failure, sys::check};

const CLONE_VM: c_int = 0x100;
const CLONE_FS: c_int = 0x200;
const CLONE_FILES: c_int = 0x400;
const CLONE_PIDFD: c_int = 0x1000;
const CLONE_NEWPID: c_int = 0x2000_0000;
const SIGCHLD: c_int = 17;
const IGNORE: usize = 1;

const STACK: usize = 16 << 10;

#[repr(align(16))]
struct Stack([u8; STACK]);

/// One run at a time, so one stack.
static mut STACK_OF_FIRST: Stack = Stack([0; STACK]);

/// A running first process. The zygote's next fork goes into its namespace until [`FirstProcess::leave`].
pub(super) struct FirstProcess {
    pid: c_int,
    /// Kills the whole namespace.
    pub(super) pidfd: c_int,
}

/// Makes a PID namespace for the zygote's next children, and the process that holds it.
pub(super) fn start() -> Result<FirstProcess, Failure> {
    let mut pidfd: c_int = -1;
    // SAFETY: numbers only; the function given to `clone` never returns, touches nothing of the zygote, and
    // has a stack that nothing else uses while it lives.
    let pid = unsafe {
        check(i64::from(sys::unshare(CLONE_NEWPID)), Step::Clone)?;
        let top = (&raw mut STACK_OF_FIRST).cast::<u8>().add(STACK);
        let flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_PIDFD | SIGCHLD;
        sys::clone(wait_for_the_end, top.cast(), flags, core::ptr::null_mut(), &raw mut pidfd)
    };
    check(i64::from(pid), Step::Clone)?;
    Ok(FirstProcess { pid, pidfd })
}

/// Ignoring the signal makes the kernel reap orphans by itself.
extern "C" fn wait_for_the_end(_: *mut c_void) -> c_int {
    // SAFETY: system calls without pointers.
    unsafe {
        sys::signal(SIGCHLD, IGNORE);
        sys::prctl(1, sys::SIGKILL as usize, 0, 0, 0);
        loop {
            sys::pause();
        }
    }
}

impl FirstProcess {
    /// Lets later children of the zygote be born in its own namespace again.
    pub(super) fn leave(&self, blueprint: &LoadedBlueprint<'_>) -> Result<(), Failure> {
        // SAFETY: numbers only.
        check(i64::from(unsafe { sys::setns(blueprint.pid_namespace, CLONE_NEWPID) }), Step::Clone)
            .map(|_| ())
    }

    /// Kills the namespace and waits until nothing is left in it.
    pub(super) fn end(self) {
        // SAFETY: the process is an unreaped child, so the number is its own; the descriptor came from
        // `start`. Both pointers may be null.
        unsafe {
            sys::kill(self.pid, sys::SIGKILL);
            while sys::wait4(self.pid, core::ptr::null_mut(), 0, core::ptr::null_mut()) < 0
                && sys::errno() == sys::EINTR
            {}
            sys::close(self.pidfd);
        }
    }
}
