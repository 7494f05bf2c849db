//! Whether the run gets anywhere (`docs/decisions.md`, D15): when something moved last, and causes that
//! cannot go away by themselves.
//!
//! A cause is said when it is found. When it has held for `hopeless_timeout` the run ends, as after a drain:
//! with what it has trained in a checkpoint. It goes away when what it denies happens: a response is scored,
//! a group can be trained, an actor has room.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use types::{FailReason, MemberId, Timestamp};

use super::plan::RunPlan;

/// Failures in a row, without a scored response between them, from which on nobody expects one; fewer where a
/// batch has fewer responses, because failures may be slow: of a service that nobody answers at, say.
const FAILURES_LIMIT: u64 = 256;
const MIN_FAILURES_LIMIT: u64 = 64;
/// Shortest and longest time between two looks.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How many times longer than usual a step may take before the run stands still.
const USUAL_FACTOR: u32 = 5;

/// What is known about progress.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// When something moved last: a score, a batch, a checkpoint, weights.
    moved_at: Timestamp,
    /// When a batch was trained last, and the longest time that this took lately.
    trained_at: Option<Timestamp>,
    longest_step: Duration,
    /// Failures since a response was scored.
    failures: BTreeMap<FailReason, Failures>,
    /// Groups in a row of which nothing could be trained.
    fruitless: Fruitless,
    /// Why the run cannot go on.
    hopeless: Option<Hopeless>,
    check_at: Option<Timestamp>,
}

/// Failures for one reason since a response was scored.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failures {
    count: u64,
    /// What was said about the first one.
    detail: String,
}

/// Groups in a row of which nothing could be trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fruitless {
    pub(super) groups: u64,
    /// Those whose scores carried no signal.
    pub(super) without_signal: u64,
}

/// Why the run cannot go on, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hopeless {
    /// The cause.
    pub cause: Cause,
    /// When it was found.
    pub since: Timestamp,
}

/// A cause that cannot go away by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No actor can hold one group.
    NoRoom {
        /// The actor with the most room.
        member: MemberId,
        /// Its room, in responses.
        free_slots: u32,
        /// What is needed.
        group_size: u16,
    },
    /// Every attempt fails.
    EveryAttemptFails {
        /// The most frequent reason.
        reason: FailReason,
        /// Failures since a response was scored.
        count: u64,
        /// What was said about the first one of that reason.
        detail: String,
    },
    /// Every group is useless for the batch.
    NothingToTrain {
        /// Groups in a row.
        groups: u64,
        /// Those whose scores were all equal.
        without_signal: u64,
    },
    /// Nothing moves.
    Standstill {
        /// What the run waits for.
        waiting_for: String,
        /// Without anything moving.
        seconds: u64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { member, free_slots, group_size } => write!(
                f,
                "no actor has room for one group of {group_size} responses: the most is {free_slots} (actor {member}); \
                 raise actor.engine.max_sequences or lower coordinator.group_size"
            ),
            Self::EveryAttemptFails { reason, count, detail } => write!(
                f,
                "the last {count} attempts have failed and none was scored, most of them as {reason}; the first said: {detail}"
            ),
            Self::NothingToTrain { groups, without_signal } => write!(
                f,
                "nothing of the last {groups} groups can be trained; in {without_signal} of them all scores carry no \
                 signal for the filtration (equal, or beyond no threshold), the others have too few scored responses"
            ),
            Self::Standstill { waiting_for, seconds } => {
                write!(f, "nothing has moved for {seconds} s; the run waits for {waiting_for}")
            }
        }
    }
}

/// What a look at the run has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// A cause that was not there before.
    Found(Cause),
    /// It has held for too long.
    GivenUp(Cause),
}

impl Progress {
    /// A run whose coordinator has just started.
    pub(super) fn from(now: Timestamp, plan: &RunPlan) -> Self {
        Self { moved_at: now, check_at: Some(now + check_interval(plan)), ..Self::default() }
    }

    /// Something moved.
    pub(super) fn moved(&mut self, now: Timestamp) {
        self.moved_at = now;
        self.clear(|cause| matches!(cause, Cause::Standstill { .. }));
    }

    /// Nobody could be heard: nothing could move.
    pub(super) fn was_away(&mut self, now: Timestamp) {
        self.moved(now);
        // Whatever held before holds again only if it is found again.
        self.hopeless = None;
    }

    /// A response was scored.
    pub(super) fn scored(&mut self, now: Timestamp) {
        self.moved(now);
        self.failures.clear();
        self.clear(|cause| matches!(cause, Cause::EveryAttemptFails { .. } | Cause::NoRoom { .. }));
    }

    /// A batch was trained.
    pub(super) fn trained(&mut self, now: Timestamp) {
        self.moved(now);
        let took = self.trained_at.map_or(Duration::ZERO, |before| now.since(before));
        self.longest_step = self.longest_step.max(took);
        self.trained_at = Some(now);
    }

    /// An attempt has failed.
    pub(super) fn failed(&mut self, reason: FailReason, detail: &str) {
        let failures = self.failures.entry(reason);
        let failures = failures.or_insert_with(|| Failures { count: 0, detail: detail.to_owned() });
        failures.count += 1;
    }

    /// A group is complete of which something trains.
    pub(super) fn group_kept(&mut self) {
        self.fruitless = Fruitless::default();
        self.clear(|cause| matches!(cause, Cause::NothingToTrain { .. }));
    }

    /// A group is complete of which nothing trains.
    pub(super) fn group_lost(&mut self, without_signal: bool) {
        self.fruitless.groups += 1;
        self.fruitless.without_signal += u64::from(without_signal);
    }

    fn clear(&mut self, over: impl Fn(&Cause) -> bool) {
        self.hopeless.take_if(|hopeless| over(&hopeless.cause));
    }

    /// Why the run cannot go on, if it cannot.
    pub(super) fn hopeless(&self) -> Option<&Hopeless> {
        self.hopeless.as_ref()
    }

    /// When something moved last.
    pub(super) fn moved_at(&self) -> Timestamp {
        self.moved_at
    }

    /// When to look again.
    pub(super) fn next_check(&self) -> Option<Timestamp> {
        self.check_at
    }

    /// Whether it is time to look at the run; the next look follows after a while.
    pub(super) fn is_check_due(&mut self, now: Timestamp, plan: &RunPlan) -> bool {
        let due = self.check_at.is_some_and(|moment| moment <= now);
        if due {
            self.check_at = Some(now + check_interval(plan));
        }
        due
    }

    /// Does not look any more: the run ends.
    pub(super) fn stop(&mut self) {
        self.check_at = None;
    }

    /// Looks for causes. `no_room` and `waiting_for` are what others know.
    pub(super) fn check(
        &mut self,
        now: Timestamp,
        plan: &RunPlan,
        no_room: Option<Cause>,
        waiting_for: String,
    ) -> Option<Finding> {
        if no_room.is_none() {
            self.clear(|cause| matches!(cause, Cause::NoRoom { .. }));
        }
        let cause = no_room.or_else(|| self.failing(plan)).or_else(|| self.fruitless(plan)).or_else(|| {
            let allowed = plan.standstill_timeout.max(self.longest_step * USUAL_FACTOR);
            let seconds = now.since(self.moved_at).as_secs();
            let stands = now.since(self.moved_at) >= allowed;
            stands.then_some(Cause::Standstill { waiting_for, seconds })
        });
        match (&mut self.hopeless, cause) {
            (_, None) => None,
            (Some(known), Some(cause)) if same_kind(&known.cause, &cause) => {
                known.cause = cause;
                let held = now.since(known.since);
                (held >= plan.hopeless_timeout).then(|| Finding::GivenUp(known.cause.clone()))
            }
            (_, Some(cause)) => {
                self.hopeless = Some(Hopeless { cause: cause.clone(), since: now });
                Some(Finding::Found(cause))
            }
        }
    }

    fn failing(&self, plan: &RunPlan) -> Option<Cause> {
        let limit =
            (plan.batch_prompts * u64::from(plan.group_size)).clamp(MIN_FAILURES_LIMIT, FAILURES_LIMIT);
        let count = self.failures.values().map(|failures| failures.count).sum();
        let (reason, most) = self.failures.iter().max_by_key(|(_, failures)| failures.count)?;
        let detail = most.detail.clone();
        (count >= limit).then_some(Cause::EveryAttemptFails { reason: *reason, count, detail })
    }

    fn fruitless(&self, plan: &RunPlan) -> Option<Cause> {
        let Fruitless { groups, without_signal } = self.fruitless;
        (groups >= plan.hopeless_groups).then_some(Cause::NothingToTrain { groups, without_signal })
    }
}

fn same_kind(one: &Cause, other: &Cause) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

fn check_interval(plan: &RunPlan) -> Duration {
    (plan.hopeless_timeout / 10).clamp(MIN_CHECK_INTERVAL, MAX_CHECK_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    /// Batches of 5 prompts with 20 responses each; hopeless after 100 groups, given up after 30 s.
    fn plan() -> RunPlan {
        RunPlan {
            group_size: 20,
            standstill_timeout: Duration::from_secs(600),
            hopeless_timeout: Duration::from_secs(30),
            hopeless_groups: 100,
            ..RunPlan::recorded()
        }
    }

    fn check(progress: &mut Progress, plan: &RunPlan, now: u64) -> Option<Finding> {
        progress.check(Timestamp(now), plan, None, "a batch".to_owned())
    }

    #[test]
    fn as_many_failures_as_a_batch_has_responses_are_too_many() {
        let sizes = [(20, 100), (1, MIN_FAILURES_LIMIT), (1000, FAILURES_LIMIT)];
        for (group_size, limit) in sizes {
            let plan = RunPlan { group_size, ..plan() };
            let mut progress = Progress::from(Timestamp(0), &plan);
            progress.failed(FailReason::Generation, "once");
            (2..limit).for_each(|n| progress.failed(FailReason::RewardError, &format!("number {n}")));
            assert_eq!(check(&mut progress, &plan, 1), None, "one fewer than {limit}");
            progress.failed(FailReason::RewardError, "the last");
            let detail = "number 2".to_owned();
            let cause = Cause::EveryAttemptFails { reason: FailReason::RewardError, count: limit, detail };
            assert_eq!(check(&mut progress, &plan, 2), Some(Finding::Found(cause.clone())));
            assert_eq!(progress.hopeless(), Some(&Hopeless { cause, since: Timestamp(2) }));
            progress.scored(Timestamp(3));
            assert_eq!((check(&mut progress, &plan, 4), progress.hopeless()), (None, None));
        }
    }

    #[test]
    fn a_cause_that_has_held_for_the_timeout_ends_the_run_as_it_is_by_then() {
        let plan = plan();
        let mut progress = Progress::from(Timestamp(0), &plan);
        (0..99).for_each(|n| progress.group_lost(n % 2 == 0));
        assert_eq!(check(&mut progress, &plan, 5), None);
        progress.group_lost(true);
        let cause = |groups| Cause::NothingToTrain { groups, without_signal: groups - 49 };
        assert_eq!(check(&mut progress, &plan, 10), Some(Finding::Found(cause(100))));
        progress.group_lost(true);
        assert_eq!(check(&mut progress, &plan, 30_009), None);
        assert_eq!(check(&mut progress, &plan, 30_010), Some(Finding::GivenUp(cause(101))));
        // Scores and steps do not deny it; a group that trains does.
        progress.scored(Timestamp(30_011));
        assert_eq!(progress.hopeless().map(|hopeless| hopeless.since), Some(Timestamp(10)));
        progress.group_kept();
        assert_eq!((check(&mut progress, &plan, 30_012), progress.hopeless()), (None, None));
    }

    #[test]
    fn a_run_stands_still_after_its_timeout_or_five_of_its_longest_steps() {
        let plan = plan();
        let mut progress = Progress::from(Timestamp(0), &plan);
        assert_eq!(check(&mut progress, &plan, 10 * MINUTE - 1), None);
        let stands = |seconds| Cause::Standstill { waiting_for: "a batch".to_owned(), seconds };
        assert_eq!(check(&mut progress, &plan, 10 * MINUTE), Some(Finding::Found(stands(600))));
        progress.moved(Timestamp(10 * MINUTE));
        assert_eq!((progress.hopeless(), progress.moved_at()), (None, Timestamp(10 * MINUTE)));
        // A step of three minutes, then one of one.
        for minute in [10, 13, 14] {
            progress.trained(Timestamp(minute * MINUTE));
        }
        assert_eq!(check(&mut progress, &plan, 29 * MINUTE - 1), None);
        assert_eq!(check(&mut progress, &plan, 29 * MINUTE), Some(Finding::Found(stands(900))));
        progress.was_away(Timestamp(30 * MINUTE));
        assert_eq!((check(&mut progress, &plan, 44 * MINUTE), progress.hopeless()), (None, None));
    }

    #[test]
    fn a_look_is_due_ten_times_in_the_timeout_and_once_a_second_at_least() {
        for (timeout, interval) in [(10, 100), (1_500, 150), (30_000, 1_000), (90_000, 1_000)] {
            let plan = RunPlan { hopeless_timeout: Duration::from_millis(timeout), ..plan() };
            let mut progress = Progress::from(Timestamp(0), &plan);
            assert_eq!(progress.next_check(), Some(Timestamp(interval)));
            assert!(!progress.is_check_due(Timestamp(interval - 1), &plan));
            assert!(progress.is_check_due(Timestamp(interval), &plan));
            assert!(!progress.is_check_due(Timestamp(2 * interval - 1), &plan));
            assert_eq!(progress.next_check(), Some(Timestamp(2 * interval)));
            progress.stop();
            assert!(!progress.is_check_due(Timestamp(9_000_000), &plan));
        }
    }

    #[test]
    fn an_actor_with_room_denies_that_there_is_none() {
        let plan = plan();
        let mut progress = Progress::from(Timestamp(0), &plan);
        let no_room = Cause::NoRoom { member: "a".parse().unwrap(), free_slots: 3, group_size: 20 };
        let found = progress.check(Timestamp(1), &plan, Some(no_room.clone()), String::new());
        assert_eq!(found, Some(Finding::Found(no_room)));
        assert_eq!((check(&mut progress, &plan, 2), progress.hopeless()), (None, None));
    }
}
