//! The guest of a session: one interpreter, which stands still between two steps.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::pipe2;

use crate::clock::{Moment, poll_millis};
use crate::limits::Limits;
use crate::stall::GuestPids;
use crate::trial::{GuestSpec, STOP_TIMEOUT, job, raw};
use crate::watch::{self, Usage};
use crate::wire::{Event, EventKind, Job, Request, Role};
use crate::zygote::{self, Zygote};

/// Reads of a stream before limits are looked at again.
const READS_AT_ONCE: usize = 64;
/// Longest until every process of a guest stands still.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest until a guest that was killed is gone, with all its processes. Each of them needs a processor
/// to die: on a machine with six times as much to do as it has processors, a few dozen have taken more
/// than two seconds.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// An interpreter under way.
#[derive(Debug)]
pub(super) struct Guest {
    run: u64,
    nested: bool,
    /// What to kill, and the guest itself; empty until the zygote has said that it runs.
    pidfds: Vec<OwnedFd>,
    /// The processes that were stopped.
    frozen: Vec<OwnedFd>,
    /// How it ended, once it has.
    pub(super) ended: Option<Event>,
    /// Nothing of it is left.
    gone: bool,
    /// Takes requests.
    pub(super) requests: File,
    pub(super) replies: File,
    /// What it prints.
    pub(super) output: File,
}

/// What a zygote has said of its guest.
pub(super) enum News {
    /// Nothing that matters.
    Nothing,
    /// The guest is dead.
    Ended,
    /// A step of its set-up failed, or the zygote is lost: why.
    Failed(String),
}

impl Guest {
    /// Asks a zygote for an interpreter.
    ///
    /// # Errors
    /// Where its pipes cannot be made, or the zygote does not take the job.
    pub(super) fn start(zygote: &mut Zygote, limits: &Limits, nested: bool) -> io::Result<Self> {
        let (requests_read, requests) = pipe2(OFlag::O_CLOEXEC)?;
        let (replies, replies_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (output, output_write) = pipe2(OFlag::O_CLOEXEC)?;
        for ours in [&requests, &replies, &output] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        // A guest of another user may open its own stream again, as `/dev/stdout`.
        fchmod(&output_write, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IWOTH)?;
        let nothing = OwnedFd::from(File::open("/dev/null")?);
        let fds = [&nothing, &output_write, &output_write, &requests_read, &replies_write].map(raw);
        let spec = GuestSpec { role: Role::Session, nested, fds: &fds, extra_memory_bytes: 0 };
        zygote.runs += 1;
        let run = u64::from(zygote.runs);
        zygote.submit(&job(limits, &spec, run), &fds)?;
        Ok(Self {
            run,
            nested,
            pidfds: Vec::new(),
            frozen: Vec::new(),
            ended: None,
            gone: false,
            requests: requests.into(),
            replies: replies.into(),
            output: output.into(),
        })
    }

    /// The processes behind its pidfds that are alive.
    fn pids(&self) -> Vec<u32> {
        self.pidfds.iter().filter_map(|pidfd| zygote::pid(pidfd.as_fd())).collect()
    }

    pub(super) fn pids_by_kind(&self) -> GuestPids {
        let has_started = !self.pidfds.is_empty() || self.ended.is_some();
        GuestPids { pids: self.pids(), nested: self.nested, has_started }
    }

    /// What all its processes use.
    pub(super) fn usage(&self) -> Usage {
        watch::sample(&self.pids(), self.nested)
    }

    /// Whether its memory is above `most`: shared pages count once for each process that has them in `usage`,
    /// so a forked heap is looked at again.
    pub(super) fn uses_more_memory(&self, usage: Usage, most: u64) -> bool {
        if usage.memory_bytes <= most {
            return false;
        }
        let exact = if self.nested { watch::proportional_memory(&self.pids()) } else { None };
        exact.is_none_or(|bytes| bytes > most)
    }

    /// Takes all messages of its zygote.
    pub(super) fn listen(&mut self, zygote: &Zygote) -> News {
        let mut news = News::Nothing;
        loop {
            let message = match zygote.receive() {
                Ok(Some(message)) => message,
                Ok(None) => return news,
                Err(error) => return News::Failed(error.to_string()),
            };
            match message.kind() {
                // A zygote that cannot go on says so without a run.
                Some(EventKind::Failed) => return News::Failed(message.failure().to_string()),
                _ if message.event.run != self.run => {}
                Some(EventKind::Started) => self.pidfds = message.fds,
                Some(EventKind::Ended) => {
                    self.ended = Some(message.event);
                    news = News::Ended;
                }
                Some(EventKind::Gone) => {
                    self.gone = true;
                    news = News::Ended;
                }
                Some(EventKind::Ready) | None => {}
            }
        }
    }

    /// Stops all its processes until [`Self::thaw`], so that nothing runs between two steps; false where some
    /// would not stand still.
    pub(super) fn freeze(&mut self) -> bool {
        let until = Moment::now() + FREEZE_TIMEOUT;
        let mut known = Vec::new();
        loop {
            let pids = self.pids();
            let members = watch::members(&pids, self.nested);
            let strangers: Vec<u32> = members.iter().copied().filter(|pid| !known.contains(pid)).collect();
            for pid in &strangers {
                let Ok(pidfd) = open_pidfd(*pid) else { continue };
                // The number may have become another process's before it was opened: then it is none of
                // these.
                if watch::members(&self.pids(), self.nested).contains(pid) {
                    zygote::signal(pidfd.as_fd(), Signal::SIGSTOP);
                    self.frozen.push(pidfd);
                    known.push(*pid);
                }
            }
            // A process that was about to fork when it was stopped has done so by the time it stands still.
            if strangers.is_empty() && members.iter().all(|pid| watch::is_still(*pid)) {
                return true;
            }
            if Moment::now() >= until {
                // One that has its signal and no processor yet does nothing more when it gets one.
                return strangers.is_empty();
            }
            std::thread::yield_now();
        }
    }

    /// Lets its processes run again.
    pub(super) fn thaw(&mut self) {
        for pidfd in self.frozen.drain(..) {
            zygote::signal(pidfd.as_fd(), Signal::SIGCONT);
        }
    }

    /// Ends it and waits until nothing of it is left; whether the zygote is as it was before.
    pub(super) fn end(mut self, zygote: &Zygote) -> bool {
        let stop = Job { request: Request::Stop as u32, run: self.run, ..Job::EMPTY };
        if !self.gone && zygote.submit(&stop, &[]).is_err() {
            return false;
        }
        let asked = Moment::now();
        let mut is_killed = false;
        while !self.gone && asked.elapsed() < END_TIMEOUT {
            if asked.elapsed() >= STOP_TIMEOUT && !is_killed {
                if let Some(pidfd) = self.pidfds.first() {
                    zygote::signal(pidfd.as_fd(), Signal::SIGKILL);
                }
                is_killed = true;
            }
            let mut fds = [PollFd::new(zygote.fd(), PollFlags::POLLIN)];
            // An interrupted or failed wait only means looking earlier.
            let _ = poll(&mut fds, PollTimeout::from(poll_millis(Moment::now() + STOP_TIMEOUT)));
            if let News::Failed(_) = self.listen(zygote) {
                return false;
            }
        }
        self.gone
    }
}

fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the descriptor that comes back is this process's own.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::c_int, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as libc::c_int))
    }
}

/// A descriptor to wait for, and what for; none that nobody waits for.
pub(super) type Awaited<'a> = Option<(BorrowedFd<'a>, PollFlags)>;

/// Waits for descriptors; which of them are ready, in the order of the arguments, or `None` where none is in
/// time.
pub(super) fn ready<const N: usize>(awaited: [Awaited<'_>; N], until: Moment) -> Option<[bool; N]> {
    let mut polled: Vec<PollFd<'_>> =
        awaited.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
    if !matches!(poll(&mut polled, PollTimeout::from(poll_millis(until))), Ok(1..)) {
        return None;
    }
    let mut found = polled.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
    Some(awaited.map(|entry| entry.is_some() && found.next() == Some(true)))
}

/// Reads what is there now, of a guest that writes without an end a part of it; false once the other side is
/// closed.
pub(super) fn drain(file: &mut File, mut take: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0_u8; 16 << 10];
    for _ in 0..READS_AT_ONCE {
        match io::Read::read(file, &mut buffer) {
            Ok(0) => return false,
            Ok(count) => take(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}
