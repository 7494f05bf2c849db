//! `POST /get_reward`: the scorers for programs that are not Sluice, in the shape of OpenRLHF's remote reward
//! models.
//!
//! `{"query": ["prompt and response", ...], "prompts": ["prompt", ...], "labels": [...]}` is answered by
//! `{"rewards": [...], "scores": [...], "extra_logs": {...}}`. A query begins with its prompt; without
//! `prompts` all of it is response. A label that is a JSON object, or text that holds one, becomes the
//! prompt's fields (a problem with its tests, say); any other becomes the field `label`. Responses are
//! prepared as in the ring: special tokens, such as the end that OpenRLHF sends along, are tokens and no
//! text.
//!
//! `scores` are the outcomes of hidden tests where there are any, else the rewards; `extra_logs` has each
//! scorer's own numbers.
//!
//! There is no reward for what could not be scored: then the whole request is an error, and the caller tries
//! again. It has a port of its own: who may see metrics may not ask for rewards, and the other way round.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures::future::try_join_all;
use model::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use types::FailReason;

use crate::combine::ResponseScore;
use crate::config::EndpointConfig;
use crate::metrics;
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;
use crate::scorer_set::ScorerSet;

/// Bytes of a prompt's end that may spell the mark of thoughts.
const PROMPT_END_BYTES: usize = 64;

#[derive(Debug, Clone)]
struct Endpoint {
    scorers: Arc<ScorerSet>,
    /// One for each text that may be in work.
    places: Arc<Semaphore>,
    max_texts: usize,
}

#[derive(Debug, Deserialize)]
struct Request {
    query: OneOrMany<String>,
    #[serde(default)]
    prompts: Option<OneOrMany<String>>,
    #[serde(default)]
    labels: Option<OneOrMany<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::Many(many) => many,
            Self::One(one) => vec![one],
        }
    }
}

/// Why a request is not answered by rewards.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    BadRequest(String),
    #[error(
        "{texts} texts in a request, at most {max} are scored at a time: send fewer, or raise endpoint.max_texts"
    )]
    TooMany { texts: usize, max: usize },
    #[error("{texts} texts, and {places} of {max} places are free: come back later")]
    Busy { texts: usize, places: usize, max: usize },
    #[error("text {index}: {error}")]
    NoScore { index: usize, error: ScoreError },
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, label) = match &self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "400"),
            Self::TooMany { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "413"),
            Self::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "429"),
            Self::NoScore { error, .. } => match error.reason {
                FailReason::RewardTimeout => (StatusCode::GATEWAY_TIMEOUT, "504"),
                FailReason::Unsupported => (StatusCode::UNPROCESSABLE_ENTITY, "422"),
                FailReason::Overload => (StatusCode::SERVICE_UNAVAILABLE, "503"),
                _ => (StatusCode::INTERNAL_SERVER_ERROR, "500"),
            },
        };
        metrics::endpoint(label);
        let body = Json(json!({ "error": self.to_string() }));
        match status {
            StatusCode::TOO_MANY_REQUESTS => (status, [(header::RETRY_AFTER, "1")], body).into_response(),
            _ => (status, body).into_response(),
        }
    }
}

/// The page.
pub(crate) fn pages(scorers: Arc<ScorerSet>, config: &EndpointConfig) -> Router {
    let places = Arc::new(Semaphore::new(config.max_texts.min(Semaphore::MAX_PERMITS)));
    let endpoint = Endpoint { scorers, places, max_texts: config.max_texts };
    Router::new()
        .route("/get_reward", post(get_reward))
        .layer(DefaultBodyLimit::max(config.max_bytes))
        .with_state(endpoint)
}

async fn get_reward(
    State(endpoint): State<Endpoint>,
    body: axum::body::Bytes,
) -> Result<Json<Value>, Refusal> {
    let request = serde_json::from_slice(&body).map_err(|error| Refusal::BadRequest(error.to_string()))?;
    let items = items(&endpoint.scorers, request)?;
    let (texts, max) = (items.len(), endpoint.max_texts);
    if texts > max {
        return Err(Refusal::TooMany { texts, max });
    }
    let wanted = u32::try_from(texts).unwrap_or(u32::MAX);
    let _places = endpoint.places.try_acquire_many(wanted).map_err(|_| Refusal::Busy {
        texts,
        places: endpoint.places.available_permits(),
        max,
    })?;
    let deadline = Instant::now() + endpoint.scorers.timeout();
    let scorers = &endpoint.scorers;
    let scored = items.iter().enumerate().map(|(index, input)| async move {
        let scored = scorers.score(input, deadline).await;
        scored.map_err(|error| Refusal::NoScore { index, error })
    });
    let scored = try_join_all(scored).await?;
    metrics::endpoint("200");
    Ok(Json(answer(scorers, &scored)))
}

/// What is said of scored texts, in OpenRLHF's words.
fn answer(scorers: &ScorerSet, scored: &[ResponseScore]) -> Value {
    let rewards: Vec<f32> = scored.iter().map(|scored| scored.score).collect();
    let scores: Vec<f32> = scored.iter().map(|scored| scored.outcome.unwrap_or(scored.score)).collect();
    let mut logs = Map::new();
    for (at, name) in scorers.names().iter().enumerate() {
        let numbers: Option<Vec<f64>> = scored.iter().map(|scored| scored.numbers.get(at).copied()).collect();
        logs.insert(name.clone(), json!(numbers));
    }
    json!({ "rewards": rewards, "scores": scores, "extra_logs": logs })
}

fn items(scorers: &ScorerSet, request: Request) -> Result<Vec<Arc<ScorerInput>>, Refusal> {
    let queries = request.query.into_vec();
    let count = queries.len();
    let prompts = request.prompts.map(OneOrMany::into_vec).unwrap_or_else(|| vec![String::new(); count]);
    let labels = request.labels.map(OneOrMany::into_vec).unwrap_or_else(|| vec![Value::Null; count]);
    for (name, found) in [("prompts", prompts.len()), ("labels", labels.len())] {
        if found != count {
            return Err(Refusal::BadRequest(format!("{found} {name} for {count} queries")));
        }
    }
    let each = queries.into_iter().zip(prompts).zip(labels).enumerate();
    each.map(|(index, ((query, prompt), label))| {
        let input = input(scorers, &query, prompt, label);
        input.map(Arc::new).map_err(|problem| Refusal::BadRequest(format!("text {index}: {problem}")))
    })
    .collect()
}

/// Why a text cannot be scored.
#[derive(Debug, thiserror::Error)]
enum TextProblem {
    #[error("the query does not begin with its prompt")]
    OtherPrompt,
    #[error("this server has no tokenizer")]
    NoTokenizer,
    #[error("the query is empty")]
    Empty,
    #[error(transparent)]
    Tokens(#[from] model::tokenizer::Error),
}

fn input(scorers: &ScorerSet, query: &str, prompt: String, label: Value) -> Result<ScorerInput, TextProblem> {
    let response = query.strip_prefix(prompt.as_str()).ok_or(TextProblem::OtherPrompt)?.to_owned();
    let tokenizer = scorers.tokenizer().ok_or(TextProblem::NoTokenizer)?;
    let prompt_tokens = tokenizer.encode(&prompt, false)?;
    let response_tokens = tokenizer.encode_response(&prompt_tokens, &response)?;
    if prompt_tokens.is_empty() && response_tokens.is_empty() {
        return Err(TextProblem::Empty);
    }
    Ok(ScorerInput {
        response_start: prompt_tokens.len(),
        given: Vec::new(),
        beginnings: Vec::new(),
        tokens: [prompt_tokens, response_tokens].concat().into(),
        response: without_special(tokenizer, &response),
        episode: String::new(),
        prompt_end: prompt[prompt.floor_char_boundary(prompt.len().saturating_sub(PROMPT_END_BYTES))..]
            .to_owned(),
        prompt,
        fields: fields(label),
        truncated: false,
        reward: None,
    })
}

/// A response without the special tokens that are written out in it.
fn without_special(tokenizer: &Tokenizer, response: &str) -> String {
    let mut text = response.to_owned();
    for special in tokenizer.special_texts() {
        if text.contains(special) {
            text = text.replace(special, "");
        }
    }
    text
}

/// The prompt's fields that a label stands for.
fn fields(label: Value) -> Map<String, Value> {
    match label {
        Value::Null => Map::new(),
        Value::Object(fields) => fields,
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::from_iter([("label".to_owned(), Value::String(text))]),
        },
        other => Map::from_iter([("label".to_owned(), other)]),
    }
}
