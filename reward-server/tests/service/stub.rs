//! A remote reward service that answers when the test lets it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use reward_server::config::{Http, ScorerKind};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The service.
pub(crate) struct Stub {
    pub(crate) url: String,
    state: Arc<Inner>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct Inner {
    /// Bodies of the requests that have come.
    bodies: Mutex<Vec<Value>>,
    /// The headers that prove who asks.
    authorizations: Mutex<Vec<String>>,
    /// What is answered before it answers properly.
    script: Mutex<VecDeque<(StatusCode, String)>>,
    /// One permit lets one request through.
    gate: Option<Semaphore>,
    /// Whether a query is its own reward.
    is_echo: bool,
    /// How long it works on a request, on so many at a time; it then remembers no bodies.
    work: Option<(Duration, Semaphore)>,
}

impl Stub {
    /// A service that answers at once; each reward is the length of its query.
    pub(crate) async fn open() -> Self {
        Self::start(Inner::default()).await
    }

    /// A service that answers a request for each call of [`Stub::let_through`].
    pub(crate) async fn closed() -> Self {
        Self::start(Inner { gate: Some(Semaphore::new(0)), ..Inner::default() }).await
    }

    /// A service that gives these answers first.
    pub(crate) async fn scripted(answers: &[(u16, &str)]) -> Self {
        let answer =
            |(status, body): &(u16, &str)| (StatusCode::from_u16(*status).unwrap(), (*body).to_owned());
        let script = Mutex::new(answers.iter().map(answer).collect());
        Self::start(Inner { script, ..Inner::default() }).await
    }

    /// As [`Stub::closed`], and each reward is its query as it stands, whether that is a number or not.
    pub(crate) async fn closed_echo() -> Self {
        Self::start(Inner { gate: Some(Semaphore::new(0)), is_echo: true, ..Inner::default() }).await
    }

    /// A service that takes this long for a request and works on so many at a time.
    pub(crate) async fn slow(time: Duration, places: usize) -> Self {
        Self::start(Inner { work: Some((time, Semaphore::new(places))), ..Inner::default() }).await
    }

    async fn start(inner: Inner) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/get_reward", listener.local_addr().unwrap());
        let state = Arc::new(inner);
        let router = axum::Router::new().route("/get_reward", post(answer)).with_state(Arc::clone(&state));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, state, _server: server }
    }

    pub(crate) fn let_through(&self, requests: usize) {
        self.state.gate.as_ref().unwrap().add_permits(requests);
    }

    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.state.bodies.lock().unwrap().clone()
    }

    pub(crate) fn authorizations(&self) -> Vec<String> {
        self.state.authorizations.lock().unwrap().clone()
    }

    /// A scorer that asks it, one response a request.
    pub(crate) fn scorer(&self) -> Http {
        let table = json!({ "kind": "http", "url": self.url, "batch": 1, "concurrency": 64 });
        match serde_json::from_value(table).unwrap() {
            ScorerKind::Http(http) => http,
            other => panic!("{other:?}"),
        }
    }
}

async fn answer(
    State(state): State<Arc<Inner>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> (StatusCode, String) {
    let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    state.authorizations.lock().unwrap().extend(authorization);
    match &state.work {
        Some((time, places)) => {
            let _place = places.acquire().await.unwrap();
            tokio::time::sleep(*time).await;
        }
        None => state.bodies.lock().unwrap().push(body.clone()),
    }
    if let Some(gate) = &state.gate {
        gate.acquire().await.unwrap().forget();
    }
    if let Some(scripted) = state.script.lock().unwrap().pop_front() {
        return scripted;
    }
    let queries = body["query"].as_array().unwrap();
    if state.is_echo {
        let rewards: Vec<&str> = queries.iter().map(|query| query.as_str().unwrap()).collect();
        return (StatusCode::OK, format!("{{\"rewards\": [{}]}}", rewards.join(", ")));
    }
    let rewards: Vec<usize> = queries.iter().map(|query| query.as_str().unwrap().len()).collect();
    (StatusCode::OK, json!({ "rewards": rewards }).to_string())
}
