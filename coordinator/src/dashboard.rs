//! The dashboard: one static page over `/status.json` and `/steps.json`.

use service::axum::response::Html;
use service::axum::routing::get;
use service::axum::{Json, Router};

use crate::server_loop::View;

/// The pages.
pub(crate) fn pages(view: View) -> Router {
    let View { status, steps } = view;
    let status = move || {
        let status = status.borrow().as_ref().clone();
        async move { Json(status) }
    };
    let steps = move || {
        let steps = steps.borrow().as_ref().clone();
        async move { Json(steps) }
    };
    let page = Router::new().route("/", get(|| async { Html(include_str!("dashboard.html")) }));
    page.route("/status.json", get(status)).route("/steps.json", get(steps))
}
