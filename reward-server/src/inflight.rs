//! What is in work: every rollout from its arrival until the coordinator's journal has its fate.
//!
//! Pure bookkeeping: time is an argument, and whoever is to be answered comes back as a value, for the caller
//! to answer. Invariants:
//! 1. A rollout is held at most once, however often actors offer it: it is scored once.
//! 2. Every accepted offer keeps its `answer`; it is given back when the rollout is recorded, and not before.
//! 3. Results stay until they are recorded, and are sent again after a reconnect.
//! 4. Rollouts and bytes never exceed the bounds; an offer beyond them is refused, and the actor keeps its
//!    rollout.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use types::link::reward::RewardReport;
use types::{MemberId, Rollout, RolloutId};

use crate::pace::Pace;

/// Bytes that a rollout occupies beside its contents.
const ENTRY_BYTES: usize = 512;

/// How much may be in work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Most rollouts.
    pub(crate) rollouts: usize,
    /// Most bytes.
    pub(crate) bytes: usize,
}

/// An actor offers a rollout. `A` is where its answer goes.
#[derive(Debug)]
pub(crate) struct Offer<A> {
    pub(crate) id: RolloutId,
    /// What the rollout occupies; see [`bytes_of`].
    pub(crate) bytes: usize,
    pub(crate) actor: MemberId,
    pub(crate) answer: A,
}

/// What became of an offer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission<A> {
    /// To be scored.
    Accepted,
    /// Is in work already; the offer waits for the same result.
    Attached,
    /// There is no room. The actor is to be told, over `answer`, when to come back.
    Refused { answer: A, retry_after: Duration },
}

#[derive(Debug)]
struct Entry<A> {
    /// Place in the order of arrival.
    order: u64,
    since: Instant,
    bytes: usize,
    /// The result, once there is one.
    report: Option<RewardReport>,
    /// Who waits; an actor that offers again on a new stream replaces its old one.
    answers: Vec<(MemberId, A)>,
}

/// A result has been recorded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recorded<A> {
    /// Time from its arrival.
    pub(crate) took: Duration,
    /// The actors that are to be told.
    pub(crate) answers: Vec<A>,
}

/// The rollouts in work.
#[derive(Debug)]
pub(crate) struct Inflight<A> {
    bounds: Bounds,
    entries: HashMap<RolloutId, Entry<A>>,
    bytes: usize,
    arrivals: u64,
    /// Results not yet sent on the current stream, in order.
    unsent: VecDeque<RolloutId>,
    /// Entries with a result.
    unrecorded: usize,
    pace: Pace,
}

impl<A> Inflight<A> {
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

    /// Takes a rollout in, if there is room.
    pub(crate) fn offer(&mut self, now: Instant, offer: Offer<A>) -> Admission<A> {
        let Offer { id, bytes, actor, answer } = offer;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.answers.retain(|(member, _)| *member != actor);
            entry.answers.push((actor, answer));
            return Admission::Attached;
        }
        // One rollout always fits, or one larger than the bound could never be scored.
        let full = self.entries.len() >= self.bounds.rollouts || self.bytes + bytes > self.bounds.bytes;
        if full && !self.entries.is_empty() {
            return Admission::Refused {
                answer,
                retry_after: self.pace.retry_after(now, self.entries.len()),
            };
        }
        if self.entries.is_empty() {
            self.pace.wake(now);
        }
        let answers = vec![(actor, answer)];
        self.entries.insert(id, Entry { order: self.arrivals, since: now, bytes, report: None, answers });
        self.arrivals += 1;
        self.bytes += bytes;
        Admission::Accepted
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

    /// There is a new stream to the coordinator: everything unrecorded is to be sent again. Returns how much
    /// that is.
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

    /// The coordinator's journal has a result: the actors that wait for it are to be told. None for one not
    /// held.
    pub(crate) fn recorded(&mut self, now: Instant, id: RolloutId) -> Option<Recorded<A>> {
        // The journal may know the fate of an attempt whose result is still being computed: it is then late.
        let entry = self.entries.remove(&id)?;
        self.bytes -= entry.bytes;
        self.unrecorded -= usize::from(entry.report.is_some());
        self.pace.departed(now);
        let answers = entry.answers.into_iter().map(|(_, answer)| answer).collect();
        Some(Recorded { took: now.duration_since(entry.since), answers })
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

/// What a rollout occupies: its tokens with their numbers, joined once more for the networks, and its texts;
/// its fields, which are its siblings' too, are bounded by themselves.
pub(crate) fn bytes_of(rollout: &Rollout) -> usize {
    let tokens = rollout.prompt_tokens().len() + rollout.response_tokens().len() + rollout.given_tokens();
    ENTRY_BYTES + 12 * tokens + 12 * rollout.response_tokens().len()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use types::{FailReason, FinishReason, PolicyVersion, PromptId, RolloutFailure, RolloutParts, Span};

    use super::*;
    use crate::pace::UNKNOWN_PACE_DELAY;

    fn rollout(ordinal: u64) -> Rollout {
        Rollout::new(RolloutParts {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling: 0, attempt: 0 },
            prompt_tokens: vec![1, 2].into(),
            response_tokens: vec![3; 4],
            observations: Vec::new(),
            reward: None,
            rollout_logprobs: vec![-0.5; 4],
            surviving_mass: None,
            spans: vec![Span { version: PolicyVersion(0), tokens: NonZeroU32::new(4).unwrap() }],
            finish_reason: FinishReason::Stop,
            fields: "{}".into(),
        })
        .unwrap()
    }

    fn report(ordinal: u64) -> RewardReport {
        RewardReport::Failed(RolloutFailure {
            id: rollout(ordinal).id(),
            reason: FailReason::RewardError,
            detail: "x".into(),
            response_tokens: 4,
        })
    }

    /// The stream of an actor, by which its answers are known.
    type Stream = u32;

    fn offer(
        inflight: &mut Inflight<Stream>,
        ordinal: u64,
        actor: &str,
        stream: Stream,
    ) -> Admission<Stream> {
        let rollout = rollout(ordinal);
        let actor = actor.parse().unwrap();
        let offer = Offer { id: rollout.id(), bytes: bytes_of(&rollout), actor, answer: stream };
        inflight.offer(Instant::now(), offer)
    }

    fn recorded(inflight: &mut Inflight<Stream>, ordinal: u64) -> Option<Vec<Stream>> {
        let recorded = inflight.recorded(Instant::now(), rollout(ordinal).id());
        recorded.map(|recorded| recorded.answers)
    }

    fn inflight(rollouts: usize) -> Inflight<Stream> {
        Inflight::new(Bounds { rollouts, bytes: 1 << 20 })
    }

    #[test]
    fn an_answer_is_due_when_the_result_is_recorded_and_not_before() {
        let mut inflight = inflight(4);
        assert_eq!(offer(&mut inflight, 0, "a", 1), Admission::Accepted);
        inflight.finished(rollout(0).id(), report(0));
        assert_eq!(inflight.next_unsent(), Some(report(0)));
        assert!(inflight.holds(rollout(0).id()), "sent is not recorded");
        assert_eq!(recorded(&mut inflight, 0), Some(vec![1]));
        assert_eq!((inflight.len(), inflight.bytes()), (0, 0));
        assert_eq!(recorded(&mut inflight, 0), None, "a second record changes nothing");
    }

    #[test]
    fn a_rollout_in_work_is_not_scored_twice_and_all_who_offered_it_are_told() {
        let mut inflight = inflight(1);
        assert_eq!(offer(&mut inflight, 0, "a", 1), Admission::Accepted);
        assert_eq!(offer(&mut inflight, 0, "b", 2), Admission::Attached, "even without room");
        assert_eq!(offer(&mut inflight, 0, "a", 3), Admission::Attached);
        inflight.finished(rollout(0).id(), report(0));
        assert_eq!(recorded(&mut inflight, 0), Some(vec![2, 3]), "the first one's old stream was replaced");
    }

    #[test]
    fn beyond_the_bounds_an_offer_is_refused_and_told_when_to_return() {
        let mut inflight = inflight(2);
        assert_eq!(offer(&mut inflight, 0, "a", 1), Admission::Accepted);
        assert_eq!(offer(&mut inflight, 1, "a", 1), Admission::Accepted);
        let refused = Admission::Refused { answer: 1, retry_after: UNKNOWN_PACE_DELAY };
        assert_eq!(offer(&mut inflight, 2, "a", 1), refused);
        let one = bytes_of(&rollout(0));
        let mut small = Inflight::new(Bounds { rollouts: 9, bytes: one * 2 - 1 });
        assert_eq!(offer(&mut small, 0, "a", 1), Admission::Accepted);
        assert_eq!(offer(&mut small, 1, "a", 1), refused, "bytes count too");
        let mut tiny = Inflight::new(Bounds { rollouts: 9, bytes: 1 });
        assert_eq!(offer(&mut tiny, 0, "a", 1), Admission::Accepted, "one rollout always fits");
    }

    #[test]
    fn what_is_not_recorded_is_sent_again_in_order() {
        let mut inflight = inflight(8);
        for ordinal in 0..4 {
            offer(&mut inflight, ordinal, "a", 1);
        }
        for ordinal in [3, 0, 1] {
            inflight.finished(rollout(ordinal).id(), report(ordinal));
        }
        while inflight.next_unsent().is_some() {}
        recorded(&mut inflight, 1);
        assert_eq!(inflight.send_again(), 2);
        let sent: Vec<_> = std::iter::from_fn(|| inflight.next_unsent()).collect();
        assert_eq!(sent, [report(0), report(3)]);
        assert_eq!(inflight.scoring(), 1);
    }
}
