//! `POST /get_reward`: the scorers for programs that are not Sluice, in the shape of OpenRLHF's remote reward models.
//!
//! `{"query": ["prompt and response", ...], "prompts": ["prompt", ...], "labels": [...]}` is answered by
//! `{"rewards": [...]}`. A query begins with its prompt; without `prompts` all of it is response. A label that is a JSON
//! object, or text that holds one, becomes the prompt's fields (a problem with its tests, say); any other becomes the
//! field `label`. Texts are tokenized as they stand; nothing is appended.
//!
//! There is no reward for what could not be scored: then the whole request is an error, and the caller tries again.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use types::FailReason;

use crate::config::EndpointConfig;
use crate::fault::Fault;
use crate::item::Item;
use crate::metrics;
use crate::panel::Panel;

#[derive(Debug, Clone)]
struct Endpoint {
    panel: Arc<Panel>,
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
    #[error("{texts} texts, and {places} of {max} places are free: come back later")]
    Busy { texts: usize, places: usize, max: usize },
    #[error("text {index}: {fault}")]
    Fault { index: usize, fault: Fault },
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, label) = match &self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "400"),
            Self::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "429"),
            Self::Fault { fault, .. } => match fault.reason {
                FailReason::RewardTimeout => (StatusCode::GATEWAY_TIMEOUT, "504"),
                FailReason::Unsupported => (StatusCode::UNPROCESSABLE_ENTITY, "422"),
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
pub(crate) fn pages(panel: Arc<Panel>, config: &EndpointConfig) -> Router {
    let places = Arc::new(Semaphore::new(config.max_texts.min(Semaphore::MAX_PERMITS)));
    let endpoint = Endpoint { panel, places, max_texts: config.max_texts };
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
    let items = items(&endpoint.panel, request)?;
    let (texts, max) = (items.len(), endpoint.max_texts);
    let wanted = u32::try_from(texts).unwrap_or(u32::MAX);
    let busy = |_| Refusal::Busy { texts, places: endpoint.places.available_permits(), max };
    let _places = endpoint.places.try_acquire_many(wanted).map_err(busy)?;
    let until = Instant::now() + endpoint.panel.time_limit();
    let panel = &endpoint.panel;
    let rewards = items.iter().enumerate().map(|(index, item)| async move {
        let judged = panel.judge(item, until).await;
        judged.map(|judgement| judgement.score).map_err(|fault| Refusal::Fault { index, fault })
    });
    let rewards = try_join_all(rewards).await?;
    metrics::endpoint("200");
    Ok(Json(json!({ "rewards": rewards })))
}

fn items(panel: &Panel, request: Request) -> Result<Vec<Arc<Item>>, Refusal> {
    let queries = request.query.into_vec();
    let count = queries.len();
    let same_length = |name: &str, found: usize| match found == count {
        true => Ok(()),
        false => Err(Refusal::BadRequest(format!("{found} {name} for {count} queries"))),
    };
    let prompts = request.prompts.map(OneOrMany::into_vec).unwrap_or_else(|| vec![String::new(); count]);
    let labels = request.labels.map(OneOrMany::into_vec).unwrap_or_else(|| vec![Value::Null; count]);
    same_length("prompts", prompts.len())?;
    same_length("labels", labels.len())?;
    let each = queries.into_iter().zip(prompts).zip(labels).enumerate();
    each.map(|(index, ((query, prompt), label))| {
        let item = item(panel, &query, prompt, label);
        item.map(Arc::new).map_err(|problem| Refusal::BadRequest(format!("text {index}: {problem}")))
    })
    .collect()
}

fn item(panel: &Panel, query: &str, prompt: String, label: Value) -> Result<Item, String> {
    let response = query.strip_prefix(prompt.as_str());
    let response = response.ok_or("the query does not begin with its prompt")?.to_owned();
    let tokenizer = panel.tokenizer().ok_or("this server has no tokenizer")?;
    let encode = |text: &str| tokenizer.encode(text, false).map_err(|error| error.to_string());
    let (prompt_tokens, response_tokens) = (encode(&prompt)?, encode(&response)?);
    if prompt_tokens.is_empty() && response_tokens.is_empty() {
        return Err("the query is empty".to_owned());
    }
    Ok(Item {
        response_start: prompt_tokens.len(),
        tokens: [prompt_tokens, response_tokens].concat().into(),
        prompt,
        response,
        fields: fields(label),
        truncated: false,
    })
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
