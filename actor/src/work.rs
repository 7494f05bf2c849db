//! What the coordinator has asked for and is not generated yet: leases that wait for the engine, and the
//! responses that it works on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use engine::Episode;
use tokio::time::Instant;
use types::link::actor::{Lease, LeasedPrompt};
use types::{LeaseId, RolloutId, Sampling};

/// No lease is taken to last longer.
const LEASE_TIMEOUT_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A lease that waits for the engine.
#[derive(Debug)]
pub(crate) struct HeldLease {
    pub(crate) prompts: Vec<LeasedPrompt>,
    /// How tokens are drawn for it, where that is not as the run has it.
    pub(crate) sampling: Option<Sampling>,
    /// When the coordinator gives it to somebody else. By our own clock, and later than by the coordinator's
    /// by the way of the message.
    pub(crate) deadline: Instant,
}

impl HeldLease {
    fn wanted(&self) -> impl Iterator<Item = RolloutId> {
        self.prompts.iter().flat_map(|prompt| &prompt.wanted).copied()
    }
}

/// A response that the engine works on, or an environment.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) id: RolloutId,
    pub(crate) prompt_tokens: Arc<[u32]>,
    /// When its lease runs out.
    pub(crate) deadline: Instant,
    /// Generated only to keep the batch composition (docs/decisions.md, D7): the coordinator has it already.
    pub(crate) unwanted: bool,
    /// Its turns, where the run has episodes.
    pub(crate) episode: Option<Box<Episode>>,
    /// An agent plays it, with a loop of its own.
    pub(crate) is_agents: bool,
}

impl Work {
    /// Whether it is played by somebody beside the engine.
    fn is_played(&self) -> bool {
        self.episode.is_some() || self.is_agents
    }
}

/// The actor's work.
#[derive(Debug, Default)]
pub(crate) struct Workload {
    /// For the engine's first weights, or in deterministic mode for the lease before.
    waiting: VecDeque<HeldLease>,
    /// What is worked on, by the engine's number for it.
    running: BTreeMap<u64, Work>,
    /// The numbers of episodes.
    episodes: BTreeMap<RolloutId, u64>,
    next_number: u64,
    last_lease: LeaseId,
}

/// What is not to be generated any more.
#[derive(Debug, Default)]
pub(crate) struct GivenUp {
    /// The attempts that the coordinator waits for.
    pub(crate) wanted: Vec<RolloutId>,
    /// The engine's numbers to cancel.
    pub(crate) numbers: Vec<u64>,
    /// The episodes to close, those included that nobody waits for.
    pub(crate) episodes: Vec<RolloutId>,
}

impl Workload {
    /// Takes a lease on; it waits.
    pub(crate) fn lease(&mut self, lease: Lease) {
        self.last_lease = self.last_lease.max(lease.id);
        let deadline = Instant::now() + lease.timeout.min(LEASE_TIMEOUT_LIMIT);
        self.waiting.push_back(HeldLease { prompts: lease.prompts, sampling: lease.sampling, deadline });
    }

    /// The last lease that came.
    pub(crate) fn last_lease(&self) -> LeaseId {
        self.last_lease
    }

    /// The lease that has waited longest.
    pub(crate) fn next_lease(&mut self) -> Option<HeldLease> {
        self.waiting.pop_front()
    }

    /// The number of the first response that is [started](Self::start) or [skipped](Self::skip) next.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// The engine works on these, under the next numbers.
    pub(crate) fn start(&mut self, group: Vec<Work>) {
        let first = self.next_number;
        self.skip(group.len());
        for (number, work) in (first..).zip(group) {
            if work.is_played() {
                self.episodes.insert(work.id, number);
            }
            self.running.insert(number, work);
        }
    }

    /// The engine has refused as many, under the next numbers.
    pub(crate) fn skip(&mut self, count: usize) {
        self.next_number += count as u64;
    }

    /// The engine is done with one; none for what was given up.
    pub(crate) fn end(&mut self, number: u64) -> Option<Work> {
        let work = self.running.remove(&number)?;
        if work.is_played() {
            self.episodes.remove(&work.id);
        }
        Some(work)
    }

    /// The number of an episode under way.
    pub(crate) fn number_of(&self, episode: RolloutId) -> Option<u64> {
        self.episodes.get(&episode).copied()
    }

    /// What is worked on under a number.
    pub(crate) fn get(&self, number: u64) -> Option<&Work> {
        self.running.get(&number)
    }

    /// The same, to change it.
    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut Work> {
        self.running.get_mut(&number)
    }

    /// Whether an episode has a sibling that has not begun: the first turns of a group share their prompt.
    pub(crate) fn has_sibling_to_begin(&self, number: u64) -> bool {
        let Some(prompt) = self.running.get(&number).map(|work| work.id.prompt) else { return false };
        // A group has numbers without gaps, but for those that have ended.
        let before = self.running.range(..number).rev().take_while(|(_, work)| work.id.prompt == prompt);
        let behind = self.running.range(number..).take_while(|(_, work)| work.id.prompt == prompt);
        before.chain(behind).filter_map(|(_, work)| work.episode.as_ref()).any(|episode| !episode.has_begun())
    }

    /// The attempts that wait or are worked on.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = RolloutId> {
        let running = self.running.values().filter(|work| !work.unwanted).map(|work| work.id);
        running.chain(self.waiting.iter().flat_map(HeldLease::wanted))
    }

    /// Responses that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.iter().flat_map(HeldLease::wanted).count()
    }

    /// Responses that are worked on.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// When the first lease runs out.
    pub(crate) fn first_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().map(|lease| lease.deadline);
        waiting.chain(self.running.values().map(|work| work.deadline)).min()
    }

    /// Gives up what is chosen by the end of its lease.
    pub(crate) fn give_up(&mut self, chosen: impl Fn(Instant) -> bool) -> GivenUp {
        let mut given_up = GivenUp::default();
        self.waiting.retain(|lease| {
            let over = chosen(lease.deadline);
            given_up.wanted.extend(lease.wanted().filter(|_| over));
            !over
        });
        for (number, work) in self.running.extract_if(.., |_, work| chosen(work.deadline)) {
            given_up.numbers.push(number);
            if work.is_played() {
                self.episodes.remove(&work.id);
                given_up.episodes.push(work.id);
            }
            given_up.wanted.extend((!work.unwanted).then_some(work.id));
        }
        given_up
    }
}

/// The responses to generate for a leased prompt: those wanted, or in deterministic mode the whole group.
pub(crate) fn group_work(
    leased: &LeasedPrompt,
    deadline: Instant,
    prompt_tokens: &Arc<[u32]>,
    whole_group: bool,
) -> Vec<Work> {
    let mut group = Vec::new();
    for sibling in 0..leased.group_size {
        let wanted = leased.wanted.iter().find(|id| id.sibling == sibling);
        if wanted.is_none() && !whole_group {
            continue;
        }
        let stand_in = RolloutId { prompt: leased.prompt.id(), sibling, attempt: 0 };
        group.push(Work {
            id: *wanted.unwrap_or(&stand_in),
            prompt_tokens: Arc::clone(prompt_tokens),
            deadline,
            unwanted: wanted.is_none(),
            episode: None,
            is_agents: false,
        });
    }
    group
}
