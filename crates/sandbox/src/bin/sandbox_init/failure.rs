//! A failed step, and how the server hears of it.

use std::io;

use nix::errno::Errno;

use crate::wire::{Event, EventKind, Step};

/// A step of the set-up that did not work.
#[derive(Debug)]
pub(crate) struct Failure {
    step: Step,
    errno: i32,
    detail: String,
}

impl Failure {
    /// A failure with what it was about, for the operator.
    pub(crate) fn new(step: Step, error: &io::Error, detail: impl Into<String>) -> Self {
        Self { step, errno: error.raw_os_error().unwrap_or(0), detail: format!("{}: {error}", detail.into()) }
    }

    /// A failure that no system call reported.
    pub(crate) fn other(step: Step, detail: impl std::fmt::Display) -> Self {
        Self { step, errno: 0, detail: detail.to_string() }
    }

    /// Sends the failure to the server: an event, followed by the text.
    pub(crate) fn report(&self) {
        let mut event = Event::new(EventKind::Failed, 0);
        event.step = self.step as u32;
        event.errno = self.errno;
        // SAFETY: `Event` is `repr(C)` without padding, so all its bytes are initialised.
        let head = unsafe {
            std::slice::from_raw_parts((&raw const event).cast::<u8>(), std::mem::size_of::<Event>())
        };
        let mut message = head.to_vec();
        message.extend_from_slice(self.detail.as_bytes());
        // SAFETY: the buffer is alive. A server that is gone cannot be told.
        unsafe { libc::send(libc::STDIN_FILENO, message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL) };
    }
}

/// Gives a system call's error its step.
pub(crate) trait AtStep<T> {
    /// Names the step and what it was about.
    fn at(self, step: Step, detail: impl Into<String>) -> Result<T, Failure>;
}

impl<T> AtStep<T> for io::Result<T> {
    fn at(self, step: Step, detail: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, &error, detail))
    }
}

impl<T> AtStep<T> for nix::Result<T> {
    fn at(self, step: Step, detail: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|errno: Errno| Failure::new(step, &errno.into(), detail))
    }
}
