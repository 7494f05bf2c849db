//! The episodes of agents: offered, played, over. All time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use types::{EpisodeEnd, FailReason, RolloutId};

use super::ended::{Ended, EndedEpisodes, Summary, Verdict};
use super::record::Record;
use super::{AgentEvent, AgentsConfig, Offer};
use crate::request::RunDraws;

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
    ended: EndedEpisodes,
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
    /// Calls that were begun, those included that the engine refused: each draws its own.
    begun: u32,
    under_way: u32,
    drawn: u32,
    /// Tokens that calls under way may draw.
    reserved: u32,
    /// The bound that a call was refused for.
    cut: Option<EpisodeEnd>,
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
            ended: EndedEpisodes::default(),
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
        let wanted = (self.waiting - self.offered.len()).max(self.config.group_size);
        wanted.min(self.config.episodes.saturating_sub(self.offered.len() + self.open.len()))
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
            begun: 0,
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
        let seed = session.offer.id.turn_seed(session.offer.run_seed, session.begun);
        session.begun += 1;
        session.calls += 1;
        session.under_way += 1;
        session.reserved = session.reserved.saturating_add(reserved);
        Ok(seed)
    }

    /// The engine has refused a call, which costs none.
    pub(super) fn call_refused(&mut self, name: &str) {
        if let Some(session) = self.open.get_mut(name) {
            session.calls = session.calls.saturating_sub(1);
        }
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
        self.ended.remember(name.to_owned(), ended.clone());
        Ok(ended)
    }

    fn fail(&mut self, id: RolloutId, detail: String, tokens: usize) {
        self.events.push_back(AgentEvent::Failed { id, reason: FailReason::Agent, detail, tokens });
    }

    /// An attempt is nobody's any more, and whoever knows that has said what became of it.
    pub(super) fn close(&mut self, id: RolloutId, why: &str) {
        self.offered.retain(|(offer, _)| offer.id != id);
        if let Some(name) = self.sessions.remove(&id) {
            self.open.remove(&name);
            self.ended.remember(name, Ended::Taken { why: why.to_owned() });
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
        let (late, offered) =
            std::mem::take(&mut self.offered).into_iter().partition(|(_, until)| *until <= now);
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
            self.ended.remember(name, Ended::Taken { why });
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

#[cfg(test)]
mod tests {
    use types::{PromptContent, PromptId, Sampling};

    use super::*;

    const LEASE: Duration = Duration::from_secs(100);

    fn table() -> Table {
        let heartbeat_timeout = Duration::from_secs(10);
        Table::new(AgentsConfig {
            episodes: 4,
            group_size: 2,
            calls: 2,
            max_tokens: 50,
            heartbeat_timeout,
            ..AgentsConfig::default()
        })
    }

    fn offer(ordinal: u64, now: Instant) -> Offer {
        Offer {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling: 0, attempt: 0 },
            prompt: PromptContent::Text("6*7?".to_owned()),
            sampling: Arc::new(Sampling::default()),
            run_seed: 1,
            deadline: now + LEASE,
        }
    }

    fn failure(table: &mut Table) -> (u64, FailReason, String) {
        match table.next_event() {
            Some(AgentEvent::Failed { id, reason, detail, .. }) => (id.prompt.ordinal, reason, detail),
            other => panic!("{other:?}"),
        }
    }

    fn taken(table: &mut Table, now: Instant) -> Leased {
        table.take(now, SystemTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn there_is_room_while_agents_wait() {
        let (mut table, now) = (table(), Instant::now());
        assert_eq!(table.room(), 0, "nobody waits");
        assert!(table.wait());
        assert_eq!(table.room(), 2, "a prompt's responses are leased together");
        assert!(table.wait() && table.wait());
        assert_eq!(table.room(), 3);
        table.wait_over();
        table.wait_over();
        assert!(matches!(table.next_event(), Some(AgentEvent::Waiting)) && table.next_event().is_none());
        table.offer(offer(1, now), now);
        assert_eq!(table.room(), 0, "there is one for the agent that waits");
        assert_eq!(taken(&mut table, now).time, Duration::from_secs(90));
        assert_eq!((table.room(), table.counts()), (2, (1, 1)));
        assert!((1..4).all(|_| table.wait()) && !table.wait(), "more agents wait than there are places");
        table.leave();
        assert_eq!(table.room(), 0);
        table.offer(offer(2, now), now);
        assert!(table.take(now, SystemTime::UNIX_EPOCH).is_none());
        assert!(matches!(failure(&mut table), (2, FailReason::Returned, _)));
    }

    #[test]
    fn a_silent_agent_is_lost_and_one_with_a_call_is_not() {
        let (mut table, now) = (table(), Instant::now());
        table.offer(offer(1, now), now);
        table.offer(offer(2, now), now);
        table.offer(offer(3, now), now);
        let (silent, calling) = (taken(&mut table, now).session, taken(&mut table, now).session);
        assert_ne!(
            table.begin_call(&silent, 10, now),
            table.begin_call(&silent, 10, now),
            "calls draw their own"
        );
        table.begin_call(&calling, 10, now).unwrap();
        let later = now + Duration::from_secs(8);
        table.call_over(&silent, 10, later);
        table.call_over(&silent, 10, later);
        assert_eq!(table.next_due(), Some(later + Duration::from_secs(10)));
        table.expire(later + Duration::from_secs(9));
        assert!(!table.has_events());
        table.expire(later + Duration::from_secs(10));
        let (id, reason, detail) = failure(&mut table);
        assert!(id == 1 && reason == FailReason::Agent && detail.contains("silent for 10s"), "{detail}");
        let over = table.heartbeat(&silent, later).unwrap_err();
        assert!(matches!(&over, Refused::Over(Ended::Taken { why }) if *why == detail), "{over:?}");
        assert!(!table.drew(&silent, 1), "what it draws now is nobody's");
        // What nobody took goes back in half of its lease, and an episode ends with its time.
        table.expire(now + LEASE / 2);
        assert!(matches!(failure(&mut table), (3, FailReason::Returned, _)));
        assert!(table.heartbeat(&calling, now + LEASE / 2).is_ok());
        table.expire(now + LEASE);
        let (id, reason, detail) = failure(&mut table);
        assert!(id == 2 && reason == FailReason::Agent && detail.contains("deadline"), "{detail}");
        assert_eq!((table.next_due(), table.counts()), (None, (0, 0)));
    }

    #[test]
    fn calls_and_tokens_are_bounded() {
        let (mut table, now) = (table(), Instant::now());
        table.offer(offer(1, now), now);
        let session = taken(&mut table, now).session;
        assert_eq!(table.terms(&session, now).unwrap().draws.most, 50);
        table.begin_call(&session, 30, now).unwrap();
        assert_eq!(
            table.terms(&session, now).unwrap().draws.most,
            20,
            "the call under way may draw the rest"
        );
        assert!(table.drew(&session, 12));
        table.call_over(&session, 30, now);
        assert_eq!(table.terms(&session, now).unwrap().draws.most, 38);
        table.begin_call(&session, 38, now).unwrap();
        let refused = table.terms(&session, now).unwrap_err();
        assert!(
            matches!(&refused, Refused::Exhausted(problem) if problem.contains("2 calls")),
            "{refused:?}"
        );
        assert_eq!(table.open[&session].cut, Some(EpisodeEnd::Turns));
        assert_eq!(table.terms("nobody", now).unwrap_err(), Refused::Unknown);
    }

    #[test]
    fn an_end_is_said_once_and_remembered() {
        let (mut table, now) = (table(), Instant::now());
        for ordinal in 1..=3 {
            table.offer(offer(ordinal, now), now);
        }
        let empty = taken(&mut table, now).session;
        let ended = table.end(&empty, Verdict::Finished { reward: Some(1.0) }, now).unwrap();
        assert!(matches!(ended, Ended::Taken { .. }), "no reward without a response");
        assert!(matches!(failure(&mut table), (1, FailReason::Agent, _)));
        let given_up = taken(&mut table, now).session;
        let verdict = Verdict::Failed { why: "no disk".to_owned() };
        assert_eq!(table.end(&given_up, verdict.clone(), now), Ok(Ended::GivenUp));
        let (id, _, detail) = failure(&mut table);
        assert!(id == 2 && detail.contains("no disk"), "{detail}");
        assert_eq!(table.end(&given_up, verdict, now), Err(Refused::Over(Ended::GivenUp)));
        assert!(!table.has_events(), "it ended once");
        // What the loop gives up is over for the agent, and the loop is not told what it said itself.
        let closed = taken(&mut table, now);
        table.close(closed.offer.id, "its lease is over");
        assert!(!table.has_events());
        let over = table.heartbeat(&closed.session, now).unwrap_err();
        assert!(matches!(over, Refused::Over(Ended::Taken { why }) if why == "its lease is over"));
    }
}
