//! One run: where its things lie, and how it is now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use service::security::Secret;

use crate::fetch::{agent, get};
use crate::measurements::{MeasurementTable, Measurements};
use crate::steps::Steps;

/// How long a coordinator of another process may take to say how its run is.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// Says how a run is, as the coordinator's `Status` in JSON.
pub(crate) type StatusSource = Arc<dyn Fn() -> Value + Send + Sync>;

/// Why a folder cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no run.
    #[error("{} is no run: it has neither ring/steps.jsonl nor ring/config; name the output folder of `sluice run`", .0.display())]
    NoRun(PathBuf),
}

/// A run that can be looked at.
pub struct Run {
    name: String,
    /// Its ring folder, where it has one.
    folder: Option<PathBuf>,
    status: StatusSource,
    steps: Steps,
    measurements: Mutex<Measurements>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("name", &self.name).field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Run {
    /// The run of this process, whose ring folder is where its files lie.
    pub fn here(
        name: String,
        folder: Option<PathBuf>,
        steps: Steps,
        status: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Self {
        let metrics = folder.clone().unwrap_or_default().join("metrics.jsonl");
        let status = Arc::new(move || json!({"live": true, "status": status()}));
        Self { name, folder, status, steps, measurements: Mutex::new(Measurements::of_file(metrics)) }
    }

    /// A run by its output folder, whoever made it and whether or not it still runs.
    ///
    /// # Errors
    /// When the folder holds no run.
    pub fn of_folder(output: &Path) -> Result<Self, Error> {
        let folder = ring_folders(output).into_iter().next().unwrap_or_else(|| output.to_owned());
        if !folder.join("steps.jsonl").is_file() && !folder.join("config").is_dir() {
            return Err(Error::NoRun(output.to_owned()));
        }
        let looked_at = folder.clone();
        let status = Arc::new(move || status_of(&looked_at));
        let name = name_of(&std::fs::canonicalize(&folder).unwrap_or_else(|_| folder.clone()));
        let steps = Steps::of_file(folder.join("steps.jsonl"));
        let measurements = Mutex::new(Measurements::of_file(folder.join("metrics.jsonl")));
        Ok(Self { name, folder: Some(folder), status, steps, measurements })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ring's folder.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// A file of its ring folder.
    pub(crate) fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(name))
    }

    /// `{"live": bool, "status": ..}`; the status is null when nobody knows it.
    pub fn status(&self) -> Value {
        (self.status)()
    }

    pub(crate) fn steps(&self) -> &Steps {
        &self.steps
    }

    pub(crate) fn with_measurements<T>(&self, look: impl FnOnce(&MeasurementTable) -> T) -> T {
        look(self.measurements.lock().unwrap_or_else(PoisonError::into_inner).table())
    }

    /// When it began, in seconds since 1970, as far as its files tell.
    pub(crate) fn began(&self) -> f64 {
        let first_step = self.steps.with(|steps| steps.times().first().copied());
        let first_look = self.with_measurements(MeasurementTable::began);
        first_step.into_iter().chain(first_look).reduce(f64::min).unwrap_or(0.0)
    }
}

/// The folders of the rings in a run's output, by name: `ring`, and `ring-NAME` of each further one. What was
/// moved aside is none.
pub fn ring_folders(output: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(output).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_ring(path)).collect();
    folders.sort();
    folders
}

fn is_ring(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (name == "ring" || name.starts_with("ring-")) && !name.contains(".until-") && path.is_dir()
}

/// A run is named by its output folder, and a further ring of it by its own folder too.
fn name_of(ring: &Path) -> String {
    let own = ring.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = ring.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    match own.as_str() {
        "ring" => output,
        further if further.starts_with("ring-") => format!("{output}/{own}"),
        _ => own,
    }
}

/// What the coordinator says of a run in this folder, or said last.
fn status_of(folder: &Path) -> Value {
    let addresses = address_files(folder).remove("coordinator");
    if let Some(address) = addresses.as_ref().and_then(|addresses| addresses.get("metrics")) {
        let token = observer_token(folder);
        let said = get(&agent(STATUS_TIMEOUT), &format!("http://{address}/status.json"), token.as_deref());
        let said = said.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        if let Some(status) = said.filter(|status| is_of(folder, status)) {
            return json!({"live": true, "status": status});
        }
    }
    let written = std::fs::read(folder.join("status.json")).unwrap_or_default();
    json!({"live": false, "status": serde_json::from_slice::<Value>(&written).ok()})
}

/// What the coordinator of a run was told, where its ring folder has that.
fn coordinator_config(folder: &Path) -> toml::Table {
    let text = std::fs::read_to_string(folder.join("config/coordinator.toml")).unwrap_or_default();
    text.parse().unwrap_or_default()
}

/// What a run that asks for tokens is shown, where this user may read its secret: that which its
/// configuration names, or which its job on a cluster made.
fn observer_token(folder: &Path) -> Option<String> {
    let config = coordinator_config(folder);
    let security = config.get("service").and_then(|service| service.get("security"));
    let named = security.and_then(|security| security.get("token_file")).and_then(toml::Value::as_str);
    let file = named.map_or_else(|| folder.join("token"), PathBuf::from);
    Some(Secret::read(&file).ok()?.token_of("observer"))
}

/// Whether a status is of the run in this folder, and not of another one that was given the same port.
fn is_of(folder: &Path, status: &Value) -> bool {
    let config = coordinator_config(folder);
    let name = config.get("run").and_then(toml::Value::as_str);
    status.get("run").is_some_and(|run| name.is_none() || run.as_str() == name)
}

/// The addresses of each process of a ring: `process.address.json` says on which it listens, and on a cluster
/// `targets/process.json` where its metrics are found from other nodes.
pub(crate) fn address_files(folder: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = target_files(&folder.join("targets"));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = file.strip_suffix(".address.json") else { continue };
        let text = std::fs::read(entry.path()).unwrap_or_default();
        if let Ok(addresses) = serde_json::from_slice(&text) {
            found.insert(process.to_owned(), addresses);
        }
    }
    found
}

/// A file of those that Prometheus discovers targets by.
#[derive(Debug, serde::Deserialize)]
struct TargetGroup {
    targets: Vec<String>,
}

fn target_files(folder: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = file.strip_suffix(".json") else { continue };
        let text = std::fs::read(entry.path()).unwrap_or_default();
        let groups: Vec<TargetGroup> = serde_json::from_slice(&text).unwrap_or_default();
        if let Some(target) = groups.into_iter().flat_map(|group| group.targets).next() {
            found.insert(process.to_owned(), BTreeMap::from([("metrics".to_owned(), target)]));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_on_a_cluster_are_found_where_prometheus_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("targets")).unwrap();
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        write("targets/learner-0.json", r#"[{"targets": ["n1:9464"], "labels": {"run": "r"}}]"#);
        write("targets/actor-88-0.json", "[{");
        write("reward-server-0.address.json", r#"{"metrics": "127.0.0.1:1"}"#);
        let found = address_files(folder.path());
        assert_eq!(found.keys().collect::<Vec<_>>(), ["learner-0", "reward-server-0"]);
        assert_eq!(found["learner-0"]["metrics"], "n1:9464");
    }

    #[test]
    fn a_run_that_asks_for_tokens_is_shown_the_one_of_its_own_secret() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(observer_token(folder.path()), None);
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        write("token", &"ab".repeat(32));
        let of_job = observer_token(folder.path()).unwrap();
        write("other", &"cd".repeat(32));
        std::fs::create_dir(folder.path().join("config")).unwrap();
        let named = format!("[service.security]\ntoken_file = {:?}\n", folder.path().join("other"));
        write("config/coordinator.toml", &named);
        let of_config = observer_token(folder.path()).unwrap();
        assert!(of_job != of_config && !of_job.contains("abab"), "{of_job} {of_config}");
    }

    #[test]
    fn a_folder_that_is_no_run_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refused = Run::of_folder(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("is no run") && refused.contains("sluice run"), "{refused}");
    }

    #[test]
    fn a_run_that_is_over_is_as_it_was_last() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("my-run");
        std::fs::create_dir_all(output.join("ring")).unwrap();
        std::fs::write(output.join("ring/steps.jsonl"), "{\"batch\":1,\"time\":5000}\n").unwrap();
        let run = Run::of_folder(&output).unwrap();
        assert_eq!(run.name(), "my-run");
        assert_eq!(run.status(), json!({"live": false, "status": null}));
        assert_eq!(run.began(), 5.0);
        std::fs::write(output.join("ring/status.json"), "{\"trained\": 1}").unwrap();
        // An address that nobody answers at any more.
        let nobody = "{\"metrics\": \"127.0.0.1:1\"}";
        std::fs::write(output.join("ring/coordinator.address.json"), nobody).unwrap();
        assert_eq!(run.status(), json!({"live": false, "status": {"trained": 1}}));
        let by_ring_folder = Run::of_folder(&output.join("ring")).unwrap();
        assert_eq!(by_ring_folder.name(), "my-run");
        for further in ["ring-grpo/config", "ring-old.until-2026/config", "ringing"] {
            std::fs::create_dir_all(output.join(further)).unwrap();
        }
        assert_eq!(ring_folders(&output), [output.join("ring"), output.join("ring-grpo")]);
        assert_eq!(Run::of_folder(&output.join("ring-grpo")).unwrap().name(), "my-run/ring-grpo");
    }
}
