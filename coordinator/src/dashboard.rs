//! The dashboard: one static page over `/status.json` and `/steps.json`, and `/debug/stall`, which says who
//! waits for whom.

use service::axum::http::StatusCode;
use service::axum::response::Html;
use service::axum::routing::get;
use service::axum::{Json, Router};

use crate::inbox::Handle;
use crate::server_loop::View;

/// The pages.
pub(crate) fn pages(view: View, handle: Handle) -> Router {
    let View { status, steps } = view;
    let status = move || {
        let status = status.borrow().as_ref().clone();
        async move { Json(status) }
    };
    let steps = move || {
        let steps = steps.borrow().as_ref().clone();
        async move { Json(steps) }
    };
    let stall = move || {
        let handle = handle.clone();
        async move { handle.stall().await.map(Json).map_err(|ended| (StatusCode::GONE, ended.to_string())) }
    };
    let page = Router::new().route("/", get(|| async { Html(include_str!("dashboard.html")) }));
    page.route("/status.json", get(status)).route("/steps.json", get(steps)).route("/debug/stall", get(stall))
}
