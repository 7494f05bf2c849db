//! One episode: its bounds, and what its turns bring.

use std::time::Duration;

use tokio::time::Instant;
use types::EpisodeEnd;
use types::link::environment::{EnvironmentMessage, Speaker};

use super::calls::{Call, calls};
use super::interpreter::{Held, Ran};
use super::{Environment, EnvironmentError};

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

/// An episode under way.
#[derive(Debug)]
pub(super) struct Episode {
    environment: Environment,
    since: Instant,
    turns: u32,
    tokens: u32,
    interpreter: Option<Held>,
}

impl Episode {
    pub(super) fn new(environment: Environment) -> Self {
        Self { environment, since: Instant::now(), turns: 0, tokens: 0, interpreter: None }
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
        let asked = calls(environment.0.calls, environment.0.format, &turn.text);
        if asked.is_empty() {
            return Ok(Answer::Done(EpisodeEnd::Finished));
        }
        if let Some(end) = self.reached() {
            return Ok(Answer::Done(end));
        }
        let mut messages = Vec::with_capacity(asked.len());
        let mut shown = 0;
        for call in asked {
            let text = match call {
                Call::Wrong(text) => text,
                Call::Run(_) if shown > TURN_OBSERVATIONS * environment.0.bounds.observation_bytes => {
                    "Error: this turn has called too often".to_owned()
                }
                Call::Run(code) => match environment.0.interpreters.run(&mut self.interpreter, code).await? {
                    Ran::Output(text) => text,
                    Ran::TimeOver => return Ok(Answer::Done(EpisodeEnd::ToolTime)),
                },
            };
            shown += text.len();
            messages.push(EnvironmentMessage { speaker: Speaker::Tool, text });
        }
        Ok(Answer::Observed(messages))
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
        self.interpreter.as_ref().map_or(Duration::ZERO, Held::tool_time)
    }
}

/// Longest observations of a turn that calls several times, in those of one call.
const TURN_OBSERVATIONS: usize = 3;
