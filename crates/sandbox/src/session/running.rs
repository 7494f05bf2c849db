//! A step under way: the request, the reply, the output, and the limits.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::PollFlags;

use super::cut::Cut;
use super::guest::{Guest, News, drain, ready};
use super::step::{Interruption, SessionLimits, SessionUsage};
use crate::clock::Moment;
use crate::stall::StallMeter;
use crate::trial::{LOOK_INTERVAL, SAMPLE_INTERVAL};
use crate::wire::{DANGEROUS, Event};
use crate::zygote::Zygote;

/// Bytes of the key that a reply repeats.
const KEY_BYTES: usize = 16;

/// A step under way.
pub(super) struct Running<'a> {
    limits: &'a SessionLimits,
    /// What of the request is not written yet.
    request: Vec<u8>,
    key: [u8; KEY_BYTES],
    reply: Vec<u8>,
    pub(super) output: Cut,
    /// Whether somebody holds the other end of the output.
    is_output_open: bool,
    pub(super) started: Moment,
    next_sample: Moment,
    next_look: Moment,
    stall: StallMeter,
    /// Processor time that the interpreter had used before the step, once it is known.
    cpu_before: Option<Duration>,
    pub(super) cpu: Duration,
    /// What is left of the episode.
    cpu_left: Duration,
    wall_left: Duration,
}

/// Why a step is over.
pub(super) enum Over {
    Replied(u8),
    Interrupted(Interruption),
    /// The machine gave it too little processor time.
    Starved,
    /// The zygote is lost.
    Lost(String),
}

impl<'a> Running<'a> {
    pub(super) fn new(limits: &'a SessionLimits, used: &SessionUsage, code: &str, restarts: u32) -> Self {
        // It only has to differ from that of every other step: an interpreter that repeats it early fools
        // itself.
        let mut key = [0; KEY_BYTES];
        key[..8].copy_from_slice(&u64::from(used.steps).to_le_bytes());
        key[8..].copy_from_slice(&u64::from(restarts).to_le_bytes());
        let length = u32::try_from(code.len()).unwrap_or(u32::MAX).to_le_bytes();
        let started = Moment::now();
        Self {
            limits,
            request: [&key[..], &length, code.as_bytes()].concat(),
            key,
            reply: Vec::new(),
            output: Cut::new(limits.shown_bytes),
            is_output_open: true,
            started,
            next_sample: started + SAMPLE_INTERVAL,
            next_look: started + LOOK_INTERVAL,
            stall: StallMeter::new(started),
            cpu_before: None,
            cpu: Duration::ZERO,
            cpu_left: limits.cpu.saturating_sub(used.cpu),
            wall_left: limits.wall.saturating_sub(used.wall),
        }
    }

    /// Wall time so far, without that which the host took.
    pub(super) fn wall(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.stall.total())
    }

    /// Until it replies, or must not go on.
    pub(super) fn run(&mut self, guest: &mut Guest, zygote: &Zygote) -> Over {
        self.cpu_before = (!guest.pids_by_kind().pids.is_empty()).then(|| guest.usage().cpu);
        loop {
            if let Some(over) = self.check(guest) {
                return over;
            }
            self.write(guest);
            let is_pending = !self.request.is_empty();
            let awaited = [
                Some((zygote.fd(), PollFlags::POLLIN)),
                Some((guest.replies.as_fd(), PollFlags::POLLIN)),
                self.is_output_open.then(|| (guest.output.as_fd(), PollFlags::POLLIN)),
                is_pending.then(|| (guest.requests.as_fd(), PollFlags::POLLOUT)),
            ];
            let Some([news, reply, output, _]) = ready(awaited, self.next_sample) else {
                self.stall.woken_late(self.next_sample.elapsed());
                continue;
            };
            if output {
                self.is_output_open = drain(&mut guest.output, |bytes| self.output.push(bytes));
                if self.output.came() > self.limits.step.output_bytes {
                    return Over::Interrupted(Interruption::Output);
                }
            }
            if reply {
                let (end, is_open) = self.read(guest);
                match end {
                    Some(end) => return Over::Replied(end),
                    // Nobody is left who could reply.
                    None if !is_open => return Over::Interrupted(Interruption::Died),
                    None => {}
                }
            }
            if news {
                match guest.listen(zygote) {
                    News::Nothing => {}
                    News::Ended => return Over::Interrupted(death(guest.ended)),
                    News::Failed(reason) => return Over::Lost(reason),
                }
            }
        }
    }

    /// Writes as much of the request as the interpreter takes now. One that takes none any more is not waited
    /// for.
    fn write(&mut self, guest: &mut Guest) {
        match guest.requests.write(&self.request) {
            Ok(count) => drop(self.request.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.request.clear(),
        }
    }

    /// The reply to this step, once it is there, and whether one can still come.
    fn read(&mut self, guest: &mut Guest) -> (Option<u8>, bool) {
        let (reply, most) = (&mut self.reply, 4 * KEY_BYTES);
        let is_open = drain(&mut guest.replies, |bytes| {
            reply.extend_from_slice(bytes);
            // Junk does not pile up; of it only the end could be the reply.
            reply.drain(..reply.len().saturating_sub(most));
        });
        let end = self.reply.split_last_chunk::<1>();
        let end = end.and_then(|(key, end)| key.ends_with(&self.key).then_some(end[0]));
        (end, is_open)
    }

    /// The processor time of the step, once it is over.
    pub(super) fn charge(&mut self, guest: &Guest) {
        let of_event = guest.ended.map(|event| Duration::from_micros(event.cpu_micros));
        let now = of_event.unwrap_or_else(|| guest.usage().cpu);
        self.cpu = self.cpu.max(now.saturating_sub(self.cpu_before.unwrap_or_default()));
    }

    /// What must end the step now.
    fn check(&mut self, guest: &Guest) -> Option<Over> {
        let now = Moment::now();
        let wall = self.limits.step.wall.min(self.wall_left);
        let deadline = self.started + wall + self.stall.total();
        if now >= self.next_look || now >= deadline {
            self.stall.look(now, &[guest.pids_by_kind()]);
            self.next_look = now + LOOK_INTERVAL;
        }
        if now >= self.started + wall + self.stall.total() {
            return Some(Over::Interrupted(Interruption::Wall));
        }
        if now >= self.started + self.limits.step.overload_wall.max(wall) {
            return Some(Over::Starved);
        }
        if now < self.next_sample {
            return None;
        }
        self.next_sample = now + SAMPLE_INTERVAL;
        let usage = guest.usage();
        self.cpu = self.cpu.max(usage.cpu.saturating_sub(self.cpu_before.unwrap_or_default()));
        let why = if self.cpu > self.limits.step.cpu.min(self.cpu_left) {
            Interruption::Cpu
        } else if usage.tasks > self.limits.step.processes {
            Interruption::Processes
        } else if guest.uses_more_memory(usage, self.limits.step.memory_bytes) {
            Interruption::Memory
        } else {
            return None;
        };
        Some(Over::Interrupted(why))
    }
}

/// What ended an interpreter that nobody here has ended.
fn death(event: Option<Event>) -> Interruption {
    match event {
        Some(event) if event.flags & DANGEROUS != 0 => Interruption::DangerousSyscall,
        _ => Interruption::Died,
    }
}
