//! Environments at a remote server: over `POST URL/reset` and `POST URL/step`, or a WebSocket, as
//! OpenEnv (<https://github.com/meta-pytorch/OpenEnv>, `src/openenv/core/env_server/types.py`) or a server of
//! Gymnasium's `reset` and `step` has them.
//!
//! A reset may be sent again with growing pauses: nothing depends on it yet. A step is sent once, as nobody
//! knows what a lost one did. Whatever goes wrong fails the episode and is never a reward.
//!
//! Bounds: the time of each answer, its size, and how many requests are under way, abandoned ones included:
//! they end with their time.

mod websocket;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use service::Backoff;
use tokio::sync::Semaphore;
use types::link::environment::{EnvironmentMessage, Speaker};
use types::{RolloutId, RunId};

use crate::config::{HttpEnvironment, HttpShape};
use crate::http::{TokenError, read_token};

use super::EnvironmentError;
use super::program::Stepped;
use websocket::Connection;

/// No answer is longer.
const ANSWER_LIMIT_BYTES: u64 = 1 << 20;
/// The field of OpenEnv's actions that holds a text, in most of its environments.
const MESSAGE: &str = "message";
/// What a detail shows of an answer.
const SHOWN_CHARACTERS: usize = 200;

/// A remote environment. A cheap clone.
#[derive(Debug, Clone)]
pub(super) struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: HttpEnvironment,
    agent: ureq::Agent,
    authorization: Option<Arc<str>>,
    /// One for each request that may be under way.
    places: Arc<Semaphore>,
    /// Tells episodes of one response apart: one that was given up may still be under way there.
    episodes: AtomicU64,
}

/// An episode at a remote server.
#[derive(Debug)]
pub(super) struct RemoteEpisode {
    remote: Remote,
    /// What names it there: field and value.
    name: (String, Value),
    /// The connection that has it, where that is a WebSocket.
    connection: Option<Connection>,
}

/// An attempt that failed.
#[derive(Debug)]
struct Failure {
    detail: String,
    /// Whether another one may succeed.
    transient: bool,
}

impl From<Failure> for EnvironmentError {
    fn from(failure: Failure) -> Self {
        Self::failed(failure.detail)
    }
}

impl Remote {
    /// The way to a server.
    ///
    /// # Errors
    /// Where the token's file cannot be read or holds none.
    pub(super) fn new(config: HttpEnvironment) -> Result<Self, TokenError> {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(config.timeout))
            .max_idle_connections_per_host(config.concurrency)
            // Who asks for a step elsewhere may not have been told of the reset.
            .max_redirects(0)
            .build();
        let authorization = config.token_file.as_deref().map(read_token).transpose()?;
        let places = Arc::new(Semaphore::new(config.concurrency));
        let (agent, episodes) = (agent.into(), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { config, agent, authorization, places, episodes })))
    }

    /// Begins an episode for a response with its prompt's fields. Siblings are told one seed, so that they
    /// begin alike.
    ///
    /// # Errors
    /// Where the server does not begin it.
    pub(super) async fn reset(
        &self,
        (run, id): (&RunId, RolloutId),
        fields: &str,
    ) -> Result<(RemoteEpisode, Vec<EnvironmentMessage>), EnvironmentError> {
        let fields: Map<String, Value> = serde_json::from_str(if fields.is_empty() { "{}" } else { fields })
            .map_err(|error| {
                EnvironmentError::failed(format!("the prompt's fields are no JSON object: {error}"))
            })?;
        let name = format!("{run}-{id}-{}", self.0.episodes.fetch_add(1, Ordering::Relaxed));
        // 31 bits: what every library takes as a seed.
        let seed = RolloutId { sibling: 0, ..id }.seed(0) >> 33;
        let mut body = match self.0.config.shape {
            HttpShape::Openenv => fields,
            HttpShape::Gym => Map::from_iter([("options".to_owned(), Value::Object(fields))]),
        };
        body.insert("seed".to_owned(), json!(seed));
        body.insert("episode_id".to_owned(), json!(name));
        let (mut answer, connection) = self.begin(body.into()).await?;
        let name = match &self.0.config.session_field {
            None => ("episode_id".to_owned(), json!(name)),
            Some(field) => {
                let Some(given) = answer.get_mut(field).map(Value::take).filter(|given| !given.is_null())
                else {
                    return Err(self.wrong("reset", &format!("has no {field:?}"), &answer));
                };
                (field.clone(), given)
            }
        };
        if is_true(&answer, "done") {
            return Err(self.wrong("reset", "says that it is over before it has begun", &answer));
        }
        // Gymnasium's reset gives a pair; a server may pass it on.
        let observation = match &mut answer {
            Value::Array(parts) if !parts.is_empty() => parts.swap_remove(0),
            answer => match answer.get_mut("observation").map(Value::take) {
                Some(observation) => observation,
                None => return Err(self.wrong("reset", "has no \"observation\"", answer)),
            },
        };
        let messages = self.said("reset", observation)?;
        Ok((RemoteEpisode { remote: self.clone(), name, connection }, messages))
    }

    /// Sends a reset until it is answered, or has failed too often.
    async fn begin(&self, body: Value) -> Result<(Value, Option<Connection>), Failure> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut attempts_left = self.0.config.retries;
        loop {
            let answered = if self.0.config.is_websocket() {
                self.begin_on_a_connection(&body).await
            } else {
                self.post("reset", body.clone()).await.map(|answer| (answer, None))
            };
            match answered {
                Err(failure) if failure.transient && attempts_left > 0 => {
                    attempts_left -= 1;
                    tokio::time::sleep(backoff.next_pause()).await;
                }
                answered => return answered,
            }
        }
    }

    /// Begins an episode on a connection of its own.
    async fn begin_on_a_connection(&self, body: &Value) -> Result<(Value, Option<Connection>), Failure> {
        let Inner { config, authorization, places, .. } = &*self.0;
        let _place = places.acquire().await;
        let connection = Connection::open(&config.url, authorization.as_deref(), config.timeout).await?;
        let answer = connection.ask(json!({"type": "reset", "data": body})).await?;
        Ok((answer, Some(connection)))
    }

    async fn post(&self, way: &'static str, body: Value) -> Result<Value, Failure> {
        let place = Arc::clone(&self.0.places).acquire_owned().await;
        let this = self.clone();
        // The thread keeps the place: it works on though nobody waits for it any more.
        let posted = tokio::task::spawn_blocking(move || {
            let _place = place;
            this.post_now(way, &body)
        });
        posted.await.unwrap_or_else(|error| {
            Err(Failure { detail: format!("{way}: the request ended early: {error}"), transient: true })
        })
    }

    fn post_now(&self, way: &str, body: &Value) -> Result<Value, Failure> {
        let Inner { config, agent, authorization, .. } = &*self.0;
        let url = format!("{}/{way}", config.url.trim_end_matches('/'));
        let mut request = agent.post(&url);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization.as_ref());
        }
        let failure = |error: &ureq::Error| Failure {
            detail: format!("{url}: {error}"),
            transient: match error {
                ureq::Error::StatusCode(status) => *status == 429 || *status >= 500,
                ureq::Error::Timeout(_) | ureq::Error::Io(_) | ureq::Error::ConnectionFailed => true,
                _ => false,
            },
        };
        let mut response = request.send_json(body).map_err(|error| failure(&error))?;
        if !response.status().is_success() {
            let detail = format!("{url}: status {}: a redirect is not followed", response.status());
            return Err(Failure { detail, transient: false });
        }
        let answer = response.body_mut().with_config().limit(ANSWER_LIMIT_BYTES).read_to_string();
        let answer = answer.map_err(|error| failure(&error))?;
        serde_json::from_str(&answer).map_err(|error| {
            let detail = format!("{url}: the answer is no JSON: {error}: {}", shown(&answer));
            Failure { detail, transient: false }
        })
    }

    /// What an observation says to the policy.
    fn said(&self, way: &str, mut observation: Value) -> Result<Vec<EnvironmentMessage>, EnvironmentError> {
        if let Some(field) = &self.0.config.observation_field {
            observation = match observation.get_mut(field).map(Value::take) {
                Some(said) => said,
                None => return Err(self.wrong(way, &format!("has no {field:?} in it"), &observation)),
            };
        }
        Ok(match observation {
            Value::Null => Vec::new(),
            Value::String(text) if text.is_empty() => Vec::new(),
            Value::String(text) => vec![EnvironmentMessage { speaker: Speaker::User, text }],
            other => messages(&other).unwrap_or_else(|| {
                vec![EnvironmentMessage { speaker: Speaker::User, text: other.to_string() }]
            }),
        })
    }

    fn wrong(&self, way: &str, problem: &str, answer: &Value) -> EnvironmentError {
        let url = self.0.config.url.trim_end_matches('/');
        EnvironmentError::failed(format!("{url}/{way}: the answer {problem}: {}", shown(&answer.to_string())))
    }
}

impl RemoteEpisode {
    /// Tells the server a turn.
    ///
    /// # Errors
    /// Where it does not answer, or not as it should.
    pub(super) async fn step(&self, text: &str) -> Result<Stepped, EnvironmentError> {
        let config = &self.remote.0.config;
        let field = match config.shape {
            HttpShape::Openenv => Some(config.action_field.as_deref().unwrap_or(MESSAGE)),
            HttpShape::Gym => config.action_field.as_deref(),
        };
        let action = field.map_or_else(|| json!(text), |field| json!({ field: text }));
        if let Some(connection) = &self.connection {
            let _place = self.remote.0.places.acquire().await;
            let answer = connection.ask(json!({"type": "step", "data": action})).await?;
            return self.stepped(answer);
        }
        let mut body = Map::from_iter([("action".to_owned(), action)]);
        body.insert(self.name.0.clone(), self.name.1.clone());
        let answer = self.remote.post("step", body.into()).await?;
        self.stepped(answer)
    }

    fn stepped(&self, answer: Value) -> Result<Stepped, EnvironmentError> {
        let named = match answer {
            // As Gymnasium's step returns it: observation, reward, terminated[, truncated][, info].
            Value::Array(parts) if (3..=5).contains(&parts.len()) => {
                let names = ["observation", "reward", "terminated", "truncated"];
                Value::from_iter(names.into_iter().zip(parts).map(|(name, part)| (name.to_owned(), part)))
            }
            other => other,
        };
        let wrong = |problem: &str| self.remote.wrong("step", problem, &named);
        if named.get("observation").is_none() {
            return Err(wrong("has no \"observation\""));
        }
        let reward = match &named["reward"] {
            Value::Null => 0.0,
            Value::Bool(won) => f64::from(u8::from(*won)),
            reward => reward
                .as_f64()
                .filter(|reward| reward.is_finite())
                .ok_or_else(|| wrong("has a reward that is no finite number"))?,
        };
        let flags = ["done", "terminated", "truncated"];
        // OpenEnv leaves out what is false; of another server's answer nobody knows what it means.
        let may_be_silent = self.remote.0.config.shape == HttpShape::Openenv;
        if !may_be_silent && flags.iter().all(|flag| named.get(flag).is_none()) {
            return Err(wrong("does not say whether the episode is over"));
        }
        let done = flags.iter().any(|flag| is_true(&named, flag));
        let messages = self.remote.said("step", named["observation"].clone())?;
        if messages.is_empty() && !done {
            return Err(wrong("says nothing, though the episode is not over"));
        }
        Ok(Stepped { messages, reward, done })
    }
}

fn is_true(answer: &Value, flag: &str) -> bool {
    // A number as a flag: Gymnasium's older servers write 0 and 1.
    answer.get(flag).is_some_and(|flag| flag.as_bool() == Some(true) || flag.as_i64() == Some(1))
}

/// The messages of a list that is one of messages, as a chat has them.
fn messages(list: &Value) -> Option<Vec<EnvironmentMessage>> {
    let of = |message: &Value| {
        let speaker = match message.get("role")?.as_str()? {
            "user" => Speaker::User,
            "tool" => Speaker::Tool,
            _ => return None,
        };
        Some(EnvironmentMessage { speaker, text: message.get("content")?.as_str()?.to_owned() })
    };
    list.as_array().filter(|list| !list.is_empty())?.iter().map(of).collect()
}

/// The beginning of an answer.
fn shown(answer: &str) -> String {
    answer.chars().take(SHOWN_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_messages_are_messages_and_other_lists_are_none() {
        let list = json!([{"role": "tool", "content": "a"}, {"role": "user", "content": "b"}]);
        let said = messages(&list).unwrap();
        assert_eq!((said[0].speaker, said[1].text.as_str()), (Speaker::Tool, "b"));
        for other in [json!([]), json!([1, 2]), json!([{"role": "system", "content": "x"}]), json!("x")] {
            assert_eq!(messages(&other), None, "{other}");
        }
    }

    #[test]
    fn flags_are_true_or_one() {
        let answer = json!({"done": true, "terminated": 1, "truncated": 0, "other": "true"});
        let found = ["done", "terminated", "truncated", "other", "absent"].map(|flag| is_true(&answer, flag));
        assert_eq!(found, [true, true, false, false, false]);
    }
}
