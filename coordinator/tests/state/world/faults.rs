//! What goes wrong, how often, and until when.

use ::coordinator::state::Role;
use rand::RngExt;
use types::MemberId;

use super::World;
use super::coordinator::left;

/// How often things go wrong, in thousandths of a step or of an occasion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Longest delay of a message, in milliseconds.
    pub(crate) delay_millis: u64,
    /// How far the clocks of machines are off, in milliseconds.
    pub(crate) clock_skew: u64,
    pub(crate) crash_coordinator: u32,
    /// Between two things that it does while it makes a lot durable.
    pub(crate) crash_in_commit: u32,
    pub(crate) crash_actor: u32,
    pub(crate) crash_reward_server: u32,
    pub(crate) crash_learner: u32,
    pub(crate) learner_dies_after_step: u32,
    /// A process is stopped for a while.
    pub(crate) stops: u32,
    /// A stream breaks.
    pub(crate) breaks: u32,
    /// A member is cut off for a while.
    pub(crate) cuts: u32,
    /// The journal's disk is full for a while.
    pub(crate) full_disk: u32,
    /// A second learner comes.
    pub(crate) second_learner: u32,
    /// An attempt fails.
    pub(crate) attempts: u32,
    /// Weights do not arrive.
    pub(crate) transfers: u32,
    /// A result is said twice.
    pub(crate) duplicates: u32,
    /// A checkpoint cannot be written.
    pub(crate) checkpoints: u32,
    /// The newest checkpoint turns out to be damaged.
    pub(crate) damaged_checkpoints: u32,
}

impl Default for Faults {
    /// Nothing goes wrong.
    fn default() -> Self {
        Self {
            delay_millis: 40,
            clock_skew: 0,
            crash_coordinator: 0,
            crash_in_commit: 0,
            crash_actor: 0,
            crash_reward_server: 0,
            crash_learner: 0,
            learner_dies_after_step: 0,
            stops: 0,
            breaks: 0,
            cuts: 0,
            full_disk: 0,
            second_learner: 0,
            attempts: 0,
            transfers: 0,
            duplicates: 0,
            checkpoints: 0,
            damaged_checkpoints: 0,
        }
    }
}

impl Faults {
    /// Everything goes wrong.
    pub(crate) fn chaos() -> Self {
        Self {
            delay_millis: 400,
            clock_skew: 0,
            crash_coordinator: 4,
            crash_in_commit: 1,
            crash_actor: 6,
            crash_reward_server: 4,
            crash_learner: 5,
            learner_dies_after_step: 50,
            stops: 3,
            breaks: 8,
            cuts: 4,
            full_disk: 2,
            second_learner: 2,
            attempts: 40,
            transfers: 50,
            duplicates: 100,
            checkpoints: 100,
            damaged_checkpoints: 300,
        }
    }

    /// Some of it goes wrong, some of it often: a mean of everything would hide what only a rare mixture
    /// shows.
    pub(crate) fn mixture(rng: &mut impl RngExt) -> Self {
        let all = Self::chaos();
        let mut share = |most: u32| {
            let times = [0, 0, 1, 1, 3][rng.random_range(0..5)];
            most * times
        };
        Self {
            delay_millis: [20, 200, 2_000][share(1).min(2) as usize],
            clock_skew: u64::from(share(1_200_000)),
            crash_coordinator: share(all.crash_coordinator),
            crash_in_commit: share(all.crash_in_commit),
            crash_actor: share(all.crash_actor),
            crash_reward_server: share(all.crash_reward_server),
            crash_learner: share(all.crash_learner),
            learner_dies_after_step: share(all.learner_dies_after_step),
            stops: share(all.stops),
            breaks: share(all.breaks),
            cuts: share(all.cuts),
            full_disk: share(all.full_disk),
            second_learner: share(all.second_learner),
            attempts: share(all.attempts),
            transfers: share(all.transfers),
            duplicates: share(all.duplicates),
            checkpoints: share(all.checkpoints),
            damaged_checkpoints: share(all.damaged_checkpoints),
        }
    }
}

/// Longest time for which something is stopped, cut off or full.
const MOST_MILLIS: u64 = 30_000;

impl World {
    /// One of the things that may go wrong in a step.
    pub(super) fn something_fails(&mut self) {
        let faults = self.faults;
        if self.per_mille(faults.crash_coordinator) && self.coordinator.is_up() {
            self.crash_coordinator();
        }
        if self.per_mille(faults.full_disk) {
            self.coordinator.full_until = self.soon(MOST_MILLIS);
        }
        if self.per_mille(faults.crash_actor) {
            let member = self.random_actor();
            self.crash_actor(&member);
        }
        if self.per_mille(faults.crash_reward_server) {
            let member = self.random_reward_server();
            self.crash_reward_server(&member);
        }
        if self.per_mille(faults.crash_learner) && !self.learners.is_empty() {
            let place = self.rng.random_range(0..self.learners.len());
            self.end_learner(place);
        }
        if self.per_mille(faults.second_learner) && self.learners.len() < 3 {
            let names = ["learner", "learner-2"];
            let name = names[self.rng.random_range(0..2)];
            self.start_learner_as(name.parse().unwrap());
        }
        if self.per_mille(faults.stops) {
            self.stop_a_process();
        }
        let streams = self.streams.numbers();
        if !streams.is_empty() {
            let number = streams[self.rng.random_range(0..streams.len())];
            if self.per_mille(faults.cuts) {
                let until = self.soon(MOST_MILLIS);
                self.streams.cut_off(number, until);
            }
            if self.per_mille(faults.breaks) {
                self.break_stream(Some(number));
                self.notice_broken(number);
            }
        }
    }

    fn random_actor(&mut self) -> MemberId {
        let place = self.rng.random_range(0..self.actors.len());
        self.actors.keys().nth(place).unwrap().clone()
    }

    fn random_reward_server(&mut self) -> MemberId {
        let place = self.rng.random_range(0..self.reward_servers.len());
        self.reward_servers.keys().nth(place).unwrap().clone()
    }

    /// As with SIGSTOP and, later, SIGCONT.
    fn stop_a_process(&mut self) {
        let until = self.soon(MOST_MILLIS);
        match self.rng.random_range(0..5) {
            0 => self.coordinator.stop_until(until),
            1 => {
                let member = self.random_actor();
                self.actors.get_mut(&member).unwrap().process.asleep_until = until;
            }
            2 => {
                let member = self.random_reward_server();
                self.reward_servers.get_mut(&member).unwrap().process.asleep_until = until;
            }
            3 => self.replace_stopped_learner(MOST_MILLIS),
            _ => {
                if !self.learners.is_empty() {
                    let place = self.rng.random_range(0..self.learners.len());
                    self.learners[place].process.asleep_until = until;
                }
            }
        }
    }

    /// The stream of a member's process breaks with it.
    pub(super) fn break_stream_of(&mut self, role: Role, member: &MemberId) {
        let stream = match role {
            Role::Actor => self.actors.get(member).and_then(|actor| actor.process.stream),
            Role::RewardServer => self.reward_servers.get(member).and_then(|server| server.process.stream),
            Role::Learner => None,
        };
        self.break_stream(stream);
    }

    /// The coordinator hears of it soon, or much later; what was under way may be lost.
    pub(super) fn break_stream(&mut self, stream: Option<u64>) {
        let Some(number) = stream else { return };
        let later = if self.percent(20) { 15_000 } else { 200 };
        let (heard_at, loses) = (self.soon(later), self.percent(50));
        let Some(stream) = self.streams.get(number) else { return };
        let closed = left(stream.role, &stream.member);
        self.streams.break_off(number, heard_at, closed, loses);
    }

    /// Whoever had this stream opens another.
    fn notice_broken(&mut self, number: u64) {
        let actors = self.actors.values_mut().map(|actor| &mut actor.process);
        let servers = self.reward_servers.values_mut().map(|server| &mut server.process);
        let learners = self.learners.iter_mut().map(|learner| &mut learner.process);
        for process in actors.chain(servers).chain(learners) {
            process.stream.take_if(|stream| *stream == number);
        }
    }

    /// Nothing goes wrong any more: what is stopped goes on, what is cut off can be reached, there is room
    /// on the disk, and one learner is left.
    pub(crate) fn end_faults(&mut self) {
        self.faults = Faults { clock_skew: self.faults.clock_skew, ..Faults::default() };
        self.coordinator.wake(self.now);
        self.streams.heal();
        let actors = self.actors.values_mut().map(|actor| &mut actor.process);
        let servers = self.reward_servers.values_mut().map(|server| &mut server.process);
        let learners = self.learners.iter_mut().map(|learner| &mut learner.process);
        for process in actors.chain(servers).chain(learners) {
            process.asleep_until = process.asleep_until.min(self.now);
        }
        self.keep_one_learner();
    }
}
