//! Wall time that a run lost to the host: a guest was ready and got no processor, or nothing ran at all.
//!
//! Processor time is the response's; waiting for a processor is ours (docs/decisions.md, D22). The kernel
//! counts both for each thread (`/proc/PID/task/TID/schedstat`).
//!
//! A response cannot make this number large by itself. Of the threads of a guest only the one that waited
//! longest counts, so while it waits for its own siblings they use up the processor time that ends the run;
//! it cannot lower its own priority, and a thread that sleeps waits for nothing.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::watch;

/// The kernel counts a wait at its end, so that one look may bring what belongs before the look before. This
/// much of the time that no wait has claimed yet is kept for it.
const UNCLAIMED_LIMIT: Duration = Duration::from_secs(1);

/// What is known of a thread from the look before.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    schedule: watch::Schedule,
    /// Whether it was ready to run or running.
    is_ready: bool,
    /// The part of a wait that is not over yet, counted already; the kernel counts a wait at its end.
    counted_ahead: Duration,
}

/// A guest of the run, as its zygote has announced it.
#[derive(Debug)]
pub(crate) struct GuestPids {
    pub(crate) pids: Vec<u32>,
    pub(crate) nested: bool,
    /// Whether it runs its own program by now; until then its set-up is under way, which is ours.
    pub(crate) has_started: bool,
}

/// Adds up what a run lost to the host.
#[derive(Debug)]
pub(crate) struct StallMeter {
    threads: HashMap<u32, Known>,
    looked: Moment,
    /// How late the watching thread itself was woken since the last look.
    late: Duration,
    /// Time up to the last look that was not lost as far as is known.
    unclaimed: Duration,
    /// Whether at the last look a thread was ready that had not run since the look before: it may be in the
    /// middle of a wait that the kernel has not counted.
    may_be_waiting: bool,
    total: Duration,
}

impl StallMeter {
    /// A meter of a run that starts now.
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            threads: HashMap::new(),
            looked: now,
            late: Duration::ZERO,
            unclaimed: Duration::ZERO,
            may_be_waiting: false,
            total: Duration::ZERO,
        }
    }

    /// What was lost up to the last look.
    pub(crate) fn total(&self) -> Duration {
        self.total
    }

    /// Whether the next look may bring a wait that was under way at the last one.
    pub(crate) fn may_be_waiting(&self) -> bool {
        self.may_be_waiting
    }

    /// Takes note that the watching thread wanted to be awake this much earlier: the machine was stopped, or
    /// its hypervisor busy elsewhere.
    pub(crate) fn woken_late(&mut self, by: Duration) {
        self.late += by;
    }

    /// Looks at every thread of every guest.
    pub(crate) fn look(&mut self, now: Moment, guests: &[GuestPids]) {
        let passed = now.saturating_duration_since(self.looked);
        let setting_up = guests.iter().any(|guest| !guest.has_started);
        // Guests take turns, so that what one waits the other waits too.
        self.may_be_waiting = false;
        let waited: Duration = guests.iter().map(|guest| self.longest_wait(guest, passed)).sum();
        if setting_up {
            self.total += passed;
        } else {
            self.claim(waited.max(self.late), passed);
        }
        self.looked = now;
        self.late = Duration::ZERO;
    }

    /// Counts what was lost of the time since the last look, and of what was left of the time before.
    fn claim(&mut self, lost: Duration, passed: Duration) {
        let open = self.unclaimed + passed;
        let lost = lost.min(open);
        self.total += lost;
        self.unclaimed = (open - lost).min(UNCLAIMED_LIMIT);
    }

    /// How long the thread of a guest that waited longest did so since the last look.
    fn longest_wait(&mut self, guest: &GuestPids, passed: Duration) -> Duration {
        let mut longest = Duration::ZERO;
        for (thread, schedule) in watch::schedules(&guest.pids, guest.nested) {
            let known = self.threads.entry(thread).or_default();
            let wait = known.wait_until(schedule, passed, || watch::is_ready(thread));
            self.may_be_waiting |= known.is_ready;
            longest = longest.max(wait);
        }
        longest
    }
}

impl Known {
    /// How long the thread waited since the last look, `passed` ago.
    fn wait_until(
        &mut self,
        schedule: watch::Schedule,
        passed: Duration,
        is_ready: impl FnOnce() -> bool,
    ) -> Duration {
        let before = std::mem::replace(&mut self.schedule, schedule);
        if schedule != before {
            self.is_ready = false;
            let counted = schedule.waited.saturating_sub(before.waited);
            let wait = counted.saturating_sub(self.counted_ahead);
            self.counted_ahead = self.counted_ahead.saturating_sub(counted);
            return wait;
        }
        // It has not run at all. Where it was ready before and is so still, it has waited all the time.
        let was_ready = std::mem::replace(&mut self.is_ready, is_ready());
        if was_ready && self.is_ready {
            self.counted_ahead += passed;
            return passed;
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const fn schedule(ran: u64, waited: u64) -> watch::Schedule {
        watch::Schedule { ran: ms(ran), waited: ms(waited) }
    }

    #[test]
    fn a_wait_is_counted_once_whether_or_not_it_is_over() {
        let mut thread = Known::default();
        assert_eq!(thread.wait_until(schedule(10, 5), ms(100), || true), ms(5));
        // Starved: ready in two looks, without having run.
        assert_eq!(thread.wait_until(schedule(10, 5), ms(100), || true), ms(0), "it may have woken just now");
        assert_eq!(thread.wait_until(schedule(10, 5), ms(100), || true), ms(100));
        // Then it runs, and the kernel counts all of the wait.
        assert_eq!(thread.wait_until(schedule(20, 255), ms(100), || true), ms(150));
        assert_eq!(thread.wait_until(schedule(30, 300), ms(100), || true), ms(45));
    }

    #[test]
    fn a_wait_that_ends_after_a_look_claims_the_time_before_it() {
        let mut meter = StallMeter::new(Moment::now());
        // Ran 10 of every 100 and waited the rest, in waits that end in every other look.
        for _ in 0..20 {
            meter.claim(ms(30), ms(100));
            meter.claim(ms(150), ms(100));
        }
        assert_eq!(meter.total(), ms(20 * 180));
        // No more than has passed, and nothing of what passed long ago.
        meter.claim(ms(0), ms(60_000));
        let before = meter.total();
        meter.claim(ms(50_000), ms(100));
        assert_eq!(meter.total() - before, UNCLAIMED_LIMIT + ms(100));
    }

    #[test]
    fn a_thread_that_sleeps_waits_for_nothing() {
        let mut thread = Known::default();
        thread.wait_until(schedule(10, 5), ms(100), || true);
        for _ in 0..5 {
            assert_eq!(thread.wait_until(schedule(10, 5), ms(100), || false), ms(0));
        }
    }

    #[test]
    fn a_set_up_is_ours_and_so_is_a_machine_that_stood_still() {
        let start = Moment::now();
        let guest = |has_started| GuestPids { pids: Vec::new(), nested: false, has_started };
        let mut meter = StallMeter::new(start);
        meter.look(start + ms(30), &[guest(true), guest(false)]);
        assert_eq!(meter.total(), ms(30));
        meter.look(start + ms(80), &[guest(true), guest(true)]);
        assert_eq!(meter.total(), ms(30));
        meter.woken_late(ms(5000));
        meter.look(start + ms(5090), &[guest(true), guest(true)]);
        assert_eq!(meter.total(), ms(5030));
    }

    #[test]
    fn a_thread_that_competes_for_one_processor_has_waited() {
        let me = GuestPids { pids: vec![std::process::id(); 2], nested: false, has_started: true };
        let mut meter = StallMeter::new(Moment::now());
        meter.look(Moment::now(), std::slice::from_ref(&me));
        let (before, started) = (meter.total(), Moment::now());
        let mut mask = nix::sched::CpuSet::new();
        mask.set(0).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &mask).unwrap();
                    while started.elapsed() < ms(400) {}
                });
            }
            while started.elapsed() < ms(350) {
                std::thread::yield_now();
            }
            meter.look(Moment::now(), std::slice::from_ref(&me));
        });
        let waited = meter.total().saturating_sub(before);
        assert!(waited > ms(120) && waited <= ms(5000), "{waited:?} of four threads on one processor");
    }
}
