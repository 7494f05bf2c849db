//! One zygote: the helper process that was started for it, and the socket that its interpreter reads jobs
//! from.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, sendmsg,
    socketpair,
};

use crate::clock::Moment;
use crate::error::Error;
use crate::interpreter::Interpreter;
use crate::memfd;
use crate::tier::{StepFailure, Tier};
use crate::wire::{Event, EventKind, Job, STEPS};
use crate::zygote_spec::ZygoteSpec;

/// Starts zygotes of one tier.
#[derive(Debug)]
pub(crate) struct ZygoteLauncher {
    init: PathBuf,
    spec: ZygoteSpec,
    code: OwnedFd,
}

/// What a zygote imports before its first fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Imports {
    /// What solutions and tests import most.
    Usual,
    /// Nothing: for an interpreter that serves one run.
    None,
}

/// Unprivileged on every Linux; guests become this user where the server may change its own.
const NOBODY: u32 = 65534;

impl ZygoteLauncher {
    /// A launcher of zygotes of `tier`.
    ///
    /// # Errors
    /// Where the memory file with the guests' Python cannot be made.
    pub(crate) fn new(
        init: PathBuf,
        interpreter: &Interpreter,
        import_paths: &[PathBuf],
        tier: Tier,
    ) -> Result<Self, Error> {
        let code = memfd::with(&[&interpreter.code]).map_err(Error::io("create a memfd"))?;
        // In its own root file system a guest reads what was bound there; outside of it, what every user may
        // read. Where that is not enough the guest keeps the server's user, without any capability.
        let change_user = may_change_user() && (tier == Tier::A || interpreter.is_public());
        let spec = ZygoteSpec {
            namespaces: tier == Tier::A,
            interpreter: interpreter.path.clone(),
            reads: interpreter.reads.clone(),
            import_paths: import_paths.to_vec(),
            guest_ids: change_user.then_some((NOBODY, NOBODY)),
            server_pid: std::process::id(),
            warm: true,
        };
        Ok(Self { init, spec, code })
    }

    /// Starts a zygote. Its helper dies with the calling *thread*, so that thread has to outlive it.
    pub(crate) fn launch(&self, imports: Imports) -> io::Result<Starting> {
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut command = Command::new(&self.init);
        command.env_clear().current_dir("/");
        command.stdin(theirs).stdout(self.code.try_clone()?).stderr(Stdio::null());
        // An interrupt from the terminal is for the server, which stops its zygotes itself.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn()?;
        let spec = serde_json::to_vec(&ZygoteSpec { warm: imports == Imports::Usual, ..self.spec.clone() })?;
        send(control.as_raw_fd(), &spec, MsgFlags::MSG_NOSIGNAL)?;
        Ok(Starting { zygote: Zygote { child, control, runs: 0 }, since: Moment::now() })
    }
}

/// Whether this process may give its children another user and group.
fn may_change_user() -> bool {
    const SETGID_AND_SETUID: u64 = 1 << 6 | 1 << 7;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & SETGID_AND_SETUID == SETGID_AND_SETUID
}

/// A zygote that is not ready yet.
#[derive(Debug)]
pub(crate) struct Starting {
    zygote: Zygote,
    since: Moment,
}

/// How far a start has come.
#[derive(Debug)]
pub(crate) enum Start {
    /// Not there yet.
    Pending(Starting),
    /// Ready for jobs.
    Ready(Zygote),
    /// It will not become ready. The helper still has to be reaped.
    Failed(Zygote, StepFailure),
}

impl Starting {
    /// Becomes readable when something happens.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.zygote.fd()
    }

    /// Gives the start up.
    pub(crate) fn dismiss(self) -> Dying {
        self.zygote.dismiss()
    }

    /// Looks, without waiting, how far it has come.
    pub(crate) fn advance(self, timeout: Duration) -> Start {
        match self.zygote.receive() {
            Ok(Some(message)) if message.kind() == Some(EventKind::Ready) => Start::Ready(self.zygote),
            Ok(Some(message)) => Start::Failed(self.zygote, message.failure()),
            Ok(None) if self.since.elapsed() > timeout => self.failed(format!("not ready after {timeout:?}")),
            Ok(None) => Start::Pending(self),
            Err(error) => self.failed(format!("ended before it was ready: {error}")),
        }
    }

    fn failed(self, detail: String) -> Start {
        let step = "start the interpreter".to_owned();
        Start::Failed(self.zygote, StepFailure { step, errno: 0, detail })
    }
}

/// A ready zygote.
#[derive(Debug)]
pub(crate) struct Zygote {
    child: Child,
    control: OwnedFd,
    /// Guests it has been asked for; the number of the latest names it.
    pub(crate) runs: u32,
}

/// An event with what came along.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) event: Event,
    /// With `Started`: what to kill, and the guest.
    pub(crate) fds: Vec<OwnedFd>,
    /// Words about a failure.
    text: String,
}

impl Message {
    /// What the message is about; `None` for one that this build does not know.
    pub(crate) fn kind(&self) -> Option<EventKind> {
        use EventKind::{Ended, Failed, Gone, Ready, Started};
        [Ready, Started, Ended, Gone, Failed].into_iter().find(|kind| *kind as u32 == self.event.kind)
    }

    /// The failure that a `Failed` message reports.
    pub(crate) fn failure(&self) -> StepFailure {
        let step = STEPS
            .iter()
            .find(|(step, _)| *step as u32 == self.event.step)
            .map_or("unknown step", |(_, text)| text);
        StepFailure { step: step.to_owned(), errno: self.event.errno, detail: self.text.clone() }
    }
}

impl Zygote {
    /// The control socket, to poll.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.control)
    }

    /// Hands over a job with its descriptors.
    pub(crate) fn submit(&self, job: &Job, fds: &[RawFd]) -> io::Result<()> {
        // SAFETY: `Job` is `repr(C)`, integers without padding.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const *job).cast::<u8>(), std::mem::size_of::<Job>()) };
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg::<()>(
            self.control.as_raw_fd(),
            &[IoSlice::new(bytes)],
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// The next message, or `None` where there is none now.
    ///
    /// # Errors
    /// Where the zygote has ended.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        const MESSAGE_BYTES: usize = 4096;
        let mut buffer = [0_u8; MESSAGE_BYTES];
        let mut control = nix::cmsg_space!([RawFd; 2]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, fds) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received =
                match recvmsg::<()>(self.control.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                    Ok(received) => received,
                    Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
                    Err(errno) => return Err(errno.into()),
                };
            let mut fds = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(rights) = message {
                    for raw in rights {
                        // SAFETY: the kernel has just made this descriptor for this process.
                        fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
                    }
                }
            }
            (received.bytes, fds)
        };
        let head = std::mem::size_of::<Event>();
        if length < head {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its control socket is closed"));
        }
        // SAFETY: the buffer holds that many bytes, and every byte pattern is an `Event`.
        let event = unsafe { std::ptr::read_unaligned(buffer.as_ptr().cast::<Event>()) };
        let text = String::from_utf8_lossy(&buffer[head..length]).into_owned();
        Ok(Some(Message { event, fds, text }))
    }

    /// Closes the control socket, on which the zygote ends by itself.
    pub(crate) fn dismiss(self) -> Dying {
        Dying { child: self.child, since: Moment::now(), killed: false }
    }
}

/// A zygote on its way out.
#[derive(Debug)]
pub(crate) struct Dying {
    child: Child,
    since: Moment,
    killed: bool,
}

impl Dying {
    /// True once it is reaped. Kills it where it takes too long.
    pub(crate) fn is_gone(&mut self) -> bool {
        const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
        match self.child.try_wait() {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return true,
        }
        if !self.killed && self.since.elapsed() > EXIT_TIMEOUT {
            // The helper takes its zygote along by the death signal.
            self.killed = self.child.kill().is_ok();
        }
        false
    }
}

/// Sends a signal to the process behind a pidfd. A process that is dead already is as good.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: Signal) {
    // SAFETY: plain numbers and a null pointer, which stands for default signal information.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<u8>(),
            0,
        );
    }
}

/// The process id behind a pidfd, as this process's `/proc` counts; `None` once it is dead.
pub(crate) fn pid(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let line = facts.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    line.trim().parse().ok()
}
