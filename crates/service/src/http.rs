//! `/metrics`, `/health` and `/ready`, and whatever pages a role adds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::pulse::Pulse;
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
pub(crate) fn pages(
    prometheus: PrometheusHandle,
    readiness: Readiness,
    pulse: Pulse,
    of_role: Router,
) -> Router {
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
    let health = move || {
        let overdue = pulse.overdue();
        async move {
            match overdue {
                None => (StatusCode::OK, "alive\n".to_owned()),
                Some((silent, allowed)) => {
                    let (silent, allowed) = (silent.as_secs(), allowed.as_secs());
                    let said = format!(
                        "stuck: its work has not gone round for {silent} s, {allowed} s are allowed\n"
                    );
                    (StatusCode::SERVICE_UNAVAILABLE, said)
                }
            }
        }
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tower_service::Service as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_whose_work_is_stuck_is_not_healthy() {
        let (prometheus, pulse) = (PrometheusBuilder::new().build_recorder().handle(), Pulse::default());
        let mut pages = pages(prometheus, Readiness::default(), pulse.clone(), Router::new());
        for (beats, passed, healthy) in
            [(false, 100, true), (true, 59, true), (false, 2, false), (true, 1, true)]
        {
            if beats {
                pulse.beat(Duration::from_secs(60));
            }
            tokio::time::advance(Duration::from_secs(passed)).await;
            let answer = pages.call(Request::get("/health").body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status() == StatusCode::OK, healthy, "{}", answer.status());
            let said = to_bytes(answer.into_body(), 1024).await.unwrap();
            assert_eq!(
                said.starts_with(b"stuck: its work has not gone round for 61 s"),
                !healthy,
                "{said:?}"
            );
        }
    }
}
