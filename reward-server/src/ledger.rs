//! What is in work: every rollout from its arrival until the coordinator's journal has its fate.
//!
//! Pure bookkeeping; time is an argument. Invariants:
//! 1. A rollout is in the ledger at most once, however often actors offer it: it is scored once.
//! 2. Every accepted offer holds the place of its answer in the actor's stream, so an answer never waits and is never
//!    dropped; it is given when the rollout is recorded, and not before.
//! 3. Results stay until they are recorded, and are sent again after a reconnect.
//! 4. Rollouts and bytes never exceed the bounds; an offer beyond them is refused, and the actor keeps its rollout.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::reward::{RewardReport, ScoreReply};
use types::{MemberId, Rollout, RolloutId};

/// Pause before the next try while nothing is known about the pace.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Bytes that a rollout occupies beside its contents.
const ENTRY_BYTES: usize = 512;

/// What an actor's stream carries; the error ends it.
pub(crate) type Reply = Result<ScoreReply, Misbehaved>;

/// An actor sent what no correct actor sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misbehaved(pub(crate) String);

/// The reserved place of one answer.
pub(crate) type Answer = mpsc::OwnedPermit<Reply>;

/// Bounds of the ledger.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most rollouts.
    pub(crate) rollouts: usize,
    /// Most bytes.
    pub(crate) bytes: usize,
}

/// What became of an offer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// To be scored.
    Accepted,
    /// Is in work already; the offer waits for the same result.
    Attached,
    /// There is no room; the actor has been told when to come back.
    Refused,
}

#[derive(Debug)]
struct Entry {
    /// Place in the order of arrival.
    order: u64,
    since: Instant,
    bytes: usize,
    /// The result, once there is one.
    report: Option<RewardReport>,
    /// Who waits; an actor that offers again on a new stream replaces its old one.
    answers: Vec<(MemberId, Answer)>,
}

/// A result has been recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Time from its arrival.
    pub(crate) took: Duration,
}

/// The rollouts in work.
#[derive(Debug)]
pub(crate) struct Ledger {
    bounds: Bounds,
    entries: HashMap<RolloutId, Entry>,
    bytes: usize,
    arrivals: u64,
    /// Results not yet sent on the current stream, in order.
    unsent: VecDeque<RolloutId>,
    /// Entries with a result.
    unrecorded: usize,
    pace: Pace,
}

/// Smoothed time between two records while there is work, and the appointments of those who were refused.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    interval: Option<f64>,
    /// When the next one that is refused shall return, at the earliest.
    appointment: Option<Instant>,
}

impl Pace {
    /// Work has come after a time without any, which says nothing about the pace.
    fn wake(&mut self, now: Instant) {
        self.last = Some(now);
    }

    fn tick(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let seconds = now.duration_since(last).as_secs_f64();
            self.interval = Some(self.interval.map_or(seconds, |interval| 0.95 * interval + 0.05 * seconds));
        }
    }

    /// The pause of one that is refused: about half of the `entries` will have left by then, and all that are refused
    /// return one by one, at twice the pace. So they neither flood the server nor leave it idle, however many they are.
    fn appoint(&mut self, now: Instant, entries: usize) -> Duration {
        let Some(interval) = self.interval else { return FIRST_PAUSE };
        let times = |count: f64| Duration::from_secs_f64((interval * count).min(LONGEST_PAUSE.as_secs_f64()));
        let earliest = now + times(entries as f64 / 2.0);
        let slot = self.appointment.map_or(earliest, |slot| slot.max(earliest)).min(now + LONGEST_PAUSE);
        self.appointment = Some(slot + times(0.5));
        slot.duration_since(now).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }
}

impl Ledger {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: HashMap::new(),
            bytes: 0,
            arrivals: 0,
            unsent: VecDeque::new(),
            unrecorded: 0,
            pace: Pace::default(),
        }
    }

    /// An actor offers a rollout of this size.
    pub(crate) fn offer(
        &mut self,
        now: Instant,
        (id, bytes): (RolloutId, usize),
        actor: &MemberId,
        answer: Answer,
    ) -> Offer {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.answers.retain(|(member, _)| member != actor);
            entry.answers.push((actor.clone(), answer));
            return Offer::Attached;
        }
        // One rollout always fits, or one larger than the bound could never be scored.
        let full = self.entries.len() >= self.bounds.rollouts || self.bytes + bytes > self.bounds.bytes;
        if full && !self.entries.is_empty() {
            let retry_after = self.pace.appoint(now, self.entries.len());
            self.refuse(id, answer, retry_after);
            return Offer::Refused;
        }
        let entry = Entry {
            order: self.arrivals,
            since: now,
            bytes,
            report: None,
            answers: vec![(actor.clone(), answer)],
        };
        if self.entries.is_empty() {
            self.pace.wake(now);
        }
        self.arrivals += 1;
        self.bytes += bytes;
        self.entries.insert(id, entry);
        Offer::Accepted
    }

    /// Tells an actor to come back, or to go elsewhere.
    pub(crate) fn refuse(&self, id: RolloutId, answer: Answer, retry_after: Duration) {
        answer.send(Ok(ScoreReply::Overloaded { id, retry_after }));
    }

    /// Whether this rollout is in work.
    pub(crate) fn holds(&self, id: RolloutId) -> bool {
        self.entries.contains_key(&id)
    }

    /// A rollout has its result.
    pub(crate) fn finished(&mut self, id: RolloutId, report: RewardReport) {
        if let Some(entry) = self.entries.get_mut(&id)
            && entry.report.is_none()
        {
            entry.report = Some(report);
            self.unrecorded += 1;
            self.unsent.push_back(id);
        }
    }

    /// The next result to send. It stays until it is recorded.
    pub(crate) fn next_unsent(&mut self) -> Option<RewardReport> {
        while let Some(id) = self.unsent.pop_front() {
            if let Some(report) = self.entries.get(&id).and_then(|entry| entry.report.clone()) {
                return Some(report);
            }
        }
        None
    }

    /// There is a new stream to the coordinator: everything unrecorded is to be sent again. Returns how much that is.
    pub(crate) fn send_again(&mut self) -> usize {
        let mut reported: Vec<(u64, RolloutId)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.report.is_some())
            .map(|(id, entry)| (entry.order, *id))
            .collect();
        reported.sort_unstable();
        self.unsent = reported.into_iter().map(|(_, id)| id).collect();
        self.unsent.len()
    }

    /// The coordinator's journal has a result: the actors that wait for it are told. None for one not held.
    pub(crate) fn recorded(&mut self, now: Instant, id: RolloutId) -> Option<Settled> {
        // The journal may know the fate of an attempt whose result is still being computed: it is then late.
        let entry = self.entries.remove(&id)?;
        self.bytes -= entry.bytes;
        self.unrecorded -= usize::from(entry.report.is_some());
        self.pace.tick(now);
        for (_, answer) in entry.answers {
            answer.send(Ok(ScoreReply::Recorded(id)));
        }
        Some(Settled { took: now.duration_since(entry.since) })
    }

    /// Rollouts in work.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Rollouts without a result.
    pub(crate) fn scoring(&self) -> usize {
        self.entries.len() - self.unrecorded
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a rollout occupies: its tokens with their numbers, joined once more for the networks, its fields as text and
/// parsed, and its texts.
pub(crate) fn bytes_of(rollout: &Rollout) -> usize {
    let tokens = rollout.prompt_tokens.len() + rollout.response_tokens.len();
    ENTRY_BYTES + 12 * tokens + 12 * rollout.response_tokens.len() + 3 * rollout.fields.len()
}

#[cfg(test)]
mod tests {
    use types::{FailReason, FinishReason, PolicyVersion, PromptId, RolloutFailure, Span};

    use super::*;

    fn rollout(ordinal: u64) -> Rollout {
        Rollout {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling: 0, attempt: 0 },
            prompt_tokens: vec![1, 2].into(),
            response_tokens: vec![3; 4],
            rollout_logprobs: vec![-0.5; 4],
            surviving_mass: None,
            spans: vec![Span { version: PolicyVersion(0), tokens: 4 }],
            finish_reason: FinishReason::Stop,
            fields: "{}".into(),
        }
    }

    fn report(ordinal: u64) -> RewardReport {
        RewardReport::Failed(RolloutFailure {
            id: rollout(ordinal).id,
            reason: FailReason::RewardError,
            detail: "x".into(),
            response_tokens: 4,
        })
    }

    /// An actor's stream.
    struct Actor {
        member: MemberId,
        sender: mpsc::Sender<Reply>,
        answers: mpsc::Receiver<Reply>,
    }

    impl Actor {
        fn new(name: &str) -> Self {
            let (sender, answers) = mpsc::channel(16);
            Self { member: name.parse().unwrap(), sender, answers }
        }

        fn offer(&self, ledger: &mut Ledger, ordinal: u64) -> Offer {
            let answer = self.sender.clone().try_reserve_owned().unwrap();
            ledger.offer(
                Instant::now(),
                (rollout(ordinal).id, bytes_of(&rollout(ordinal))),
                &self.member,
                answer,
            )
        }

        fn next(&mut self) -> Option<ScoreReply> {
            self.answers.try_recv().ok().map(Result::unwrap)
        }
    }

    fn ledger(rollouts: usize) -> Ledger {
        Ledger::new(Bounds { rollouts, bytes: 1 << 20 })
    }

    #[test]
    fn an_answer_comes_when_the_result_is_recorded_and_not_before() {
        let (mut ledger, mut actor) = (ledger(4), Actor::new("a"));
        assert_eq!(actor.offer(&mut ledger, 0), Offer::Accepted);
        ledger.finished(rollout(0).id, report(0));
        assert_eq!(ledger.next_unsent(), Some(report(0)));
        assert_eq!(actor.next(), None, "sent is not recorded");
        assert!(ledger.recorded(Instant::now(), rollout(0).id).is_some());
        assert_eq!(actor.next(), Some(ScoreReply::Recorded(rollout(0).id)));
        assert_eq!((ledger.len(), ledger.bytes()), (0, 0));
        assert!(ledger.recorded(Instant::now(), rollout(0).id).is_none(), "a second record changes nothing");
    }

    #[test]
    fn a_rollout_in_work_is_not_scored_twice_and_all_who_offered_it_are_told() {
        let (mut ledger, mut first, mut second) = (ledger(1), Actor::new("a"), Actor::new("b"));
        assert_eq!(first.offer(&mut ledger, 0), Offer::Accepted);
        assert_eq!(second.offer(&mut ledger, 0), Offer::Attached, "even when the ledger is full");
        let mut again = Actor::new("a");
        assert_eq!(again.offer(&mut ledger, 0), Offer::Attached);
        ledger.finished(rollout(0).id, report(0));
        ledger.recorded(Instant::now(), rollout(0).id);
        assert_eq!(first.next(), None, "its old stream was replaced");
        assert!(second.next().is_some() && again.next().is_some());
    }

    #[test]
    fn beyond_its_bounds_the_ledger_refuses_and_says_when_to_return() {
        let (mut ledger, mut actor) = (ledger(2), Actor::new("a"));
        assert_eq!(actor.offer(&mut ledger, 0), Offer::Accepted);
        assert_eq!(actor.offer(&mut ledger, 1), Offer::Accepted);
        assert_eq!(actor.offer(&mut ledger, 2), Offer::Refused);
        let Some(ScoreReply::Overloaded { id, retry_after }) = actor.next() else { panic!("no answer") };
        assert_eq!((id, retry_after), (rollout(2).id, FIRST_PAUSE));
        let one = bytes_of(&rollout(0));
        let mut small = Ledger::new(Bounds { rollouts: 9, bytes: one * 2 - 1 });
        assert_eq!(actor.offer(&mut small, 0), Offer::Accepted);
        assert_eq!(actor.offer(&mut small, 1), Offer::Refused, "bytes count too");
        let mut tiny = Ledger::new(Bounds { rollouts: 9, bytes: 1 });
        assert_eq!(actor.offer(&mut tiny, 0), Offer::Accepted, "one rollout always fits");
    }

    #[test]
    fn what_is_not_recorded_is_sent_again_in_order() {
        let (mut ledger, actor) = (ledger(8), Actor::new("a"));
        for ordinal in 0..4 {
            actor.offer(&mut ledger, ordinal);
        }
        for ordinal in [3, 0, 1] {
            ledger.finished(rollout(ordinal).id, report(ordinal));
        }
        while ledger.next_unsent().is_some() {}
        ledger.recorded(Instant::now(), rollout(1).id);
        assert_eq!(ledger.send_again(), 2);
        let sent: Vec<_> = std::iter::from_fn(|| ledger.next_unsent()).collect();
        assert_eq!(sent, [report(0), report(3)]);
        assert_eq!(ledger.scoring(), 1);
    }

    /// Fifty rollouts in work, of which one leaves every 20 ms.
    fn steady() -> (Pace, Instant) {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..50 {
            now += Duration::from_millis(20);
            pace.tick(now);
        }
        (pace, now)
    }

    #[test]
    fn the_refused_return_one_by_one_after_half_of_the_work() {
        let (mut pace, now) = steady();
        let pauses: Vec<f64> = (0..100).map(|_| pace.appoint(now, 50).as_secs_f64()).collect();
        assert!((0.45..0.55).contains(&pauses[0]), "half of 50 at 20 ms each: {}", pauses[0]);
        for pair in pauses.windows(2) {
            assert!((0.009..0.011).contains(&(pair[1] - pair[0])), "at twice the pace: {pair:?}");
        }
        let many = (0..10_000).map(|_| pace.appoint(now, 50)).max();
        assert_eq!(many, Some(LONGEST_PAUSE));
        let later = now + Duration::from_secs(60);
        assert!(pace.appoint(later, 50).as_secs_f64() < 0.55, "old appointments are past");
    }

    #[test]
    fn a_time_without_work_says_nothing_about_the_pace() {
        let (mut pace, now) = steady();
        let later = now + Duration::from_secs(600);
        pace.wake(later);
        pace.tick(later + Duration::from_millis(20));
        assert!(pace.appoint(later, 50).as_secs_f64() < 0.55);
    }
}
