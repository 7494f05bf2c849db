//! One run: guests under limits, their output, and the end of all of it.
//!
//! A trial has a first guest, whose use of resources is watched, and a last guest, whose end ends the trial
//! (they are the same for a program). Whatever ends it, every guest is stopped, and [`Trial::run`] returns
//! only when the kernel has nothing left of them or the zygote has to be given up.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::pipe2;

use crate::clock::{Moment, poll_millis};
use crate::host_memory::KillCount;
use crate::limits::Limits;
use crate::stall::{GuestPids, StallMeter};
use crate::tier::StepFailure;
use crate::watch;
use crate::wire::{Event, EventKind, Job, Request, Role};
use crate::zygote::{self, Message, Zygote};

/// Between two samples of what the first guest uses.
pub(crate) const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);
/// Between two looks at how long the guests waited for a processor.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A supervisor that was asked to stop its guest gets this long before the whole run is killed.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_millis(15);
/// After this long without a sign the zygote is given up.
pub(crate) const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a trial ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The last guest ended by itself.
    Finished,
    /// The wall limit, without the time that the host took.
    Wall,
    /// The host gave the run too little processor time.
    Overload,
    /// The processor time of the first guest.
    Cpu,
    /// The memory of the first guest.
    Memory,
    /// The processes and threads of the first guest.
    Tasks,
    /// A captured stream was longer than allowed; its index.
    Output(usize),
    /// A step of a guest's set-up failed.
    SetUp(StepFailure),
    /// A zygote ended or did not answer.
    Lost(String),
}

/// What a trial leaves behind.
#[derive(Debug)]
pub(crate) struct TrialReport {
    pub(crate) end: End,
    /// How each guest ended, where it was heard of.
    pub(crate) events: Vec<Option<Event>>,
    /// What each stream brought.
    pub(crate) streams: Vec<Vec<u8>>,
    pub(crate) wall: Duration,
    /// The part of `wall` that the host took.
    pub(crate) stalled: Duration,
    /// Processor time of the first guest.
    pub(crate) cpu: Duration,
    /// Whether every zygote is as it was before.
    pub(crate) healthy: bool,
    /// A guest was killed that nobody here has stopped, while the host killed for want of memory.
    pub(crate) host_out_of_memory: bool,
}

/// A guest to be started.
#[derive(Debug)]
pub(crate) struct GuestSpec<'a> {
    pub(crate) role: Role,
    /// Whether it gets namespaces and a scratch folder of its own (tier A only).
    pub(crate) nested: bool,
    /// Its descriptors 0, 1, 2, ...
    pub(crate) fds: &'a [RawFd],
    /// Added to the memory limit, for a guest that holds both sides' values.
    pub(crate) extra_memory_bytes: u64,
}

struct Guest<'a> {
    zygote: &'a mut Zygote,
    run: u64,
    nested: bool,
    /// What to kill, and the guest itself: with namespaces of its own these are two processes.
    pidfds: Vec<OwnedFd>,
    ended: Option<Event>,
    gone: bool,
    lost: bool,
    asked_to_stop: Option<Moment>,
    killed: bool,
    /// It died of SIGKILL before anybody here wanted its end.
    killed_by_others: bool,
}

/// What a descriptor that is polled belongs to, by its index.
#[derive(Clone, Copy)]
enum Source {
    Guest(usize),
    Stream(usize),
}

struct Stream {
    file: Option<File>,
    limit: u64,
    bytes: Vec<u8>,
}

/// Guests that run together, and what bounds them.
pub(crate) struct Trial<'a> {
    limits: &'a Limits,
    guests: Vec<Guest<'a>>,
    streams: Vec<Stream>,
    started: Moment,
    next_sample: Moment,
    next_look: Moment,
    stall: StallMeter,
    /// The wall limit ends nothing earlier.
    not_before: Moment,
    /// What the host was known to have taken when the wall limit last waited for a look.
    postponed_at: Option<Duration>,
    cpu: Duration,
    end: Option<End>,
    kills_before: KillCount,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        let started = Moment::now();
        Self {
            limits,
            guests: Vec::new(),
            streams: Vec::new(),
            started,
            next_sample: started + SAMPLE_INTERVAL,
            next_look: started + LOOK_INTERVAL,
            stall: StallMeter::new(started),
            not_before: started,
            postponed_at: None,
            cpu: Duration::ZERO,
            end: None,
            kills_before: KillCount::before_a_run(),
        }
    }

    /// Captures a stream of at most `limit` bytes; returns the end that the guest writes to.
    pub(crate) fn stream(&mut self, limit: u64) -> io::Result<OwnedFd> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // A guest of another user may open its own stream again, as `/dev/stdout`.
        fchmod(&write, Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IWOTH)?;
        self.streams.push(Stream { file: Some(read.into()), limit, bytes: Vec::new() });
        Ok(write)
    }

    /// Starts a guest. Where its zygote does not take the job the trial is lost, and [`Trial::run`] stops the
    /// others.
    pub(crate) fn start(&mut self, zygote: &'a mut Zygote, spec: &GuestSpec<'_>) {
        zygote.runs += 1;
        let run = u64::from(zygote.runs);
        let submitted = zygote.submit(&job(self.limits, spec, run), spec.fds);
        self.guests.push(Guest {
            zygote,
            run,
            nested: spec.nested,
            pidfds: Vec::new(),
            ended: None,
            gone: false,
            lost: submitted.is_err(),
            asked_to_stop: None,
            killed: false,
            killed_by_others: false,
        });
        if let Err(error) = submitted {
            self.finish(End::Lost(error.to_string()));
        }
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> TrialReport {
        while self.guests.iter().any(|guest| !guest.gone && !guest.lost) {
            self.check_limits();
            if self.end.is_some() {
                self.guests.iter_mut().for_each(Guest::stop);
            }
            self.wait();
        }
        let wall = self.started.elapsed();
        for index in 0..self.streams.len() {
            self.drain(index);
        }
        if let Some(event) = self.guests.first().and_then(|guest| guest.ended) {
            self.cpu = self.cpu.max(Duration::from_micros(event.cpu_micros));
        }
        let killed = self.guests.iter().any(|guest| guest.killed_by_others);
        TrialReport {
            host_out_of_memory: killed && self.kills_before.has_grown(),
            end: self.end.unwrap_or(End::Finished),
            events: self.guests.iter().map(|guest| guest.ended).collect(),
            streams: self.streams.into_iter().map(|stream| stream.bytes).collect(),
            wall,
            stalled: self.stall.total(),
            cpu: self.cpu,
            healthy: self.guests.iter().all(|guest| guest.gone && !guest.lost),
        }
    }

    fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// When the run has had its time on the wall, as far as is known now of what the host took of it.
    fn deadline(&self) -> Moment {
        (self.started + self.limits.wall + self.stall.total()).max(self.not_before)
    }

    /// When the host has had its time.
    fn overload_deadline(&self) -> Moment {
        self.started + self.limits.overload_wall.max(self.limits.wall)
    }

    /// Looks how much of the time the host took.
    fn look(&mut self, now: Moment) {
        let guests: Vec<_> = self.guests.iter().map(Guest::pids_by_kind).collect();
        self.stall.look(now, &guests);
        self.next_look = now + LOOK_INTERVAL;
    }

    /// Ends the trial where a limit is exceeded.
    fn check_limits(&mut self) {
        let now = Moment::now();
        if self.end.is_some() {
            return;
        }
        if now >= self.next_look || now >= self.deadline() {
            self.look(now);
        }
        if now >= self.overload_deadline() {
            self.finish(if now >= self.deadline() { End::Wall } else { End::Overload });
        } else if now >= self.deadline() {
            self.end_by_the_wall(now);
        } else if now >= self.next_sample {
            self.next_sample = now + SAMPLE_INTERVAL;
            self.check_usage();
        }
    }

    /// Ends the trial that has had its time on the wall, unless a guest may be waiting for a processor just
    /// now: the next look will say.
    fn end_by_the_wall(&mut self, now: Moment) {
        let counted = Some(self.stall.total());
        if self.stall.may_be_waiting() && self.postponed_at != counted {
            self.postponed_at = counted;
            self.not_before = now + LOOK_INTERVAL;
        } else {
            self.finish(End::Wall);
        }
    }

    /// Ends the trial where its first guest uses too much.
    fn check_usage(&mut self) {
        let Some(guest) = self.guests.first().filter(|guest| !guest.gone) else { return };
        let (pids, nested) = (guest.pids(), guest.nested);
        let usage = watch::sample(&pids, nested);
        self.cpu = self.cpu.max(usage.cpu);
        if usage.cpu > self.limits.cpu {
            self.finish(End::Cpu);
        } else if usage.tasks > self.limits.processes {
            self.finish(End::Tasks);
        } else if usage.memory_bytes > self.limits.memory_bytes {
            // Shared pages count once for each process that has them, so a forked heap is looked at again.
            let exact = if nested { watch::proportional_memory(&pids) } else { None };
            if exact.is_none_or(|bytes| bytes > self.limits.memory_bytes) {
                self.finish(End::Memory);
            }
        }
    }

    /// Waits until something happens or is due, and takes note of it.
    fn wait(&mut self) {
        let due = if self.end.is_some() {
            Moment::now() + STOP_TIMEOUT
        } else {
            self.deadline().min(self.overload_deadline()).min(self.next_sample)
        };
        let mut fds = Vec::with_capacity(8);
        let mut sources = Vec::with_capacity(8);
        for (index, guest) in self.guests.iter().enumerate().filter(|(_, guest)| !guest.gone && !guest.lost) {
            fds.push(PollFd::new(guest.zygote.fd(), PollFlags::POLLIN));
            sources.push(Source::Guest(index));
        }
        for (index, stream) in self.streams.iter().enumerate() {
            if let Some(file) = &stream.file {
                fds.push(PollFd::new(file.as_fd(), PollFlags::POLLIN));
                sources.push(Source::Stream(index));
            }
        }
        if !matches!(poll(&mut fds, PollTimeout::from(poll_millis(due))), Ok(1..)) {
            self.stall.woken_late(due.elapsed());
            return;
        }
        let ready: Vec<_> = fds
            .iter()
            .zip(sources)
            .filter(|(fd, _)| fd.revents().is_some_and(|events| !events.is_empty()))
            .map(|(_, source)| source)
            .collect();
        for source in ready {
            match source {
                Source::Guest(index) => self.receive(index),
                Source::Stream(index) => self.drain(index),
            }
        }
    }

    /// Takes all messages of a guest's zygote.
    fn receive(&mut self, index: usize) {
        loop {
            match self.guests[index].zygote.receive() {
                Ok(None) => return,
                Ok(Some(message)) => self.note(index, message),
                Err(error) => {
                    self.guests[index].lost = true;
                    self.finish(End::Lost(error.to_string()));
                    return;
                }
            }
        }
    }

    fn note(&mut self, index: usize, message: Message) {
        let is_last = index + 1 == self.guests.len();
        let guest = &mut self.guests[index];
        match message.kind() {
            // A zygote that cannot go on says so without a run.
            Some(EventKind::Failed) => {
                let failure = message.failure();
                self.finish(End::SetUp(failure));
            }
            _ if message.event.run != guest.run => {}
            Some(EventKind::Started) => guest.pidfds = message.fds,
            Some(EventKind::Ended) => {
                guest.ended = Some(message.event);
                let status = message.event.status;
                let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
                guest.killed_by_others = killed && guest.asked_to_stop.is_none();
                if is_last {
                    self.finish(End::Finished);
                }
            }
            Some(EventKind::Gone) => {
                guest.gone = true;
                if is_last {
                    self.finish(End::Finished);
                }
            }
            Some(EventKind::Ready) | None => {}
        }
    }

    /// Reads what a stream has; one that brings too much ends the trial.
    fn drain(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        let Some(file) = &mut stream.file else { return };
        let mut buffer = [0_u8; 16 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) if stream.bytes.len() as u64 + count as u64 > stream.limit => {
                    stream.file = None;
                    self.finish(End::Output(index));
                    return;
                }
                Ok(count) => stream.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => return,
                Err(_) => break,
            }
        }
        stream.file = None;
    }
}

impl Guest<'_> {
    /// The processes behind its pidfds that are alive.
    fn pids(&self) -> Vec<u32> {
        self.pidfds.iter().filter_map(|pidfd| zygote::pid(pidfd.as_fd())).collect()
    }

    fn pids_by_kind(&self) -> GuestPids {
        let has_started = !self.pidfds.is_empty() || self.gone || self.lost;
        GuestPids { pids: self.pids(), nested: self.nested, has_started }
    }

    /// Asks the supervisor to end the guest, then kills the run, then gives it up.
    fn stop(&mut self) {
        if self.gone || self.lost {
            return;
        }
        let Some(asked) = self.asked_to_stop else {
            self.asked_to_stop = Some(Moment::now());
            let stop = Job { request: Request::Stop as u32, run: self.run, ..Job::EMPTY };
            self.lost = self.zygote.submit(&stop, &[]).is_err();
            return;
        };
        if asked.elapsed() >= STOP_TIMEOUT && !self.killed {
            if let Some(pidfd) = self.pidfds.first() {
                zygote::signal(pidfd.as_fd(), Signal::SIGKILL);
            }
            self.killed = true;
        }
        self.lost = asked.elapsed() >= GIVE_UP_TIMEOUT;
    }
}

/// Reserved but untouched memory a guest may have beyond its limit: thread stacks, allocator arenas, mapped
/// libraries.
const ADDRESS_SLACK_BYTES: u64 = 1 << 30;
const STACK_BYTES: u64 = 64 << 20;

pub(crate) fn job(limits: &Limits, spec: &GuestSpec<'_>, run: u64) -> Job {
    let request = if spec.nested { Request::Nested } else { Request::Direct };
    Job {
        request: request as u32,
        run,
        role: spec.role as u32,
        fd_count: u32::try_from(spec.fds.len()).unwrap_or(u32::MAX),
        // The backstop must not strike before the server, which counts in milliseconds and over all
        // processes.
        cpu_seconds: limits.cpu.as_secs() + 2,
        address_space_bytes: limits.memory_bytes + spec.extra_memory_bytes + ADDRESS_SLACK_BYTES,
        file_bytes: limits.file_bytes.max(1),
        open_files: limits.open_files.max(16),
        // Counted per user over the whole machine where the guest has no user namespace of its own; there the
        // server's sampling is the limit.
        processes: if spec.nested { limits.processes + 2 } else { 0 },
        stack_bytes: STACK_BYTES,
        scratch_bytes: limits.file_bytes,
        scratch_inodes: limits.files + 1,
        ..Job::EMPTY
    }
}

/// The number of a descriptor, for [`GuestSpec::fds`].
pub(crate) fn raw(fd: &impl std::os::fd::AsFd) -> RawFd {
    let borrowed: BorrowedFd<'_> = fd.as_fd();
    borrowed.as_raw_fd()
}
