//! One episode: its bounds, and what its turns bring.

use std::time::Duration;

use tokio::time::Instant;
use types::EpisodeEnd;
use types::link::environment::{EnvironmentMessage, Speaker};

use crate::metrics;

use super::calls::{Call, code_calls, tool_calls};
use super::cut::cut;
use super::interpreter::{Held, Ran};
use super::program::{Instance, Stepped};
use super::remote::RemoteEpisode;
use super::{Environment, EnvironmentError, Kind};

/// Longest observations of a turn that calls several times, in those of one call.
const TURN_OBSERVATIONS: usize = 3;

/// A turn that the policy has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) text: String,
    pub(super) tokens: u32,
    /// It was cut off at its longest length.
    pub(super) truncated: bool,
}

/// What a turn brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// What the policy is told before its next turn.
    Observed(Vec<EnvironmentMessage>),
    /// There is no next turn.
    Done(EpisodeEnd),
}

/// What is told every turn, and says what an episode is worth.
#[derive(Debug)]
pub(super) enum Played {
    /// An instance of the operator's class.
    Here(Instance),
    /// An episode at a remote server.
    There(RemoteEpisode),
}

/// An episode under way.
#[derive(Debug)]
pub(super) struct Episode {
    environment: Environment,
    since: Instant,
    turns: u32,
    tokens: u32,
    /// How long tools have taken, those apart that a session counts itself.
    spent: Duration,
    /// Its interpreter, from the first call on.
    interpreter: Option<Held>,
    /// What is told its turns, where that is no tool.
    played: Option<Played>,
    /// What that has said that it is worth.
    reward: Option<f64>,
}

impl Episode {
    pub(super) fn new(environment: Environment, played: Option<Played>) -> Self {
        let reward = played.as_ref().map(|_| 0.0);
        Self {
            environment,
            since: Instant::now(),
            turns: 0,
            tokens: 0,
            spent: Duration::ZERO,
            interpreter: None,
            played,
            reward,
        }
    }

    /// What it is worth so far, where its environment says so.
    pub(super) fn reward(&self) -> Option<f32> {
        self.reward.map(|reward| reward as f32)
    }

    /// Takes a turn, and does what it asks for unless no further turn could follow.
    ///
    /// # Errors
    /// Where the environment failed; the episode is over then.
    pub(super) async fn step(&mut self, turn: Turn) -> Result<Answer, EnvironmentError> {
        self.turns += 1;
        self.tokens = self.tokens.saturating_add(turn.tokens);
        if turn.truncated {
            return Ok(Answer::Done(EpisodeEnd::Length));
        }
        let environment = self.environment.clone();
        let asked = match &environment.0.kind {
            Kind::Python { calls, format, .. } => code_calls(*calls, *format, &turn.text),
            Kind::Tools { format, .. } => tool_calls(*format, &turn.text),
            Kind::Class(_) | Kind::Http(_) => return self.play(&turn.text).await,
        };
        if asked.is_empty() {
            return Ok(Answer::Done(EpisodeEnd::Finished));
        }
        if let Some(end) = self.reached() {
            return Ok(Answer::Done(end));
        }
        let mut messages = Vec::with_capacity(asked.len());
        let mut shown = 0;
        for call in asked {
            let too_often = shown > TURN_OBSERVATIONS * environment.0.bounds.observation_bytes;
            let called = match call {
                Call::Wrong(text) => Some(text),
                _ if too_often => Some("Error: this turn has called too often".to_owned()),
                call => self.make(call).await?,
            };
            let Some(text) = called else { return Ok(Answer::Done(EpisodeEnd::ToolTime)) };
            shown += text.len();
            messages.push(EnvironmentMessage { speaker: Speaker::Tool, text });
        }
        Ok(Answer::Observed(messages))
    }

    /// Makes a call: what the policy is told; nothing where the time in tools is used up.
    async fn make(&mut self, call: Call) -> Result<Option<String>, EnvironmentError> {
        let environment = self.environment.clone();
        match (&environment.0.kind, call) {
            (Kind::Python { interpreters, .. }, Call::Run(code)) => {
                match interpreters.run(&mut self.interpreter, code).await? {
                    Ran::Output(text) => Ok(Some(text)),
                    Ran::TimeOver => Ok(None),
                }
            }
            (Kind::Tools { pool, .. }, Call::Tool { name, arguments }) => {
                let since = Instant::now();
                let text = pool.call(&name, arguments).await?;
                let (text, left_out) = cut(text, environment.0.bounds.observation_bytes);
                self.has_called("tools", since, left_out);
                Ok(Some(text))
            }
            _ => Err(EnvironmentError::failed("a call that this environment does not know")),
        }
    }

    /// Tells the operator's class or server a turn. The last one is told too: it may be what the reward is
    /// for.
    async fn play(&mut self, text: &str) -> Result<Answer, EnvironmentError> {
        let since = Instant::now();
        let (by, stepped) = match &self.played {
            Some(Played::Here(instance)) => ("class", instance.step(text).await?),
            Some(Played::There(episode)) => ("http", episode.step(text).await?),
            None => return Err(EnvironmentError::failed("an episode that nobody is told the turns of")),
        };
        let Stepped { messages, reward, done } = stepped;
        self.reward = Some(self.reward.unwrap_or(0.0) + reward);
        let most = self.environment.0.bounds.observation_bytes;
        let (mut said, mut left_out) = (Vec::with_capacity(messages.len()), 0);
        for EnvironmentMessage { speaker, text } in messages {
            let (text, bytes) = cut(text, most);
            said.push(EnvironmentMessage { speaker, text });
            left_out += bytes;
        }
        self.has_called(by, since, left_out);
        Ok(match (done, self.reached()) {
            (true, _) => Answer::Done(EpisodeEnd::Finished),
            (false, Some(end)) => Answer::Done(end),
            (false, None) => Answer::Observed(said),
        })
    }

    /// Counts a call.
    fn has_called(&mut self, tool: &'static str, since: Instant, left_out: u64) {
        self.spent += since.elapsed();
        metrics::tool_called(tool, since.elapsed(), left_out);
    }

    /// The bound that leaves no room for a further turn, if one does.
    fn reached(&self) -> Option<EpisodeEnd> {
        let bounds = &self.environment.0.bounds;
        if self.turns >= bounds.turns {
            Some(EpisodeEnd::Turns)
        } else if self.tokens >= bounds.max_tokens {
            Some(EpisodeEnd::Tokens)
        } else if self.since.elapsed() >= bounds.wall {
            Some(EpisodeEnd::WallTime)
        } else if self.tool_time() >= bounds.tool_time {
            Some(EpisodeEnd::ToolTime)
        } else {
            None
        }
    }

    fn tool_time(&self) -> Duration {
        self.spent + self.interpreter.as_ref().map_or(Duration::ZERO, Held::tool_time)
    }
}
