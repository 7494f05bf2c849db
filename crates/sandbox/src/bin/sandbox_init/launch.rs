//! From the server's spec to a running interpreter.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::execve;

use crate::failure::{AtStep as _, Failure};
use crate::wire::Step;
use crate::zygote_spec::ZygoteSpec;
use crate::{blueprint, filesystem, landlock_rules, namespaces};

/// The shared object with the zygote's loop.
static NATIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sluice_native.so"));

/// Loads the native half, then the guests' Python, and hands over. It may use nothing but built-in modules:
/// the standard library is imported afterwards, if at all.
const STUB: &str = "\
import sys, posix, marshal, _imp
from _frozen_importlib import ModuleSpec
sys.path[:] = [entry for entry in sys.path if entry]
native_fd, blueprint_fd, code_fd, warm = map(int, sys.argv[1:5])
sys.path += sys.argv[5:]
native = _imp.create_dynamic(ModuleSpec('sluice_native', None, origin='/proc/self/fd/%d' % native_fd))
parts = marshal.loads(posix.pread(code_fd, posix.fstat(code_fd).st_size, 0))
posix.close(native_fd)
posix.close(code_fd)
exec(parts['zygote'], {'__name__': 'sluice', 'parts': parts, 'native': native, 'blueprint_fd': blueprint_fd, 'warm': warm})
";

/// A specification is a few paths; what is longer is not one.
const MAX_SPEC_BYTES: usize = 64 * 1024;

/// Builds the sandbox. In tier A this process stays behind as the zygote's parent and returns its end; in
/// tier B it becomes the zygote and does not return.
pub(crate) fn zygote() -> Result<ExitCode, Failure> {
    let spec = read_spec()?;
    die_with_parent(spec.server_pid)?;
    let code = keep_code()?;
    if spec.namespaces {
        return namespaces::in_namespaces(spec.guest_ids, || {
            filesystem::pivot(&spec.reads, &spec.interpreter)?;
            execute(&spec, &code)
        });
    }
    Err(execute(&spec, &code).err().unwrap_or_else(|| Failure::other(Step::Exec, "execve returned")))
}

fn read_spec() -> Result<ZygoteSpec, Failure> {
    let mut buffer = vec![0_u8; MAX_SPEC_BYTES];
    // SAFETY: the buffer is alive and as long as said.
    let got = unsafe { libc::recv(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let got = usize::try_from(got).map_err(|_| {
        Failure::new(
            Step::ReadSpec,
            &std::io::Error::last_os_error(),
            "receive from the control socket on stdin",
        )
    })?;
    serde_json::from_slice(&buffer[..got]).map_err(|error| Failure::other(Step::ReadSpec, error))
}

/// Arms the death signal, and ends here where the parent died before it was armed.
fn die_with_parent(server_pid: u32) -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).at(Step::DeathSignal, "prctl")?;
    let parent = nix::unistd::getppid().as_raw();
    if parent != server_pid.cast_signed() {
        return Err(Failure::other(
            Step::DeathSignal,
            format!("started by {server_pid}, but the parent is {parent}"),
        ));
    }
    Ok(())
}

/// Moves the memfd with the guests' Python from stdout to a number of its own, closes everything else the
/// server may have left open, and points stdout and stderr at nothing.
fn keep_code() -> Result<OwnedFd, Failure> {
    const KEPT: RawFd = 3;
    // SAFETY: plain descriptor calls; this process has one thread and owns all its descriptors.
    let kept = unsafe {
        let kept = libc::dup2(libc::STDOUT_FILENO, KEPT);
        if kept == KEPT { libc::syscall(libc::SYS_close_range, KEPT + 1, libc::c_uint::MAX, 0) } else { -1 }
    };
    if kept != 0 {
        return Err(Failure::new(
            Step::ReadSpec,
            &std::io::Error::last_os_error(),
            "take over the descriptors",
        ));
    }
    let null = File::options().write(true).open("/dev/null").at(Step::ReadSpec, "open /dev/null")?;
    for target in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both descriptors are open.
        nix::errno::Errno::result(unsafe { libc::dup2(null.as_raw_fd(), target) })
            .at(Step::ReadSpec, "redirect the output")?;
    }
    // SAFETY: KEPT was made above and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(KEPT) })
}

/// Everything between the root file system and the interpreter's first instruction.
fn execute(spec: &ZygoteSpec, code: &OwnedFd) -> Result<(), Failure> {
    let ruleset = landlock_rules::ruleset(spec)?;
    let blueprint = blueprint::memfd_for(spec, ruleset.as_raw_fd())?;
    let native = memfd("native", NATIVE, Step::Native)?;
    zygote_limits()?;
    for fd in [&ruleset, &blueprint, &native, code] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).at(Step::Exec, "keep a descriptor across execve")?;
    }
    let mut arguments = vec![c_string(spec.interpreter.as_os_str())?];
    for argument in ["-s", "-S", "-B", "-X", "utf8", "-c", STUB] {
        arguments.push(c_string(OsStr::new(argument))?);
    }
    for number in [native.as_raw_fd(), blueprint.as_raw_fd(), code.as_raw_fd(), i32::from(spec.warm)] {
        arguments.push(c_string(OsStr::new(&number.to_string()))?);
    }
    for path in &spec.import_paths {
        arguments.push(c_string(path.as_os_str())?);
    }
    // The same program must get the same verdict twice, so sets iterate in the same order in every guest.
    let environment = [c"PYTHONHASHSEED=0"];
    let program = c_string(spec.interpreter.as_os_str())?;
    match execve(&program, &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => Err(errno).at(Step::Exec, spec.interpreter.display().to_string()),
    }
}

/// An argument of `execve`.
fn c_string(text: &OsStr) -> Result<CString, Failure> {
    CString::new(text.as_bytes()).map_err(|error| Failure::other(Step::Exec, error))
}

/// A memfd with these bytes, positioned at its start.
pub(crate) fn memfd(name: &str, bytes: &[u8], step: Step) -> Result<OwnedFd, Failure> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).at(step, "memfd_create")?;
    let mut file = File::from(fd);
    file.write_all(bytes).at(step, "write a memfd")?;
    std::io::Seek::rewind(&mut file).at(step, "rewind a memfd")?;
    Ok(file.into())
}

/// Limits that hold for the zygote and, as ceilings, for every guest.
fn zygote_limits() -> Result<(), Failure> {
    let table = [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_RTPRIO, 0),
        (Resource::RLIMIT_SIGPENDING, 256),
        (Resource::RLIMIT_NOFILE, 256),
    ];
    for (resource, value) in table {
        setrlimit(resource, value, value).at(Step::ZygoteLimits, format!("{resource:?}"))?;
    }
    Ok(())
}

/// Whether this process holds a capability; `None` where `/proc` does not say.
pub(crate) fn holds_capability(number: u32) -> Option<bool> {
    let status = fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(mask & (1 << number) != 0)
}
