//! The episodes of agents: offered, played, over. All time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use types::{EpisodeEnd, FailReason, RolloutId};

use super::record::Record;
use super::{AgentEvent, AgentsConfig, Offer};
use crate::request::RunDraws;

/// Episodes that are over and whose end is remembered, for agents that say or ask it again.
const ENDED_LIMIT: usize = 4096;

/// All episodes of an actor.
#[derive(Debug)]
pub(super) struct Table {
    config: AgentsConfig,
    /// Nothing is offered any more.
    is_leaving: bool,
    /// Agents that wait for an episode.
    waiting: usize,
    /// What no agent has taken, with the moment from which it is handed back.
    offered: VecDeque<(Offer, Instant)>,
    /// What agents play, by the session's name.
    open: BTreeMap<String, Session>,
    sessions: BTreeMap<RolloutId, String>,
    ended: BTreeMap<String, Ended>,
    /// Their names, the oldest first.
    ended_order: VecDeque<String>,
    /// What became of episodes, and was not told yet.
    events: VecDeque<AgentEvent>,
    /// Others wait than was told.
    waits_changed: bool,
}

/// An episode that an agent plays.
#[derive(Debug)]
struct Session {
    offer: Offer,
    record: Arc<Mutex<Record>>,
    deadline: Instant,
    /// When the agent was heard of last.
    heard: Instant,
    calls: u32,
    under_way: u32,
    drawn: u32,
    /// Tokens that calls under way may draw.
    reserved: u32,
    /// The bound that a call was refused for.
    cut: Option<EpisodeEnd>,
}

/// How an episode ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ended {
    /// It is a response.
    Played(Summary),
    /// The agent has given it up.
    GivenUp,
    /// It was taken from the agent.
    Taken { why: String },
}

/// What an agent is told of an episode that is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub(super) reward: Option<f32>,
    pub(super) calls: u32,
    pub(super) sequences: usize,
    pub(super) tokens: usize,
}

/// What an agent says of an episode that is over.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    Finished { reward: Option<f32> },
    Failed { why: String },
}

/// An episode as an agent is given it.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) session: String,
    pub(super) offer: Offer,
    pub(super) time: Duration,
}

/// What a call needs.
#[derive(Debug)]
pub(super) struct CallTerms {
    pub(super) record: Arc<Mutex<Record>>,
    pub(super) draws: RunDraws,
}

/// Why an episode cannot be used.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    /// No such episode, or one that ended long ago.
    Unknown,
    /// It is over.
    Over(Ended),
    /// It had what it may have.
    Exhausted(String),
}

impl Table {
    pub(super) fn new(config: AgentsConfig) -> Self {
        Self {
            config,
            is_leaving: false,
            waiting: 0,
            offered: VecDeque::new(),
            open: BTreeMap::new(),
            sessions: BTreeMap::new(),
            ended: BTreeMap::new(),
            ended_order: VecDeque::new(),
            events: VecDeque::new(),
            waits_changed: false,
        }
    }

    pub(super) fn config(&self) -> &AgentsConfig {
        &self.config
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// What no agent has taken in half of its lease is handed back, and leased again once one waits.
    pub(super) fn offer(&mut self, offer: Offer, now: Instant) {
        if self.is_leaving {
            return self.hand_back(&offer, "the actor is leaving");
        }
        let until = now + offer.deadline.saturating_duration_since(now) / 2;
        self.offered.push_back((offer, until));
    }

    fn hand_back(&mut self, offer: &Offer, detail: &str) {
        let (id, detail) = (offer.id, detail.to_owned());
        self.events.push_back(AgentEvent::Failed { id, reason: FailReason::Returned, detail, tokens: 0 });
    }

    /// Attempts that there is room for: none where no agent waits for more than what is offered.
    pub(super) fn room(&self) -> usize {
        if self.is_leaving || self.waiting <= self.offered.len() {
            return 0;
        }
        self.config.episodes.saturating_sub(self.offered.len() + self.open.len())
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.waiting, self.open.len())
    }

    /// An agent waits for an episode; whether there is room for it.
    pub(super) fn wait(&mut self) -> bool {
        let has_room = self.waiting < self.config.episodes;
        if has_room {
            self.waiting += 1;
            self.waits_changed = true;
        }
        has_room
    }

    /// An agent waits no more.
    pub(super) fn wait_over(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
        self.waits_changed = true;
    }

    /// Gives an agent the episode that was offered first.
    pub(super) fn take(&mut self, now: Instant, wall_clock: SystemTime) -> Option<Leased> {
        let (offer, _) = self.offered.pop_front()?;
        let left = offer.deadline.saturating_duration_since(now);
        let time = self.config.wall.min(left - left / 10);
        // Nobody guesses the name of another agent's episode.
        let session = format!("{}-{:016x}", offer.id, RandomState::new().hash_one(offer.id));
        let record = Record::new(self.config.sequences, wall_clock);
        self.sessions.insert(offer.id, session.clone());
        let opened = Session {
            offer: offer.clone(),
            record: Arc::new(Mutex::new(record)),
            deadline: now + time,
            heard: now,
            calls: 0,
            under_way: 0,
            drawn: 0,
            reserved: 0,
            cut: None,
        };
        self.open.insert(session.clone(), opened);
        Some(Leased { session, offer, time })
    }

    fn session(&mut self, name: &str, now: Instant) -> Result<&mut Session, Refused> {
        if !self.open.contains_key(name) {
            return Err(self.ended.get(name).map_or(Refused::Unknown, |ended| Refused::Over(ended.clone())));
        }
        let session = self.open.get_mut(name).ok_or(Refused::Unknown)?;
        session.heard = now;
        Ok(session)
    }

    /// An agent is alive; the time that its episode has left.
    pub(super) fn heartbeat(&mut self, name: &str, now: Instant) -> Result<Duration, Refused> {
        Ok(self.session(name, now)?.deadline.saturating_duration_since(now))
    }

    /// What a call has to know before it is read.
    pub(super) fn terms(&mut self, name: &str, now: Instant) -> Result<CallTerms, Refused> {
        let AgentsConfig { calls, max_tokens, ignore_sampling, .. } = self.config;
        let session = self.session(name, now)?;
        if session.calls >= calls {
            session.cut = Some(EpisodeEnd::Turns);
            return Err(Refused::Exhausted(format!("the episode has had {calls} calls, which is the most")));
        }
        let most = max_tokens.saturating_sub(session.drawn.saturating_add(session.reserved));
        if most == 0 {
            session.cut = Some(EpisodeEnd::Tokens);
            let problem = format!("the episode has drawn {max_tokens} tokens, which is the most");
            return Err(Refused::Exhausted(problem));
        }
        let sampling = Arc::clone(&session.offer.sampling);
        let draws = RunDraws { sampling, most, is_lenient: ignore_sampling };
        Ok(CallTerms { record: Arc::clone(&session.record), draws })
    }

    /// A call begins that may draw so many tokens; the seed of its draws, which follows from the response and
    /// the number of the call alone.
    pub(super) fn begin_call(&mut self, name: &str, reserved: u32, now: Instant) -> Result<u64, Refused> {
        let session = self.session(name, now)?;
        let seed = session.offer.id.turn_seed(session.offer.run_seed, session.calls);
        session.calls += 1;
        session.under_way += 1;
        session.reserved = session.reserved.saturating_add(reserved);
        Ok(seed)
    }

    /// A call had no room in the context, or for another sequence.
    pub(super) fn is_cut(&mut self, name: &str, end: EpisodeEnd) {
        if let Some(session) = self.open.get_mut(name) {
            session.cut = Some(end);
        }
    }

    /// A call has drawn so many tokens; whether they are anybody's.
    pub(super) fn drew(&mut self, name: &str, tokens: u32) -> bool {
        let Some(session) = self.open.get_mut(name) else { return false };
        session.drawn = session.drawn.saturating_add(tokens);
        true
    }

    /// A call that had reserved so many tokens is over, whatever came of it.
    pub(super) fn call_over(&mut self, name: &str, reserved: u32, now: Instant) {
        if let Some(session) = self.open.get_mut(name) {
            session.under_way = session.under_way.saturating_sub(1);
            session.reserved = session.reserved.saturating_sub(reserved);
            session.heard = now;
        }
    }

    /// The agent says that an episode is over. Said again it changes nothing.
    pub(super) fn end(&mut self, name: &str, verdict: Verdict, now: Instant) -> Result<Ended, Refused> {
        self.session(name, now)?;
        let Some(session) = self.open.remove(name) else { return Err(Refused::Unknown) };
        let mut record = session.record.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, tokens) = (session.offer.id, record.tokens());
        let ended = match verdict {
            Verdict::Failed { why } => {
                self.fail(id, format!("the agent gave it up: {why}"), tokens);
                Ended::GivenUp
            }
            Verdict::Finished { reward } => match record.finish(id, session.cut, reward) {
                Some(played) => {
                    let (calls, sequences) = (played.calls, played.sequences);
                    self.events.push_back(AgentEvent::Played(Box::new(played)));
                    Ended::Played(Summary { reward, calls, sequences, tokens })
                }
                None => {
                    let why = "the agent ended it without a call that was answered".to_owned();
                    self.fail(id, why.clone(), tokens);
                    Ended::Taken { why }
                }
            },
        };
        self.sessions.remove(&id);
        self.remember(name.to_owned(), ended.clone());
        Ok(ended)
    }

    fn fail(&mut self, id: RolloutId, detail: String, tokens: usize) {
        self.events.push_back(AgentEvent::Failed { id, reason: FailReason::Agent, detail, tokens });
    }

    fn remember(&mut self, name: String, ended: Ended) {
        self.ended.insert(name.clone(), ended);
        self.ended_order.push_back(name);
        if self.ended_order.len() > ENDED_LIMIT
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }

    /// An attempt is nobody's any more, and whoever knows that has said what became of it.
    pub(super) fn close(&mut self, id: RolloutId, why: &str) {
        self.offered.retain(|(offer, _)| offer.id != id);
        if let Some(name) = self.sessions.remove(&id) {
            self.open.remove(&name);
            self.remember(name, Ended::Taken { why: why.to_owned() });
        }
    }

    /// Nothing is offered any more.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
        for (offer, _) in std::mem::take(&mut self.offered) {
            self.hand_back(&offer, "the actor is leaving");
        }
    }

    /// When something is over by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let timeout = self.config.heartbeat_timeout;
        let offered = self.offered.iter().map(|(_, until)| *until);
        let open = self.open.values().map(|session| session.due(timeout));
        offered.chain(open).min()
    }

    /// Ends what has lasted too long, and what no agent plays any more.
    pub(super) fn expire(&mut self, now: Instant) {
        let timeout = self.config.heartbeat_timeout;
        let (late, offered) = std::mem::take(&mut self.offered).into_iter().partition(|(_, until)| *until <= now);
        self.offered = offered;
        let late: VecDeque<(Offer, Instant)> = late;
        for (offer, _) in late {
            self.hand_back(&offer, "no agent took it in half of its lease");
        }
        let over: Vec<(String, Session)> =
            self.open.extract_if(.., |_, session| session.due(timeout) <= now).collect();
        for (name, session) in over {
            let id = session.offer.id;
            let why = match session.deadline <= now {
                true => "the agent did not end it before its deadline".to_owned(),
                false => format!("the agent was silent for {timeout:?}"),
            };
            let tokens = session.record.lock().unwrap_or_else(PoisonError::into_inner).tokens();
            self.fail(id, why.clone(), tokens);
            self.sessions.remove(&id);
            self.remember(name, Ended::Taken { why });
        }
    }

    pub(super) fn has_events(&self) -> bool {
        self.waits_changed || !self.events.is_empty()
    }

    pub(super) fn next_event(&mut self) -> Option<AgentEvent> {
        let event = self.events.pop_front();
        event.or_else(|| std::mem::take(&mut self.waits_changed).then_some(AgentEvent::Waiting))
    }
}

impl Session {
    /// When it is over by itself: at its deadline, or when its agent has been silent for too long. One with a
    /// call under way is not silent.
    fn due(&self, heartbeat_timeout: Duration) -> Instant {
        let silent = (self.under_way == 0).then(|| self.heard + heartbeat_timeout);
        silent.map_or(self.deadline, |silent| silent.min(self.deadline))
    }
}
