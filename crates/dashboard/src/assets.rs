//! The page's files, which are part of the binary.

use service::axum::Router;
use service::axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use service::axum::routing::get;

/// Scripts and styles come from the page's own address and nothing else does: what a response says cannot
/// load or run anything, even where it should be taken for HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page: its path, its type, its text.
type File = (&'static str, &'static str, &'static str);

const FILES: &[File] = &[
    ("/", HTML, include_str!("../page/index.html")),
    ("/page/style.css", CSS, include_str!("../page/style.css")),
    ("/page/app.js", SCRIPT, include_str!("../page/app.js")),
    ("/page/api.js", SCRIPT, include_str!("../page/api.js")),
    ("/page/dom.js", SCRIPT, include_str!("../page/dom.js")),
    ("/page/format.js", SCRIPT, include_str!("../page/format.js")),
    ("/page/chart.js", SCRIPT, include_str!("../page/chart.js")),
    ("/page/charts.js", SCRIPT, include_str!("../page/charts.js")),
    ("/page/overview.js", SCRIPT, include_str!("../page/overview.js")),
    ("/page/ring.js", SCRIPT, include_str!("../page/ring.js")),
    ("/page/filter.js", SCRIPT, include_str!("../page/filter.js")),
    ("/page/samples.js", SCRIPT, include_str!("../page/samples.js")),
    ("/page/members.js", SCRIPT, include_str!("../page/members.js")),
    ("/page/events.js", SCRIPT, include_str!("../page/events.js")),
    ("/page/processes.js", SCRIPT, include_str!("../page/processes.js")),
    ("/page/runs.js", SCRIPT, include_str!("../page/runs.js")),
    ("/page/soon.js", SCRIPT, include_str!("../page/soon.js")),
    ("/page/vendor/uPlot.iife.min.js", SCRIPT, include_str!("../page/vendor/uPlot.iife.min.js")),
    ("/page/vendor/uPlot.min.css", CSS, include_str!("../page/vendor/uPlot.min.css")),
];

/// The routes of the files.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for (path, kind, text) in FILES {
        let headers = [
            (CONTENT_TYPE, *kind),
            (CACHE_CONTROL, "no-cache"),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        router = router.route(path, get(move || async move { (headers, *text) }));
    }
    router
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The files of `page/` and what the binary holds of them are the same.
    #[test]
    fn every_file_of_the_page_is_served() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let mut there = BTreeSet::new();
        for folder in ["", "vendor"] {
            for entry in std::fs::read_dir(page.join(folder)).unwrap() {
                let name = entry.unwrap().file_name().to_string_lossy().into_owned();
                if name.ends_with(".js") || name.ends_with(".css") {
                    there.insert(format!("/page/{folder}{}{name}", if folder.is_empty() { "" } else { "/" }));
                }
            }
        }
        let served = FILES.iter().map(|(path, ..)| (*path).to_owned()).filter(|path| path != "/");
        assert_eq!(served.collect::<BTreeSet<_>>(), there);
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere_and_nothing_is_inline() {
        for (path, _, text) in FILES.iter().filter(|(path, ..)| !path.contains("vendor")) {
            for mark in ["http://", "https://", "innerHTML", "onclick=", "style=\"", "eval("] {
                let text = text.replace("http://www.w3.org/2000/svg", "");
                assert!(!text.contains(mark), "{path} holds {mark}");
            }
        }
    }
}
