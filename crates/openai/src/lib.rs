//! The policy behind an HTTP interface that OpenAI's clients speak: `sluice serve`, and a port of a running
//! actor.
//!
//! `/v1/completions` and `/v1/chat/completions` (whole or streamed as server-sent events), `/v1/models`. Each
//! HTTP request is a client of the engine, so that one that is dropped cancels its responses. Requests beyond
//! [`ServeConfig::max_concurrent_requests`], or beyond what the engine lets wait, get a 429 and queue nowhere
//! else.
//!
//! Fields that would change the response and are not supported are refused, and so are fields that nobody
//! here knows; those that change nothing are ignored. Beside OpenAI's own, vLLM's `min_tokens`,
//! `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message`, `top_k`, `min_p`,
//! `repetition_penalty`, `stop_token_ids` and `ignore_eos` are obeyed. `tools` go into the chat template, and
//! what the model writes in its format of calls becomes `tool_calls`; such a reply comes in one piece,
//! streamed or not. Each choice says in `weight_versions` which version of the weights drew which of its
//! tokens. `logprobs` are of the untruncated distribution at the sampling temperature, as everywhere in
//! Sluice.
//!
//! `response_format` (JSON of any kind, or by a schema) and `structured_outputs` (a schema, a regular
//! expression, some texts, a grammar) are followed to the letter: other tokens have no chance.
//!
//! An actor's port may also have [`Agents`]: programs with a loop of their own lease episodes there, and what
//! the policy draws in their calls is recorded.

mod agents;
mod answer;
mod chat;
mod choice;
mod error;
mod extra_fields;
mod kind;
mod name;
mod reply;
mod request;
mod structured;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{self, DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use engine::{EngineConfig, EngineHandle, EngineParts, Folder, PromptEncoder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use agents::{AgentEvent, Agents, AgentsConfig, Offer, Played};
use answer::Running;
use error::ApiError;
use kind::Kind;
use name::ServedName;
use request::{Draws, Job};

/// Largest body of a request.
const MAX_BODY_BYTES: usize = 16 << 20;

/// How the policy is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// Whether an actor serves its policy. It shares the engine with the rollouts.
    pub enabled: bool,
    /// Where an actor serves it; loopback by default. Port 0 takes any free port; log and address file say
    /// which, under `openai`. Where the run has a token file, the token of its role `client` is the API key.
    pub listen: SocketAddr,
    /// What clients call the model: the name of its folder where this is absent, and `policy` where it has
    /// none, as in an actor. Every server understands `policy`, too.
    pub model_name: Option<String>,
    /// Requests that are answered at a time; more get a 429.
    pub max_concurrent_requests: usize,
    /// Longest time for one request.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub time_limit: Duration,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            model_name: None,
            max_concurrent_requests: 256,
            time_limit: Duration::from_secs(600),
        }
    }
}

impl ServeConfig {
    /// Everything that makes the values unusable.
    pub fn problems(&self) -> Vec<String> {
        let in_range = (1..=1 << 20).contains(&self.max_concurrent_requests);
        let range = format!("max_concurrent_requests is {}, must be 1 to 2^20", self.max_concurrent_requests);
        let named = "model_name is empty, must be what clients call the model".to_owned();
        let problems = [(in_range, range), (self.model_name.as_deref() != Some(""), named)];
        problems.into_iter().filter(|(sound, _)| !sound).map(|(_, problem)| problem).collect()
    }
}

/// A policy that can be asked.
#[derive(Debug, Clone)]
pub struct Served {
    pub(crate) engine: EngineHandle,
    pub(crate) encoder: Arc<PromptEncoder>,
    /// The name of the model's folder, if it was loaded from one.
    folder: Option<String>,
}

impl Served {
    /// A policy whose engine runs already; `encoder` is of the same folder.
    pub fn new(engine: EngineHandle, encoder: Arc<PromptEncoder>) -> Self {
        Self { engine, encoder, folder: None }
    }

    /// Where it runs and with how much, for a person.
    pub fn summary(&self) -> &str {
        self.engine.summary()
    }

    /// What clients call it.
    pub fn name(&self, config: &ServeConfig) -> String {
        ServedName::new(config.model_name.as_deref(), self.folder.as_deref()).as_str().to_owned()
    }

    /// Loads a model folder into an engine of its own.
    ///
    /// # Errors
    /// When the folder cannot be read, has no tokenizer, or the engine cannot run its network.
    pub async fn load(folder: &Path, config: EngineConfig) -> anyhow::Result<Self> {
        let (path, engine) = (folder.to_owned(), config.clone());
        let loaded = tokio::task::spawn_blocking(move || Folder::load(&path, &engine)).await??;
        let Folder { model, weights, text } = loaded;
        let (tokenizer, encoder) = text.with_context(|| {
            format!("{} has no tokenizer.json, which serving text needs", folder.display())
        })?;
        let parts = EngineParts { model, weights, tokenizer: Some(tokenizer), config };
        // A folder that is given as a dot has a name nevertheless.
        let name = folder.canonicalize().ok().as_deref().and_then(Path::file_name).map(OsStr::to_os_string);
        let name = name.and_then(|name| name.into_string().ok());
        Ok(Self { engine: EngineHandle::start(parts).await?, encoder: Arc::new(encoder), folder: name })
    }
}

/// What the handlers share.
#[derive(Debug)]
struct Shared {
    /// `None` until an actor has its first weights.
    policy: watch::Receiver<Option<Served>>,
    config: ServeConfig,
    /// One permit for each request that is being answered.
    permits: Arc<Semaphore>,
    created: u64,
}

impl Shared {
    fn new(policy: watch::Receiver<Option<Served>>, config: ServeConfig) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(config.max_concurrent_requests));
        Arc::new(Self { policy, config, permits, created: unix_time() })
    }

    fn policy(&self) -> Result<Served, ApiError> {
        let policy = self.policy.borrow().clone();
        policy.ok_or_else(|| ApiError::unavailable("the policy has no weights yet; ask again later"))
    }

    /// A place among the requests that are answered at a time.
    fn permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            let most = self.config.max_concurrent_requests;
            let problem = format!("{most} requests are being answered, which is the most; ask again later");
            ApiError::too_many(problem)
        })
    }

    /// What clients call the model.
    fn name(&self) -> ServedName {
        let policy = self.policy.borrow();
        let folder = policy.as_ref().and_then(|policy| policy.folder.as_deref());
        ServedName::new(self.config.model_name.as_deref(), folder)
    }

    /// The model as OpenAI describes one.
    fn model(&self) -> Value {
        let name = self.name();
        json!({"id": name.as_str(), "object": "model", "created": self.created, "owned_by": "sluice"})
    }
}

/// The pages of `/v1` for a policy that may come later.
pub fn pages(policy: watch::Receiver<Option<Served>>, config: ServeConfig) -> Router {
    routes(Shared::new(policy, config))
}

/// The same, and the episodes of agents, which reach them over TLS or not.
pub fn pages_with_agents(
    policy: watch::Receiver<Option<Served>>,
    config: ServeConfig,
    agents: &Agents,
    is_tls: bool,
) -> Router {
    let shared = Shared::new(policy, config);
    routes(Arc::clone(&shared)).merge(agents::pages::routes(shared, agents.clone(), is_tls))
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
}

/// The whole server: `/v1`, `/health`, `/metrics`, and errors of the same shape for all other addresses.
pub fn router(served: Served, config: ServeConfig) -> Router {
    let engine = served.engine.clone();
    let metrics = move || {
        let engine = engine.clone();
        async move { metrics_page(&engine).await }
    };
    let health = served.engine.clone();
    let health = move || {
        let engine = health.clone();
        async move {
            match engine.load().await {
                Ok(_) => (StatusCode::OK, "alive\n".to_owned()),
                Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            }
        }
    };
    // The receiver keeps the last value when the sender is gone.
    let (_, policy) = watch::channel(Some(served));
    pages(policy, config)
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(|| async { ApiError::not_found("there is nothing at this address; see /v1/models") })
}

/// Serves until `shutdown` is over; what is being answered then is answered.
///
/// # Errors
/// When the listener fails.
pub async fn run(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await.context("serve HTTP")
}

async fn metrics_page(engine: &EngineHandle) -> Response {
    let (Ok(load), Ok(totals)) = (engine.load().await, engine.totals().await) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the engine has stopped\n").into_response();
    };
    let rows = [
        ("gauge", "rlhf_serve_responses_running", load.running as u64),
        ("gauge", "rlhf_serve_responses_waiting", load.waiting as u64),
        ("gauge", "rlhf_serve_cache_blocks_free", load.free_blocks as u64),
        ("gauge", "rlhf_serve_cache_blocks_kept", load.kept_blocks as u64),
        ("counter", "rlhf_serve_cache_blocks_evicted_total", totals.evicted_blocks),
        ("counter", "rlhf_serve_prefill_tokens_total", totals.prefill_tokens),
        ("counter", "rlhf_serve_tokens_reused_total", totals.reused_tokens),
        ("counter", "rlhf_serve_steps_total", totals.steps),
        ("counter", "rlhf_serve_steps_replayed_total", totals.replayed_steps),
        ("counter", "rlhf_serve_tokens_generated_total", totals.response_tokens),
        ("counter", "rlhf_serve_responses_finished_total", totals.finished),
        ("counter", "rlhf_serve_responses_cancelled_total", totals.cancelled),
        ("counter", "rlhf_serve_responses_failed_total", totals.failed),
        ("counter", "rlhf_serve_preemptions_total", totals.preemptions),
    ];
    let page: String =
        rows.iter().map(|(kind, name, value)| format!("# TYPE {name} {kind}\n{name} {value}\n")).collect();
    ([("content-type", "text/plain; version=0.0.4")], page).into_response()
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [shared.model()]}))
}

async fn model(State(shared): State<Arc<Shared>>, extract::Path(name): extract::Path<String>) -> Response {
    let served = shared.name();
    if served.is(&name) {
        Json(shared.model()).into_response()
    } else {
        ApiError::unknown_model(&name, served.as_str()).into_response()
    }
}

async fn completions(State(shared): State<Arc<Shared>>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(&shared, Kind::Completion, body).await.unwrap_or_else(ApiError::into_response)
}

async fn chat_completions(
    State(shared): State<Arc<Shared>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    answer(&shared, Kind::Chat, body).await.unwrap_or_else(ApiError::into_response)
}

async fn answer(
    shared: &Shared,
    kind: Kind,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| ApiError::bad_request(rejection.to_string(), None))?;
    let policy = shared.policy()?;
    let permit = shared.permit()?;
    let name = shared.name();
    let draws = Draws::Client { context_tokens: policy.engine.context_tokens() };
    let job = Job::parse(kind, &body, (&name, &policy.encoder), &draws)?;
    let running = Running::start(&policy, &job, permit, shared.config.time_limit).await?;
    told(kind, &name, &job, running).await
}

/// What a client is told of a request under way.
async fn told(kind: Kind, name: &ServedName, job: &Job, running: Running) -> Result<Response, ApiError> {
    let head = reply::Head::new(kind, name.as_str(), unix_time());
    if job.stream {
        Ok(reply::stream(head, running, job.include_usage).into_response())
    } else {
        Ok(Json(reply::whole(&head, running).await?).into_response())
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
