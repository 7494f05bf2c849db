//! Streams between the members and the coordinator: in order each, with delays, cut off for a while, or
//! broken so that one end knows it long before the other.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ::coordinator::state::{BatchPlan, Event, Grant, Role};
use rand::RngExt;
use types::link::actor::ActorCommand;
use types::link::learner::LearnerCommand;
use types::link::reward::RewardCommand;
use types::{MemberId, Timestamp};

use super::World;

/// From a member.
#[derive(Debug, Clone)]
pub(super) enum Up {
    Hello(Event),
    Report(Event),
    Closed(Event),
}

/// From the coordinator.
#[derive(Debug, Clone)]
pub(super) enum Down {
    Actor(ActorCommand),
    Lease(Grant),
    Reward(RewardCommand),
    Learner(LearnerCommand),
    Batch(BatchPlan),
    /// The coordinator has closed the stream, for good if the member is refused.
    Closed {
        refused: bool,
    },
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) role: Role,
    pub(super) member: MemberId,
    up: VecDeque<(Timestamp, Up)>,
    down: VecDeque<(Timestamp, Down)>,
    /// Nothing arrives before.
    cut_off_until: Timestamp,
    /// The member's end is gone.
    left: bool,
}

/// All streams by number.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: BTreeMap<u64, Stream>,
    last: u64,
}

impl Streams {
    /// A member opens a stream.
    pub(super) fn open(&mut self, role: Role, member: MemberId) -> u64 {
        self.last += 1;
        let stream = Stream {
            role,
            member,
            up: VecDeque::new(),
            down: VecDeque::new(),
            cut_off_until: Timestamp(0),
            left: false,
        };
        self.open.insert(self.last, stream);
        self.last
    }

    pub(super) fn get(&self, number: u64) -> Option<&Stream> {
        self.open.get(&number)
    }

    pub(super) fn send_up(&mut self, number: u64, at: Timestamp, message: Up) {
        if let Some(stream) = self.open.get_mut(&number) {
            let at = stream.up.back().map_or(at, |(before, _)| at.max(*before));
            stream.up.push_back((at, message));
        }
    }

    pub(super) fn send_down(&mut self, number: u64, at: Timestamp, message: Down) {
        if let Some(stream) = self.open.get_mut(&number).filter(|stream| !stream.left) {
            let at = stream.down.back().map_or(at, |(before, _)| at.max(*before));
            stream.down.push_back((at, message));
        }
    }

    /// Streams on which something has arrived at the coordinator.
    pub(super) fn arrived(&self, now: Timestamp) -> Vec<u64> {
        let arrived = |stream: &Stream| {
            stream.cut_off_until <= now && stream.up.front().is_some_and(|(at, _)| *at <= now)
        };
        self.open.iter().filter(|(_, stream)| arrived(stream)).map(|(number, _)| *number).collect()
    }

    pub(super) fn take_up(&mut self, number: u64) -> Option<Up> {
        let (_, message) = self.open.get_mut(&number)?.up.pop_front()?;
        if matches!(message, Up::Closed(_)) {
            self.open.remove(&number);
        }
        Some(message)
    }

    /// What a member has received next; an end where the coordinator's process is gone.
    pub(super) fn take_down(&mut self, number: u64, now: Timestamp) -> Option<Down> {
        let Some(stream) = self.open.get_mut(&number) else {
            return Some(Down::Closed { refused: false });
        };
        if stream.cut_off_until > now || stream.down.front().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let (_, message) = stream.down.pop_front()?;
        if matches!(message, Down::Closed { .. }) {
            self.open.remove(&number);
        }
        Some(message)
    }

    /// Nothing arrives on a stream for a while.
    pub(super) fn cut_off(&mut self, number: u64, until: Timestamp) {
        if let Some(stream) = self.open.get_mut(&number) {
            stream.cut_off_until = until;
        }
    }

    /// The member's end breaks; the coordinator hears of it later. What is under way may be lost.
    pub(super) fn break_off(&mut self, number: u64, heard_at: Timestamp, closed: Event, loses: bool) {
        if let Some(stream) = self.open.get_mut(&number) {
            stream.left = true;
            stream.down.clear();
            if loses {
                stream.up.clear();
            }
            let at = stream.up.back().map_or(heard_at, |(before, _)| heard_at.max(*before));
            stream.up.push_back((at, Up::Closed(closed)));
        }
    }

    /// The coordinator's process is gone.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// Everybody can be reached again.
    pub(super) fn heal(&mut self) {
        self.open.values_mut().for_each(|stream| stream.cut_off_until = Timestamp(0));
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        self.open.keys().copied().collect()
    }
}

impl World {
    /// When something arrives that is sent now.
    pub(super) fn arrival(&mut self) -> Timestamp {
        let slow = self.faults.delay_millis;
        let most = if self.percent(10) { slow } else { slow / 10 };
        self.now + Duration::from_millis(self.rng.random_range(0..=most))
    }

    /// A member says something on its stream.
    pub(super) fn say(&mut self, stream: Option<u64>, message: Up) {
        let at = self.arrival();
        if let Some(number) = stream {
            self.streams.send_up(number, at, message);
        }
    }
}
