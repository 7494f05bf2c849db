//! Tier A: a process in namespaces of its own.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid, pipe};

use crate::failure::{AtStep as _, Failure};
use crate::wire::Step;

const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Runs `inside` as the first process of new namespaces, in which it is root and nothing else is. This
/// process waits for its end.
pub(crate) fn in_namespaces(
    guest_ids: Option<(u32, u32)>,
    inside: impl FnOnce() -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    let (mapped, tell_mapped) = pipe().at(Step::Namespaces, "pipe")?;
    // SAFETY: this process has one thread; with a null stack the call is a fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone, NAMESPACES | libc::SIGCHLD, 0, 0, 0, 0) };
    let pid = nix::errno::Errno::result(pid).at(Step::Namespaces, "clone")?;
    if pid == 0 {
        drop(tell_mapped);
        let failure = match first_process(mapped).and_then(|()| inside()) {
            Err(failure) => failure,
            Ok(()) => Failure::other(Step::Exec, "execve returned"),
        };
        failure.report();
        std::process::exit(1);
    }
    drop(mapped);
    let child =
        Pid::from_raw(libc::pid_t::try_from(pid).map_err(|error| Failure::other(Step::Namespaces, error))?);
    map_ids(child, guest_ids)?;
    File::from(tell_mapped).write_all(b"m").at(Step::IdMaps, "tell the first process")?;
    leave_to(child)
}

/// In the child: dies with the helper, waits until its ids are mapped.
fn first_process(mapped: OwnedFd) -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).at(Step::DeathSignal, "prctl")?;
    // The end of the file instead of a byte means that the helper died before the signal was armed, or
    // failed.
    File::from(mapped).read_exact(&mut [0]).at(Step::IdMaps, "wait for the id maps")?;
    nix::unistd::sethostname("sandbox").at(Step::Namespaces, "sethostname")
}

/// Root inside is the helper's user outside; guests get a second id where the helper may hand one out.
fn map_ids(child: Pid, guest_ids: Option<(u32, u32)>) -> Result<(), Failure> {
    if guest_ids.is_none() {
        write_proc(child, "setgroups", "deny")?;
    }
    let (user, group) = guest_ids.unzip();
    write_proc(child, "uid_map", &id_map(geteuid().as_raw(), user))?;
    write_proc(child, "gid_map", &id_map(getegid().as_raw(), group))
}

/// The lines of an id map: root inside is `own` outside, and a guest's id is the same on both sides.
fn id_map(own: u32, guest: Option<u32>) -> String {
    match guest {
        Some(guest) => format!("0 {own} 1\n{guest} {guest} 1\n"),
        None => format!("0 {own} 1\n"),
    }
}

fn write_proc(process: Pid, name: &str, text: &str) -> Result<(), Failure> {
    fs::write(format!("/proc/{process}/{name}"), text).at(Step::IdMaps, format!("write {name}"))
}

/// The helper's own end: it keeps no descriptor, so that the server sees the zygote's end at once, and reaps
/// it.
fn leave_to(child: Pid) -> Result<ExitCode, Failure> {
    // SAFETY: closes everything; nothing of this process uses a descriptor from here on.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(ExitCode::SUCCESS),
            Ok(_) => return Ok(ExitCode::FAILURE),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return Ok(ExitCode::FAILURE),
        }
    }
}
