//! `/metrics`, `/health` and `/ready`, and whatever pages a role adds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::security::{self, PROBES, PageDoor, Security};

/// Who sees metrics and pages; whether the process lives and can work everybody does, as probes ask.
const DOOR: PageDoor = PageDoor { callers: &["observer", "operator"], open: PROBES };

/// Whether the process can do its work now. Not ready is not dead: it may be loading weights.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says whether the process is ready.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The pages that every process has, and those of its role.
pub(crate) fn pages(prometheus: PrometheusHandle, readiness: Readiness, of_role: Router) -> Router {
    let metrics = move || {
        let prometheus = prometheus.clone();
        async move {
            crate::metrics::observe_process();
            prometheus.run_upkeep();
            ([("content-type", "text/plain; version=0.0.4")], prometheus.render())
        }
    };
    let ready = move || {
        let ready = readiness.get();
        async move {
            if ready { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
        }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(|| async { "alive\n".into_response() }))
        .route("/ready", get(ready))
        .merge(of_role)
}

/// Serves pages to who may see them until `token` is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    pages: Router,
    token: CancellationToken,
    security: Security,
) -> anyhow::Result<()> {
    Ok(security::serve(&security, listener, pages, DOOR, token.cancelled_owned()).await?)
}
