//! What the coordinator serves over HTTP beside its metrics: the run's page (`crates/dashboard`),
//! `/status.json`, `/worst.json` (the highest scores with failed tests), and `/debug/stall`, which says who
//! waits for whom.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::dashboard::{Dashboard, Field, Recorder, Run, Steps};
use serde_json::Value;
use service::axum::http::StatusCode;
use service::axum::routing::get;
use service::axum::{Json, Router};
use service::config::Schema;
use service::{CancellationToken, Context, OnError};

use crate::inbox::Handle;
use crate::server_loop::View;
use crate::state::StepRecord;

/// What run the pages are of.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) run: String,
    /// What else is shown of the run lies beside it.
    pub(crate) steps_file: Option<PathBuf>,
    /// Cancelled when the run is over.
    pub(crate) done: CancellationToken,
}

/// The pages. The context gets the task that records what they show of the past.
pub(crate) fn pages(shown: Shown, view: View, handle: Handle, context: &mut Context) -> Router {
    let (Shown { run, steps_file, done }, View { status, steps, worst }) = (shown, view);
    let source = move || serde_json::to_value(status.borrow().as_ref()).unwrap_or(Value::Null);
    let folder = steps_file.as_deref().and_then(folder_of);
    if let Some(folder) = &folder {
        let recorder = Recorder::new(folder.clone(), context.security.clone(), source.clone());
        context.tasks.add("recorder", OnError::Log, recorder.run(done.clone()));
    }
    let steps = match steps_file {
        Some(file) => Steps::of_file(file),
        None => Steps::of_source(move || {
            let steps = Arc::clone(&steps.borrow());
            let steps: Vec<&StepRecord> = steps.iter().map(AsRef::as_ref).collect();
            serde_json::to_value(steps).unwrap_or(Value::Null)
        }),
    };
    let shown = Run::here(run, folder, steps, source.clone());
    let stall = move || {
        let handle = handle.clone();
        async move { handle.stall().await.map(Json).map_err(|ended| (StatusCode::GONE, ended.to_string())) }
    };
    let status = move || {
        let status = source();
        async move { Json(status) }
    };
    let worst = move || {
        let worst = worst.borrow().as_ref().clone();
        async move { Json(worst) }
    };
    let page = Dashboard::new(vec![shown], step_fields(), done).routes();
    let page = page.route("/status.json", get(status)).route("/worst.json", get(worst));
    page.route("/debug/stall", get(stall))
}

/// The folder of a file, as others can name it.
fn folder_of(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    Some(if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() })
}

/// What the fields of a line of `steps.jsonl` mean, by their dotted paths.
pub fn step_fields() -> Vec<Field> {
    let sections = Schema::of::<StepRecord>().sections();
    let keys = sections.into_iter().flat_map(|section| section.keys);
    keys.map(|key| Field { path: key.path, kind: key.kind, meaning: key.meaning }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_step_has_a_meaning() {
        let fields = step_fields();
        for path in ["batch", "score_mean", "metrics.kl_to_ref", "reliability.filtered"] {
            assert!(fields.iter().any(|field| field.path == path), "{path} is missing in {fields:?}");
        }
        for field in &fields {
            assert!(!field.meaning.is_empty(), "{} has no doc comment", field.path);
        }
    }

    #[test]
    fn a_file_without_a_folder_lies_here() {
        assert_eq!(folder_of(Path::new("steps.jsonl")), Some(PathBuf::from(".")));
        assert_eq!(folder_of(Path::new("run/ring/steps.jsonl")), Some(PathBuf::from("run/ring")));
    }
}
