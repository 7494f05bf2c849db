//! Episodes: the turns of a response go between its actor and an environment at a reward server, which lives
//! and dies with both. What goes wrong there fails the attempt, or is tried at another server where nothing
//! had begun.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use types::link::actor::ActorReport;
use types::{FailReason, MemberId, RolloutFailure, RolloutId, Timestamp};

use super::World;
use super::actors::report;

/// Episodes under way at a reward server.
const PLACES: usize = 10;
/// Most turns of an episode.
const TURNS: u32 = 4;
/// An answer that takes longer does not come any more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Things that an actor does in a turn.
const STEPS: usize = 4;

/// An episode as its actor knows it.
#[derive(Debug, Clone)]
pub(super) struct SimEpisode {
    server: MemberId,
    /// The process that has its environment.
    incarnation: u64,
    /// Turns that are still to come, the one that is drawn now included.
    turns_left: u32,
    /// Whether the environment was reset.
    has_begun: bool,
    /// Since when it waits for the environment; `None` while the policy draws.
    waits_since: Option<Timestamp>,
}

/// What an actor asks of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Reset,
    Step,
    Close,
}

/// What a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Goes,
    Overloaded,
    Failed,
}

/// Answers that are on their way to an actor.
#[derive(Debug, Default)]
pub(super) struct Answers(VecDeque<(Timestamp, RolloutId, Answer)>);

/// The environments of a reward server's process.
#[derive(Debug, Default)]
pub(super) struct SimEnvironments {
    asked: VecDeque<(Timestamp, MemberId, u64, RolloutId, Ask)>,
    /// With the process of the actor that each belongs to.
    open: BTreeMap<RolloutId, (MemberId, u64)>,
}

impl World {
    /// What the actor does about its episodes.
    pub(super) fn play_episodes(&mut self, member: &MemberId) {
        self.hear_answers(member);
        self.give_up_waiting(member);
        for _ in 0..STEPS {
            let work = self.actor(member).work.len();
            if work == 0 {
                return;
            }
            let place = self.rng.random_range(0..work);
            match self.actor(member).work[place].episode.clone() {
                None => self.reset(member, place),
                Some(episode) if episode.waits_since.is_none() => self.end_turn(member, place, episode),
                Some(_) => {}
            }
        }
    }

    fn reset(&mut self, member: &MemberId, place: usize) {
        let servers = self.actor(member).reward_servers.clone();
        if servers.is_empty() {
            return;
        }
        let server = servers[self.rng.random_range(0..servers.len())].clone();
        let Some(incarnation) = self.reward_servers.get(&server).map(|server| server.process.incarnation)
        else {
            return;
        };
        let turns_left = self.rng.random_range(1..=TURNS);
        let waits_since = Some(self.now);
        let episode =
            SimEpisode { server: server.clone(), incarnation, turns_left, has_begun: false, waits_since };
        let work = &mut self.actor(member).work[place];
        work.episode = Some(episode);
        let id = work.id;
        self.ask(member, &server, id, Ask::Reset);
    }

    /// The policy has ended a turn.
    fn end_turn(&mut self, member: &MemberId, place: usize, mut episode: SimEpisode) {
        let id = self.actor(member).work[place].id;
        let server = episode.server.clone();
        episode.turns_left -= 1;
        if episode.turns_left == 0 {
            self.ask(member, &server, id, Ask::Close);
            return self.end_response(member, place);
        }
        episode.waits_since = Some(self.now);
        self.actor(member).work[place].episode = Some(episode);
        self.ask(member, &server, id, Ask::Step);
    }

    fn ask(&mut self, member: &MemberId, server: &MemberId, id: RolloutId, ask: Ask) {
        let (at, incarnation) = (self.arrival(), self.actor(member).process.incarnation);
        if let Some(server) = self.reward_servers.get_mut(server) {
            server.environments.asked.push_back((at, member.clone(), incarnation, id, ask));
        }
    }

    fn hear_answers(&mut self, member: &MemberId) {
        let now = self.now;
        while let Some((_, id, answer)) = self.actor(member).answers.0.pop_front_if(|(at, _, _)| *at <= now) {
            let Some(place) = self.actor(member).work.iter().position(|work| work.id == id) else { continue };
            let work = &mut self.actor(member).work[place];
            // Of one that was given up, and begun again elsewhere.
            let Some(episode) = work.episode.as_mut().filter(|episode| episode.waits_since.is_some()) else {
                continue;
            };
            match answer {
                Answer::Goes => (episode.has_begun, episode.waits_since) = (true, None),
                Answer::Overloaded => work.episode = None,
                Answer::Failed => self.fail_episode(member, place),
            }
        }
    }

    /// Nobody waits for a server that is gone, or that says nothing.
    fn give_up_waiting(&mut self, member: &MemberId) {
        let now = self.now;
        let mut place = 0;
        while place < self.actor(member).work.len() {
            let work = self.actor(member).work[place].clone();
            let given_up = work.episode.filter(|episode| {
                let server = self.reward_servers.get(&episode.server);
                let is_there = server.is_some_and(|server| server.process.incarnation == episode.incarnation);
                let is_late = episode.waits_since.is_some_and(|since| now.since(since) > ANSWER_TIMEOUT);
                !is_there || is_late
            });
            let Some(episode) = given_up else {
                place += 1;
                continue;
            };
            self.ask(member, &episode.server, work.id, Ask::Close);
            if episode.has_begun {
                self.fail_episode(member, place);
            } else {
                self.actor(member).work[place].episode = None;
                place += 1;
            }
        }
    }

    fn fail_episode(&mut self, member: &MemberId, place: usize) {
        let actor = self.actor(member);
        let id = actor.work.swap_remove(place).id;
        let failure = RolloutFailure {
            id,
            reason: FailReason::Environment,
            detail: "the environment is gone".into(),
            response_tokens: 3,
        };
        // Where it cannot be said now, the lease's deadline says it.
        let stream = actor.process.stream;
        self.say(stream, report(member, ActorReport::Failed(failure)));
    }

    /// Nobody wants these episodes any more.
    pub(super) fn close_environments(
        &mut self,
        member: &MemberId,
        late: Vec<(RolloutId, Option<SimEpisode>)>,
    ) {
        for (id, episode) in late {
            if let Some(episode) = episode {
                self.ask(member, &episode.server, id, Ask::Close);
            }
        }
    }

    /// What a reward server does about its environments.
    pub(super) fn environments_turn(&mut self, server: &MemberId) {
        self.close_abandoned(server);
        let now = self.now;
        while let Some((_, actor, incarnation, id, ask)) =
            self.environments(server).asked.pop_front_if(|(at, ..)| *at <= now)
        {
            let fails = self.per_mille(self.faults.attempts);
            let open = &mut self.environments(server).open;
            let answer = match ask {
                Ask::Close => {
                    open.remove(&id);
                    continue;
                }
                Ask::Reset if open.len() >= PLACES => Answer::Overloaded,
                Ask::Reset => {
                    open.insert(id, (actor.clone(), incarnation));
                    Answer::Goes
                }
                Ask::Step if fails || !open.contains_key(&id) => {
                    open.remove(&id);
                    Answer::Failed
                }
                Ask::Step => Answer::Goes,
            };
            assert!(open.len() <= PLACES, "{} environments at {server}", open.len());
            let at = self.arrival();
            if let Some(actor) = self.actors.get_mut(&actor)
                && actor.process.incarnation == incarnation
            {
                actor.answers.0.push_back((at, id, answer));
            }
        }
    }

    /// An environment lives on its actor's stream.
    fn close_abandoned(&mut self, server: &MemberId) {
        let of_actors =
            |(name, actor): (&MemberId, &super::actors::SimActor)| (name.clone(), actor.process.incarnation);
        let processes: BTreeMap<MemberId, u64> = self.actors.iter().map(of_actors).collect();
        let is_there = |(actor, incarnation): &(MemberId, u64)| processes.get(actor) == Some(incarnation);
        let environments = self.environments(server);
        environments.asked.retain(|(_, actor, incarnation, ..)| processes.get(actor) == Some(incarnation));
        environments.open.retain(|_, owner| is_there(owner));
    }

    fn environments(&mut self, server: &MemberId) -> &mut SimEnvironments {
        &mut self.reward_servers.get_mut(server).unwrap().environments
    }

    /// No environment is left whose episode nobody plays.
    pub(super) fn check_environments(&mut self) {
        let servers: Vec<MemberId> = self.reward_servers.keys().cloned().collect();
        for server in servers {
            self.close_abandoned(&server);
            let SimEnvironments { asked, open } = &self.reward_servers[&server].environments;
            for (id, (actor, _)) in open {
                let is_played = self.actors[actor].work.iter().any(|work| work.id == *id);
                let is_closed = asked.iter().any(|(_, _, _, of, ask)| (of, *ask) == (id, Ask::Close));
                assert!(
                    is_played || is_closed,
                    "{server} keeps an environment for {id}, which {actor} has ended"
                );
            }
        }
    }
}
