//! What the page asks for, as JSON over HTTP.
//!
//! | address | answer |
//! |---|---|
//! | `api/runs` | the runs: number, name, whether alive, steps |
//! | `api/runs/N/status` | how it is: the coordinator's status |
//! | `api/runs/N/catalog` | what can be drawn |
//! | `api/runs/N/series?ids=a,b&axis=batch&from=&to=&points=` | curves, downsampled |
//! | `api/runs/N/samples?search=&sort=&ascending=&offset=&limit=` | samples |
//! | `api/runs/N/worst` | the highest scores with failed tests |
//! | `api/runs/N/groups` | siblings by rank, and what was kept |
//! | `api/runs/N/events` | events, newest first |
//! | `api/runs/N/processes` | processes with their last metrics |
//! | `api/runs/N/logs/PROCESS?lines=&search=` | the end of a log |
//! | `api/runs/N/config` | what the roles were told, by key |
//! | `api/live` | server-sent events: `status` and `steps` as they change |

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use service::CancellationToken;
use service::axum::extract::{Path, Query, State};
use service::axum::http::StatusCode;
use service::axum::response::sse::{Event, Sse};
use service::axum::response::{IntoResponse, Response};
use service::axum::routing::get;
use service::axum::{Json, Router};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::axis::Axis;
use crate::catalog::{Field, catalog, lines};
use crate::downsample::Window;
use crate::groups::Groups;
use crate::logs::Log;
use crate::run::{Run, address_files};
use crate::worst::Worst;
use crate::{assets, config, events, samples};

/// Time between two looks of a page that is open.
const LIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Pages that may be open at a time.
const LIVE_LIMIT: usize = 64;
/// Most points of a curve, and how many when nobody asks.
const POINTS_LIMIT: usize = 5000;
const POINTS_DEFAULT: usize = 600;
/// Most curves of one answer.
const SERIES_LIMIT: usize = 64;
/// Lines of a log when nobody asks.
const LINES_DEFAULT: usize = 300;

/// A page over some runs.
#[derive(Debug, Clone)]
pub struct Dashboard(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    runs: Vec<Run>,
    fields: Vec<Field>,
    live: Arc<Semaphore>,
    /// Cancelled when the server is about to end: pages that are open keep no process.
    token: CancellationToken,
}

/// Why there is no answer.
type Refusal = (StatusCode, String);

impl Dashboard {
    /// Of these runs; `fields` says what their steps' fields mean.
    pub fn new(runs: Vec<Run>, fields: Vec<Field>, token: CancellationToken) -> Self {
        Self(Arc::new(Shown { runs, fields, live: Arc::new(Semaphore::new(LIVE_LIMIT)), token }))
    }

    /// The page and what it asks for.
    pub fn routes(self) -> Router {
        let router = assets::routes::<Self>()
            .route("/api/runs", get(Self::runs))
            .route("/api/live", get(Self::live))
            .route("/api/runs/{run}/series", get(Self::series))
            .route("/api/runs/{run}/samples", get(Self::samples))
            .route("/api/runs/{run}/logs/{process}", get(Self::log))
            .route("/api/runs/{run}/{what}", get(Self::simple));
        router.with_state(self)
    }

    /// Reads files of a run, away from the threads that serve streams.
    async fn of_run<T: Send + 'static>(
        self,
        run: usize,
        look: impl FnOnce(&Run, &[Field]) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let looked = tokio::task::spawn_blocking(move || match self.0.runs.get(run) {
            Some(run) => look(run, &self.0.fields),
            None => Err((StatusCode::NOT_FOUND, format!("there are {} runs", self.0.runs.len()))),
        });
        looked.await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
    }

    async fn runs(State(this): State<Self>) -> Result<Json<Value>, Refusal> {
        let listed = tokio::task::spawn_blocking(move || {
            this.0.runs.iter().enumerate().map(|(number, run)| summary(number, run)).collect::<Vec<_>>()
        });
        let listed = listed.await.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(Json(json!(listed)))
    }

    async fn simple(
        State(this): State<Self>,
        Path((run, what)): Path<(usize, String)>,
    ) -> Result<Json<Value>, Refusal> {
        this.of_run(run, move |run, fields| simple(run, fields, &what)).await.map(Json)
    }

    async fn series(
        State(this): State<Self>,
        Path(run): Path<usize>,
        Query(query): Query<SeriesQuery>,
    ) -> Result<Json<Value>, Refusal> {
        let window = Window {
            from: query.from.unwrap_or(f64::NEG_INFINITY),
            to: query.to.unwrap_or(f64::INFINITY),
            points: query.points.unwrap_or(POINTS_DEFAULT).clamp(2, POINTS_LIMIT),
        };
        let look = this.of_run(run, move |run, _| {
            let ids = query.ids.split(',').filter(|id| !id.is_empty()).take(SERIES_LIMIT);
            let series = ids.map(|id| (id, lines(run, id, query.axis, window)));
            Ok(json!(series.collect::<BTreeMap<_, _>>()))
        });
        look.await.map(Json)
    }

    async fn samples(
        State(this): State<Self>,
        Path(run): Path<usize>,
        Query(query): Query<samples::Query>,
    ) -> Result<Json<Value>, Refusal> {
        this.of_run(run, move |run, _| Ok(json!(window(run)?.find(&query)))).await.map(Json)
    }

    async fn log(
        State(this): State<Self>,
        Path((run, process)): Path<(usize, String)>,
        Query(query): Query<LogQuery>,
    ) -> Result<Json<Value>, Refusal> {
        let look = this.of_run(run, move |run, _| {
            // Only what was listed is read: a name is never a path.
            let logs = run.folder().map(Log::all).unwrap_or_default();
            let Some(log) = logs.iter().find(|log| log.process == process) else {
                return Err((StatusCode::NOT_FOUND, format!("no process {process} has a log here")));
            };
            Ok(json!(log.tail(query.lines.unwrap_or(LINES_DEFAULT), &query.search)))
        });
        look.await.map(Json)
    }

    async fn live(State(this): State<Self>) -> Response {
        match Arc::clone(&this.0.live).try_acquire_owned() {
            Ok(permit) => Sse::new(live(this, permit)).into_response(),
            Err(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("{LIVE_LIMIT} pages are open")).into_response()
            }
        }
    }
}

/// Which curves are asked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SeriesQuery {
    ids: String,
    axis: Axis,
    from: Option<f64>,
    to: Option<f64>,
    points: Option<usize>,
}

/// Which lines of a log are asked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LogQuery {
    lines: Option<usize>,
    search: String,
}

/// What is asked for without parameters.
fn simple(run: &Run, fields: &[Field], what: &str) -> Result<Value, Refusal> {
    let folder = run.folder();
    Ok(match what {
        "status" => run.status(),
        "catalog" => json!(catalog(run, fields)),
        "events" => json!(folder.map(events::events).unwrap_or_default()),
        "config" => json!(folder.map(config::told_keys).unwrap_or_default()),
        "processes" => json!(processes(run)),
        "groups" => json!(Groups::of(&window(run)?)),
        "worst" => json!(worst(run)?),
        _ => return Err((StatusCode::NOT_FOUND, format!("nothing is called {what}"))),
    })
}

/// A run in the list.
fn summary(number: usize, run: &Run) -> Value {
    let (steps, batch) = run.steps().with(|steps| (steps.count(), steps.last_batch()));
    let status = run.status();
    json!({
        "number": number,
        "name": run.name(),
        "folder": run.folder(),
        "live": status["live"],
        "phase": status["status"]["phase"],
        "steps": steps,
        "batch": batch,
        "began": run.began(),
    })
}

/// What has a log or an address.
fn processes(run: &Run) -> Vec<Value> {
    let Some(folder) = run.folder() else { return Vec::new() };
    let addresses = address_files(folder);
    let logs = Log::all(folder);
    let names = addresses.keys().map(String::as_str).chain(logs.iter().map(|log| log.process.as_str()));
    let names: BTreeSet<&str> = names.collect();
    run.with_measurements(|table| {
        let mut processes = Vec::new();
        for name in names {
            let log_bytes = logs.iter().find(|log| log.process == name).map(Log::bytes);
            processes.push(json!({
                "name": name,
                "addresses": addresses.get(name),
                "log_bytes": log_bytes,
                "metrics": table.last_values(name),
            }));
        }
        processes
    })
}

fn worst(run: &Run) -> Result<Worst, Refusal> {
    let file = run.file("worst.json");
    file.map_or_else(|| Ok(Worst::default()), |file| Worst::read(&file))
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn window(run: &Run) -> Result<samples::Window, Refusal> {
    let Some(file) = run.file("samples.jsonl") else {
        return Ok(samples::Window::default());
    };
    samples::Window::read(&file)
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {error}", file.display())))
}

/// What one page was told last.
#[derive(Debug)]
struct Told {
    dashboard: Dashboard,
    _permit: OwnedSemaphorePermit,
    last: BTreeMap<(usize, &'static str), String>,
    waiting: Vec<Event>,
    ticks: tokio::time::Interval,
}

/// Says what changes, until the page is closed or the server ends.
fn live(dashboard: Dashboard, permit: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut ticks = tokio::time::interval(LIVE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let told = Told { dashboard, _permit: permit, last: BTreeMap::new(), waiting: Vec::new(), ticks };
    futures::stream::unfold(told, |mut told| async move {
        loop {
            if let Some(event) = told.waiting.pop() {
                return Some((Ok(event), told));
            }
            let token = told.dashboard.0.token.clone();
            tokio::select! {
                () = token.cancelled() => return None,
                _ = told.ticks.tick() => {}
            }
            told = told.look().await?;
        }
    })
}

impl Told {
    /// Finds out what has changed; a comment when nothing has, so that a page that is gone is noticed.
    async fn look(mut self) -> Option<Self> {
        let shown = Arc::clone(&self.dashboard.0);
        let looked = tokio::task::spawn_blocking(move || {
            let mut news = Vec::new();
            for run in &shown.runs {
                let steps = run.steps().with(|steps| (steps.count(), steps.last_batch()));
                news.push((run.status(), json!({"steps": steps.0, "batch": steps.1})));
            }
            news
        });
        for (run, (status, steps)) in looked.await.ok()?.into_iter().enumerate() {
            for (what, mut news) in [("status", status), ("steps", steps)] {
                if let Value::Object(fields) = &mut news {
                    fields.insert("run".to_owned(), json!(run));
                }
                let news = news.to_string();
                if self.last.get(&(run, what)) != Some(&news) {
                    self.waiting.push(Event::default().event(what).data(&news));
                    self.last.insert((run, what), news);
                }
            }
        }
        if self.waiting.is_empty() {
            self.waiting.push(Event::default().comment("nothing new"));
        }
        Some(self)
    }
}
