//! The HTTP interface of agents. Errors have the shape of OpenAI's.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/episodes` | an episode: its id, the prompt, `base_url` for its calls; 204 where none came in time; 410 once the actor leaves |
//! | `POST /v1/episodes/ID/chat/completions`, `/completions` | a call of OpenAI's interface that is part of the episode |
//! | `POST /v1/episodes/ID/heartbeat` | the time that is left |
//! | `POST /v1/episodes/ID/finish` | what was recorded; said again, the same |

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use types::{EpisodeEnd, PromptContent};

use super::Agents;
use super::ended::{Ended, Summary, Verdict};
use super::record::Unjoined;
use super::recorder::Recorder;
use super::table::{Leased, Refused};
use crate::answer::Running;
use crate::error::ApiError;
use crate::kind::Kind;
use crate::request::{Asked, Draws, Job};
use crate::{Shared, told};

/// How long an agent waits for an episode where it does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(20);
/// How long it waits at most.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Longest text of an agent that is kept of why it gave an episode up, in characters.
const MAX_REASON: usize = 300;

#[derive(Debug)]
struct AgentPages {
    shared: Arc<Shared>,
    agents: Agents,
    is_tls: bool,
}

type Pages = State<Arc<AgentPages>>;
type Body = Result<Bytes, BytesRejection>;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LeaseRequest {
    wait_seconds: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FinishRequest {
    reward: Option<f64>,
    failed: Option<String>,
}

/// The routes of agents.
pub(crate) fn routes(shared: Arc<Shared>, agents: Agents, is_tls: bool) -> Router {
    let most = agents.table().config().request_bytes;
    Router::new()
        .route("/v1/episodes", post(lease))
        .route("/v1/episodes/{id}/models", get(models))
        .route("/v1/episodes/{id}/completions", post(completions))
        .route("/v1/episodes/{id}/chat/completions", post(chat_completions))
        .route("/v1/episodes/{id}/heartbeat", post(heartbeat))
        .route("/v1/episodes/{id}/finish", post(finish))
        .layer(DefaultBodyLimit::max(most))
        .with_state(Arc::new(AgentPages { shared, agents, is_tls }))
}

async fn lease(State(pages): Pages, headers: HeaderMap, body: Body) -> Response {
    pages.lease(&headers, body).await.unwrap_or_else(ApiError::into_response)
}

async fn models(State(pages): Pages) -> Json<Value> {
    Json(json!({"object": "list", "data": [pages.shared.model()]}))
}

async fn completions(State(pages): Pages, Path(id): Path<String>, body: Body) -> Response {
    pages.call(Kind::Completion, id, body).await.unwrap_or_else(ApiError::into_response)
}

async fn chat_completions(State(pages): Pages, Path(id): Path<String>, body: Body) -> Response {
    pages.call(Kind::Chat, id, body).await.unwrap_or_else(ApiError::into_response)
}

async fn heartbeat(State(pages): Pages, Path(id): Path<String>) -> Response {
    match pages.agents.change(|table| table.heartbeat(&id, Instant::now())) {
        Ok(left) => Json(json!({"id": id, "deadline_seconds": left.as_secs_f64()})).into_response(),
        Err(refused) => refusal(refused, &id).into_response(),
    }
}

async fn finish(State(pages): Pages, Path(id): Path<String>, body: Body) -> Response {
    pages.finish(&id, body).unwrap_or_else(ApiError::into_response)
}

/// An agent that waits for an episode.
struct Waiting<'a>(&'a Agents);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.change(super::Table::wait_over);
    }
}

impl AgentPages {
    async fn lease(&self, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
        let LeaseRequest { wait_seconds } = read(body)?;
        let wait = match wait_seconds {
            None => DEFAULT_WAIT,
            Some(seconds) => Duration::try_from_secs_f64(seconds)
                .map_err(|error| ApiError::bad_field("wait_seconds", &error.to_string()))?,
        };
        let until = Instant::now() + wait.min(MAX_WAIT);
        if !self.agents.change(super::Table::wait) {
            let most = self.agents.table().config().episodes;
            let problem = format!("{most} agents wait for an episode, which is the most; ask again later");
            return Err(ApiError::too_many(problem));
        }
        let _waiting = Waiting(&self.agents);
        loop {
            let offered = self.agents.0.offered.notified();
            tokio::pin!(offered);
            // From here on an offer is not missed.
            offered.as_mut().enable();
            let (leased, is_leaving) = {
                let mut table = self.agents.table();
                (table.take(Instant::now(), SystemTime::now()), table.is_leaving())
            };
            if let Some(leased) = leased {
                return Ok(Json(self.leased(headers, &leased)?).into_response());
            }
            if is_leaving {
                return Err(ApiError::gone("this actor is leaving: there is no further episode"));
            }
            if tokio::time::timeout_at(until, offered).await.is_err() {
                return Ok(StatusCode::NO_CONTENT.into_response());
            }
        }
    }

    /// An episode as an agent is told of it.
    fn leased(&self, headers: &HeaderMap, leased: &Leased) -> Result<Value, ApiError> {
        let Leased { session, offer, time } = leased;
        let (calls, tokens, heartbeat) = {
            let table = self.agents.table();
            let config = table.config();
            (config.calls, config.max_tokens, config.heartbeat_timeout)
        };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let scheme = if self.is_tls { "https" } else { "http" };
        let mut told = json!({
            "id": session,
            "attempt": offer.id.to_string(),
            "base_url": format!("{scheme}://{host}/v1/episodes/{session}"),
            "model": self.shared.name().as_str(),
            "prompt": null,
            "messages": null,
            "prompt_tokens": null,
            "deadline_seconds": time.as_secs_f64(),
            "heartbeat_seconds": heartbeat.as_secs_f64(),
            "sampling": serde_json::to_value(offer.sampling.as_ref()).unwrap_or_default(),
            "calls": calls,
            "max_tokens": tokens,
        });
        match &offer.prompt {
            PromptContent::Text(text) => told["prompt"] = json!(text),
            PromptContent::Tokens(tokens) => told["prompt_tokens"] = json!(tokens),
            PromptContent::Messages(messages) => {
                let messages: Value = serde_json::from_str(messages)
                    .map_err(|error| ApiError::internal(format!("the prompt's messages: {error}")))?;
                told["messages"] = messages;
            }
        }
        Ok(told)
    }

    /// A call of an episode: as any other, but computed from what was recorded, and recorded.
    async fn call(&self, kind: Kind, session: String, body: Body) -> Result<Response, ApiError> {
        let body = body.map_err(unread)?;
        let terms = self.agents.change(|table| table.terms(&session, Instant::now()));
        let terms = terms.map_err(|refused| refusal(refused, &session))?;
        let policy = self.shared.policy()?;
        let permit = self.shared.permit()?;
        let name = self.shared.name();
        let mut job = Job::parse(kind, &body, (&name, &policy.encoder), &Draws::Run(terms.draws))?;
        let asked = job.prompts.pop().ok_or_else(|| ApiError::bad_request("there is no prompt", None))?;
        let joined = {
            let record = terms.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            record.join(&policy.encoder, asked)
        };
        let joined = joined.map_err(|unjoined| match unjoined {
            Unjoined::Unreadable(error) => ApiError::bad_request(format!("{error:#}"), Some("messages")),
            Unjoined::Full { most } => {
                self.agents.change(|table| table.is_cut(&session, EpisodeEnd::Template));
                let problem = format!(
                    "this call goes on from none of the {most} sequences of the episode, which are the most \
                     (actor.agents.sequences)"
                );
                ApiError::exhausted(problem)
            }
        })?;
        let reserved = job.sampling.max_new_tokens();
        let begun = self.agents.change(|table| table.begin_call(&session, reserved, Instant::now()));
        job.seed = begun.map_err(|refused| refusal(refused, &session))?;
        job.prompts = vec![Asked::Joined(Arc::clone(&joined.prompt_tokens))];
        let recorder = Recorder {
            agents: self.agents.clone(),
            session: session.clone(),
            reserved,
            record: terms.record,
            sampling: job.sampling.clone(),
            joined: Some(joined),
        };
        let running = Running::start(&policy, &job, permit, self.shared.config.time_limit).await;
        let running = running.inspect_err(|error| {
            self.agents.change(|table| {
                table.call_refused(&session);
                if error.is_context() {
                    table.is_cut(&session, EpisodeEnd::Context);
                }
            });
        })?;
        told(kind, &name, &job, running.recorded_by(recorder)).await
    }

    fn finish(&self, session: &str, body: Body) -> Result<Response, ApiError> {
        let FinishRequest { reward, failed } = read(body)?;
        let verdict = match (reward, failed) {
            (Some(_), Some(_)) => {
                let problem = "an episode has a reward or has failed, not both";
                return Err(ApiError::bad_request(problem, Some("failed")));
            }
            (_, Some(why)) => Verdict::Failed { why: why.chars().take(MAX_REASON).collect() },
            (reward, None) => {
                let reward = reward.map(|reward| reward as f32);
                if reward.is_some_and(|reward| !reward.is_finite()) {
                    return Err(ApiError::bad_request("reward is beyond 32 bits", Some("reward")));
                }
                Verdict::Finished { reward }
            }
        };
        let ended = self.agents.change(|table| table.end(session, verdict.clone(), Instant::now()));
        let ended = match ended {
            Ok(ended) | Err(Refused::Over(ended)) => ended,
            Err(refused) => return Err(refusal(refused, session)),
        };
        match (&ended, &verdict) {
            (Ended::Played(summary), Verdict::Finished { reward }) if summary.reward == *reward => {
                Ok(Json(summarised(session, summary)).into_response())
            }
            (Ended::GivenUp, Verdict::Failed { .. }) => {
                Ok(Json(json!({"id": session, "status": "failed"})).into_response())
            }
            (Ended::Taken { .. }, _) => Err(refusal(Refused::Over(ended), session)),
            (Ended::Played(_) | Ended::GivenUp, _) => {
                Err(ApiError::conflict(format!("the episode {session} has ended otherwise before")))
            }
        }
    }
}

fn summarised(session: &str, summary: &Summary) -> Value {
    let Summary { reward, calls, sequences, tokens } = summary;
    json!({"id": session, "status": "finished", "reward": reward, "calls": calls, "sequences": sequences, "tokens": tokens})
}

fn refusal(refused: Refused, session: &str) -> ApiError {
    match refused {
        Refused::Unknown => ApiError::not_found(format!("there is no episode {session:?} here; lease one")),
        Refused::Exhausted(problem) => ApiError::exhausted(format!("{problem}; finish it")),
        Refused::Over(Ended::Taken { why }) => {
            ApiError::gone(format!("the episode {session} has failed, and is played again: {why}"))
        }
        Refused::Over(Ended::Played(_) | Ended::GivenUp) => {
            ApiError::gone(format!("the episode {session} is over; lease another one"))
        }
    }
}

/// Reads a body; one that is empty says nothing.
fn read<T: DeserializeOwned + Default>(body: Body) -> Result<T, ApiError> {
    let body = body.map_err(unread)?;
    if body.is_empty() {
        return Ok(T::default());
    }
    let mut reader = serde_json::Deserializer::from_slice(&body);
    serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| ApiError::bad_field(&error.path().to_string(), &error.inner().to_string()))
}

fn unread(rejection: BytesRejection) -> ApiError {
    ApiError::bad_request(rejection.to_string(), None)
}
