//! Waiting for a guest: its death, its refused system calls, and the server's wish to stop it.

use core::ffi::c_int;

use crate::wire::{
    DANGEROUS, Denied, Event, EventKind, Job, MAX_DENIED, Request, Ruling, Step, WANTED_PROCESS,
    WANTED_SCRATCH,
};

use super::first_process::FirstProcess;
use super::{LoadedBlueprint, Run, SOCKET, sys, sys::Failure, sys::POLLIN, sys::PollFd, sys::check};

/// A forked guest as its supervisor knows it.
pub(super) struct Guest<'a> {
    pub(super) pid: c_int,
    /// Brings the seccomp listener.
    pub(super) channel: c_int,
    /// Holds the guest's PID namespace, where it has one of its own.
    pub(super) first: Option<&'a FirstProcess>,
}

/// `struct seccomp_notif` (80 bytes) and `struct seccomp_notif_resp` (24 bytes), linux/seccomp.h.
#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    syscall: i32,
    arch: u32,
    instruction_pointer: u64,
    arguments: [u64; 6],
}

#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const NOTIF_RECV: u64 = 0xc050_2100;
const NOTIF_SEND: u64 = 0xc018_2101;
const CONTINUE: u32 = 1;
const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENOSYS: i32 = 38;
/// Marks a call of the x32 table, which none of the filters allow.
const X32_BIT: i32 = 0x4000_0000;
const WNOHANG: c_int = 1;

/// Supervises the guest until it is dead and reaped; returns what the server is to hear.
pub(super) fn until_dead(
    blueprint: &LoadedBlueprint<'_>,
    run: &Run,
    guest: &Guest<'_>,
) -> Result<Event, Failure> {
    let pidfd = check(sys::raw(sys::PIDFD_OPEN, [guest.pid as usize, 0, 0, 0, 0]), Step::Pidfd)? as c_int;
    let to_kill = guest.first.map_or(pidfd, |first| first.pidfd);
    sys::report(SOCKET, &Event::new(EventKind::Started, run.job.run), &[to_kill, pidfd]);
    let mut event = Event::new(EventKind::Ended, run.job.run);
    let mut fds = [pidfd, SOCKET, guest.channel, -1].map(|fd| PollFd { fd, events: POLLIN, revents: 0 });
    let outcome = loop {
        // SAFETY: the array is alive and has four entries; negative descriptors are skipped by the kernel.
        let ready = unsafe { sys::poll(fds.as_mut_ptr(), 4, -1) };
        if ready < 0 && sys::errno() != sys::EINTR {
            break check(-1, Step::Supervise).map(|_| ());
        }
        if reaped(guest, &mut event) {
            break Ok(());
        }
        if ready <= 0 {
            continue;
        }
        if fds[1].revents != 0 && server_wants_stop(run.job.run, &mut fds[1]) {
            // SAFETY: the guest is an unreaped child, so the number is still its own.
            unsafe { sys::kill(guest.pid, sys::SIGKILL) };
        }
        if fds[2].revents != 0 {
            fds[3].fd = receive_listener(guest.channel);
            fds[2].fd = -1;
        }
        if fds[3].revents & POLLIN != 0 {
            rule(blueprint, guest, fds[3].fd, &mut event);
        } else if fds[3].revents != 0 {
            // SAFETY: the listener belongs to this function; nobody is left under its filter.
            unsafe { sys::close(fds[3].fd) };
            fds[3].fd = -1;
        }
    };
    for fd in [fds[0].fd, fds[3].fd] {
        // SAFETY: both belong to this function; closing -1 does nothing.
        unsafe { sys::close(fd) };
    }
    outcome.map(|()| event)
}

/// True once the guest is dead; its end is then in `event`. Does not wait.
fn reaped(guest: &Guest<'_>, event: &mut Event) -> bool {
    let mut usage = sys::Rusage::default();
    let mut status = 0;
    // SAFETY: both locals outlive the call.
    if unsafe { sys::wait4(guest.pid, &raw mut status, WNOHANG, &raw mut usage) } != guest.pid {
        return false;
    }
    let seconds = usage.user[0] + usage.system[0];
    event.status = status;
    event.cpu_micros = (seconds * 1_000_000 + usage.user[1] + usage.system[1]).max(0) as u64;
    event.max_rss_kib = usage.max_rss_kib.max(0) as u64;
    true
}

/// True where the server asked for the end of this run, or is gone.
fn server_wants_stop(run: u64, socket: &mut PollFd) -> bool {
    let mut job = Job::EMPTY;
    // SAFETY: `Job` is plain integers without padding.
    let bytes = unsafe { core::slice::from_raw_parts_mut((&raw mut job).cast::<u8>(), size_of::<Job>()) };
    match sys::receive(SOCKET, bytes, &mut []) {
        Ok((0, _)) | Err(_) => {
            socket.fd = -1;
            true
        }
        Ok(_) => job.request == Request::Stop as u32 && job.run == run,
    }
}

/// The listener, or -1 where the guest died before it had one.
fn receive_listener(channel: c_int) -> c_int {
    let mut fds = [-1];
    match sys::receive(channel, &mut [0], &mut fds) {
        Ok((_, 1)) => fds[0],
        _ => -1,
    }
}

/// Answers one refused system call and writes it down.
fn rule(blueprint: &LoadedBlueprint<'_>, guest: &Guest<'_>, listener: c_int, event: &mut Event) {
    let mut asked = Notification::default();
    // SAFETY: the structure has the size that the request number encodes, and is zeroed as the kernel
    // demands.
    if unsafe { sys::ioctl(listener, NOTIF_RECV, (&raw mut asked).cast()) } < 0 {
        return;
    }
    let entry = blueprint.rulings.iter().find(|entry| i32::from(entry.syscall) == asked.syscall);
    let ruling = match entry {
        Some(entry) if guest.first.is_some() => entry.nested,
        Some(entry) => entry.direct,
        None => Ruling::Refuse as u8,
    };
    let mut answer = Answer { id: asked.id, value: 0, error: -EPERM, flags: 0 };
    if ruling == Ruling::Kill as u8 || asked.syscall & X32_BIT != 0 {
        event.flags |= DANGEROUS;
        event.dangerous_syscall = asked.syscall as u32;
        // SAFETY: the guest is an unreaped child, so the number is still its own.
        unsafe { sys::kill(guest.pid, sys::SIGKILL) };
    } else if ruling == Ruling::Absent as u8 {
        answer.error = -ENOSYS;
    } else if ruling == Ruling::SelfOnly as u8 && asked.arguments[0] == guest.pid as u64 {
        (answer.error, answer.flags) = (0, CONTINUE);
    } else if ruling == Ruling::Process as u8 {
        event.flags |= WANTED_PROCESS;
    } else if ruling == Ruling::Scratch as u8 {
        event.flags |= WANTED_SCRATCH;
        answer.error = -EACCES;
    } else if ruling == Ruling::Write as u8 {
        event.flags |= WANTED_SCRATCH;
        (answer.error, answer.flags) = (0, CONTINUE);
    }
    if answer.error == -EPERM || answer.error == -EACCES {
        count(event, asked.syscall as u32);
    }
    // A guest that died meanwhile makes this fail, which is as good.
    // SAFETY: the structure has the size that the request number encodes.
    unsafe { sys::ioctl(listener, NOTIF_SEND, (&raw mut answer).cast()) };
}

fn count(event: &mut Event, syscall: u32) {
    let used = event.denied_len as usize;
    if let Some(entry) = event.denied[..used].iter_mut().find(|entry| entry.syscall == syscall) {
        entry.count = entry.count.saturating_add(1);
    } else if used < MAX_DENIED {
        event.denied[used] = Denied { syscall, count: 1 };
        event.denied_len += 1;
    }
}
