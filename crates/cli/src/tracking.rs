//! The curves of a run in the trackers that people have: TensorBoard's event files, written here, and
//! Weights & Biases, MLflow and trackio through their own packages (`bridge.py`).
//!
//! What is tracked are the numbers of `steps.jsonl` under the names of docs/steps.md, with `/` for `.`, which
//! trackers group by. A thread of its own follows the file, so that a tracker that is slow, fails or hangs is
//! no concern of the run: it is said, and the run goes on. How far each tracker is stands in the ring's
//! `tracking.json`, so that a run that goes on goes on there too.
//!
//! | waits for                     | bound                | then                                            |
//! |-------------------------------|----------------------|-------------------------------------------------|
//! | the thread, for new steps     | [`FOLLOW_INTERVAL`]  | it looks again                                  |
//! | the thread, for a tracker     | one minute           | that one is given up; the others go on          |
//! | the run's end, for the thread | `finish_timeout`     | it is said; the trackers end when the run does  |

mod bridge;
mod figures;
mod tensorboard;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use dashboard::{Continuity, Follower, told_keys};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::say::say;
use bridge::{Bridge, Interpreter};
use tensorboard::{EventFile, Scalars};

/// How often new steps are looked for.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Where a run's curves go beside its own files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TrackingConfig {
    /// The trackers.
    pub(crate) to: Vec<Tracker>,
    /// The project (W&B, trackio) or experiment (MLflow).
    pub(crate) project: String,
    /// The run's name there; that of the ring's run where not given.
    pub(crate) name: Option<String>,
    /// Where event files and what trackers keep on disk go; `tracking` in the run's output folder where not
    /// given.
    pub(crate) folder: Option<PathBuf>,
    /// Nothing goes over the network: W&B writes for `wandb sync`, MLflow into a database and trackio into a
    /// project, both in `folder`. Otherwise their own settings count (`WANDB_API_KEY`, `MLFLOW_TRACKING_URI`,
    /// ...).
    pub(crate) offline: bool,
    /// The Python with the trackers' packages.
    pub(crate) interpreter: PathBuf,
    /// A folder with their packages, where the interpreter has none (`pip install --target`).
    pub(crate) packages: PathBuf,
    /// How long the end of a run waits for the trackers.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub(crate) finish_timeout: Duration,
}

impl Default for TrackingConfig {
    fn default() -> Self {
        Self {
            to: Vec::new(),
            project: "sluice".to_owned(),
            name: None,
            folder: None,
            offline: false,
            interpreter: PathBuf::from("python3"),
            packages: PathBuf::from(".deps/trackers"),
            // A last upload over a slow line.
            finish_timeout: Duration::from_secs(120),
        }
    }
}

/// A tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tracker {
    /// Event files, as TensorBoard reads them; needs no package.
    Tensorboard,
    /// Weights & Biases.
    Wandb,
    /// MLflow.
    Mlflow,
    /// trackio.
    Trackio,
}

impl Tracker {
    /// The name of its package.
    fn name(self) -> &'static str {
        match self {
            Self::Tensorboard => "tensorboard",
            Self::Wandb => "wandb",
            Self::Mlflow => "mlflow",
            Self::Trackio => "trackio",
        }
    }
}

impl TrackingConfig {
    /// What keeps it from being used here.
    pub(crate) fn problems(&self) -> Vec<String> {
        let interpreter = self.python();
        let mut problems = Vec::new();
        for (at, tracker) in self.to.iter().enumerate() {
            if self.to[..at].contains(tracker) {
                problems.push(format!("tracking.to names {} twice", tracker.name()));
            }
            let lacks =
                (*tracker != Tracker::Tensorboard).then(|| interpreter.lacks(tracker.name())).flatten();
            problems.extend(lacks.map(|lack| {
                let name = tracker.name();
                format!(
                    "tracking.to names {name}, but {lack}: pip install {name}, or set tracking.interpreter"
                )
            }));
        }
        problems
    }

    fn python(&self) -> Interpreter {
        Interpreter { program: self.interpreter.clone(), packages: self.packages.clone() }
    }
}

/// What is tracked: the ring of a run.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    /// The ring's folder.
    pub(crate) ring: PathBuf,
    /// The run's name, where `[tracking]` has none.
    pub(crate) run: String,
}

/// Tracking under way.
#[derive(Debug)]
pub(crate) struct Tracking {
    over: SyncSender<()>,
    ended: Receiver<()>,
    finish_timeout: Duration,
}

impl Tracking {
    /// Begins, or goes on where it was; none where no tracker is named.
    ///
    /// # Errors
    /// When there is no thread for it. What trackers lack is said, and the run goes on.
    pub(crate) fn start(config: &TrackingConfig, tracked: &Tracked) -> anyhow::Result<Option<Self>> {
        if config.to.is_empty() {
            return Ok(None);
        }
        let (over, is_over) = sync_channel(1);
        let (end, ended) = sync_channel(1);
        let mut sinks = Sinks::open(config, tracked);
        let finish_timeout = config.finish_timeout;
        let follow = move || {
            sinks.follow(&is_over);
            sinks.finish(finish_timeout);
            // Nobody waits any more where the run was quicker.
            let _ = end.send(());
        };
        std::thread::Builder::new()
            .name("tracking".to_owned())
            .spawn(follow)
            .context("start the tracking")?;
        Ok(Some(Self { over, ended, finish_timeout }))
    }

    /// The run is over: hands on what is left.
    pub(crate) fn finish(self) {
        // It looks for this when it has handed on what there is.
        let _ = self.over.try_send(());
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(self.finish_timeout) {
            say(&format!("tracking is not done after {:?} and is left behind", self.finish_timeout));
        }
    }
}

/// Hands all steps of a ring to trackers.
///
/// # Errors
/// When one of them does not take them.
pub(crate) fn track(config: &TrackingConfig, tracked: &Tracked) -> anyhow::Result<()> {
    let mut sinks = Sinks::open(config, tracked);
    sinks.hand_on();
    sinks.finish(config.finish_timeout);
    if sinks.failed > 0 {
        anyhow::bail!("{} of {} trackers failed", sinks.failed, config.to.len());
    }
    Ok(())
}

/// How far a tracker is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Place {
    /// The run's name of its own there: a run that is made anew is another one.
    id: String,
    /// The last line that it has: its batch and its time, together unique.
    last: Option<(u64, u64)>,
}

/// One tracker that takes steps.
#[derive(Debug)]
struct Sink {
    tracker: Tracker,
    place: Place,
    /// Whether the lines that it has are past.
    is_new: bool,
    kind: SinkKind,
}

#[derive(Debug)]
enum SinkKind {
    Events(EventFile),
    Package(Bridge),
}

/// All trackers of a ring.
#[derive(Debug)]
struct Sinks {
    sinks: Vec<Sink>,
    steps: Follower,
    /// Where the places are remembered.
    places: PathBuf,
    failed: usize,
}

/// A step of the file.
struct Step {
    batch: u64,
    /// Milliseconds since 1970.
    time: u64,
    values: Vec<(String, f64)>,
}

impl Sinks {
    fn open(config: &TrackingConfig, tracked: &Tracked) -> Self {
        let places = tracked.ring.join("tracking.json");
        let known = std::fs::read(&places).unwrap_or_default();
        let known: BTreeMap<String, Place> = serde_json::from_slice(&known).unwrap_or_default();
        let steps = Follower::new(tracked.ring.join("steps.jsonl"));
        let mut all = Self { sinks: Vec::new(), steps, places, failed: 0 };
        let (mut steps, mut seen) = (Follower::new(tracked.ring.join("steps.jsonl")), Vec::new());
        // What cannot be read is said when it is handed on.
        let _ = steps.read(|_, line| seen.extend(step(line).map(|step| (step.batch, step.time))));
        for tracker in &config.to {
            let mut place = known.get(tracker.name()).cloned().unwrap_or_default();
            if place.id.is_empty() || place.last.is_some_and(|last| !seen.contains(&last)) {
                place = Place { id: service::unique_name("run"), last: None };
            }
            match open(config, tracked, *tracker, &place) {
                Ok(kind) => {
                    let is_new = place.last.is_none();
                    all.sinks.push(Sink { tracker: *tracker, place, is_new, kind });
                }
                Err(error) => all.failed(*tracker, &error),
            }
        }
        all
    }

    /// Hands on what comes until the run is over.
    fn follow(&mut self, is_over: &Receiver<()>) {
        loop {
            let waited = is_over.recv_timeout(FOLLOW_INTERVAL);
            self.hand_on();
            if !matches!(waited, Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
    }

    /// Hands on what is new.
    fn hand_on(&mut self) {
        let (mut steps, mut began_anew) = (Vec::new(), false);
        let read = self.steps.read(|continuity, line| {
            began_anew |= continuity == Continuity::BeganAnew;
            steps.extend(step(line));
        });
        if let Err(error) = read {
            say(&format!("tracking cannot read {}: {error}", self.steps.path().display()));
        }
        if began_anew {
            // A coordinator that mends its file takes half a line away; lines that are there stay.
            self.sinks.iter_mut().for_each(|sink| sink.is_new = sink.place.last.is_none());
        }
        let mut lost = Vec::new();
        for (at, sink) in self.sinks.iter_mut().enumerate() {
            if let Err(error) = sink.take(&steps) {
                lost.push((at, error));
            }
        }
        for (at, error) in lost.into_iter().rev() {
            let sink = self.sinks.remove(at);
            self.failed(sink.tracker, &error);
        }
        if !steps.is_empty() {
            self.remember();
        }
    }

    fn remember(&self) {
        let mut places: BTreeMap<String, Place> = std::fs::read(&self.places)
            .ok()
            .and_then(|known| serde_json::from_slice(&known).ok())
            .unwrap_or_default();
        places.extend(self.sinks.iter().map(|sink| (sink.tracker.name().to_owned(), sink.place.clone())));
        let partial = self.places.with_extension("partial");
        let text = serde_json::to_string(&places).unwrap_or_default();
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &self.places));
        if let Err(error) = written {
            say(&format!("tracking cannot write {}: {error}", self.places.display()));
        }
    }

    fn finish(&mut self, timeout: Duration) {
        for mut sink in std::mem::take(&mut self.sinks) {
            let finished = match &mut sink.kind {
                SinkKind::Events(events) => events.flush().context("write the event file"),
                SinkKind::Package(bridge) => bridge.finish(timeout),
            };
            if let Err(error) = finished {
                self.failed(sink.tracker, &error);
            }
        }
    }

    fn failed(&mut self, tracker: Tracker, error: &anyhow::Error) {
        self.failed += 1;
        let name = tracker.name();
        say(&format!(
            "tracking by {name} has ended: {error:#}; `sluice track RUN --to {name}` hands on what it lacks"
        ));
    }
}

fn open(
    config: &TrackingConfig,
    tracked: &Tracked,
    tracker: Tracker,
    place: &Place,
) -> anyhow::Result<SinkKind> {
    let output = tracked.ring.parent().unwrap_or(Path::new("."));
    let folder = config.folder.clone().unwrap_or_else(|| output.join("tracking"));
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    let name = config.name.clone().unwrap_or_else(|| tracked.run.clone());
    let told = told_keys(&tracked.ring);
    if tracker == Tracker::Tensorboard {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let folder = folder.join("tensorboard").join(&name);
        let mut events = EventFile::create(&folder, place.last.map(|(batch, _)| batch), now)
            .with_context(|| format!("write into {}", folder.display()))?;
        let rows = told.iter().map(|(key, value)| format!("| {key} | {} |\n", value.replace('|', "\\|")));
        let table = format!("| key | value |\n|---|---|\n{}", rows.collect::<String>());
        events.markdown("configuration", &table, now).context("write the event file")?;
        events.flush().context("write the event file")?;
        return Ok(SinkKind::Events(events));
    }
    let told = json!({
        "tracker": tracker.name(), "project": config.project, "name": name, "id": place.id, "folder": folder,
        "offline": config.offline, "config": told,
    });
    std::fs::create_dir_all(tracked.ring.join("logs"))?;
    let log = tracked.ring.join(format!("logs/tracking-{}.log", tracker.name()));
    Ok(SinkKind::Package(Bridge::start(&config.python(), &log, &told)?))
}

impl Sink {
    /// Hands on those steps that the tracker has not.
    fn take(&mut self, steps: &[Step]) -> anyhow::Result<()> {
        for step in steps {
            if !self.is_new {
                self.is_new = self.place.last == Some((step.batch, step.time));
                continue;
            }
            match &mut self.kind {
                SinkKind::Events(events) => {
                    let wall_time = step.time as f64 / 1000.0;
                    events.scalars(&Scalars { step: step.batch, wall_time, values: &step.values })?;
                }
                SinkKind::Package(bridge) => {
                    let values: serde_json::Map<String, Value> =
                        step.values.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
                    bridge.tell(&json!({"step": step.batch, "time": step.time, "values": values}))?;
                }
            }
            self.place.last = Some((step.batch, step.time));
        }
        if let SinkKind::Events(events) = &mut self.kind {
            events.flush()?;
        }
        Ok(())
    }
}

/// A line of the file; none where it is no step.
fn step(line: &[u8]) -> Option<Step> {
    let step: Value = serde_json::from_slice(line).ok()?;
    let (batch, time) = (step["batch"].as_u64()?, step["time"].as_u64()?);
    Some(Step { batch, time, values: figures::numbers_of(&step) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(batch: u64) -> String {
        format!("{{\"batch\": {batch}, \"time\": {}, \"score_mean\": 0.5}}\n", 1000 * batch)
    }

    fn tracked(folder: &Path) -> (TrackingConfig, Tracked, PathBuf) {
        let ring = folder.join("ring");
        std::fs::create_dir_all(&ring).unwrap();
        let config = TrackingConfig { to: vec![Tracker::Tensorboard], ..TrackingConfig::default() };
        (config, Tracked { ring: ring.clone(), run: "r".to_owned() }, ring)
    }

    fn event_bytes(folder: &Path) -> u64 {
        let files = std::fs::read_dir(folder.join("tracking/tensorboard/r")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }

    /// Where the tracker of a ring is.
    fn place(ring: &Path, key: &str) -> Value {
        let text = std::fs::read(ring.join("tracking.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["tensorboard"][key].clone()
    }

    #[test]
    fn a_run_that_goes_on_goes_on_where_its_tracker_is() {
        let folder = tempfile::tempdir().unwrap();
        let (config, tracked, ring) = tracked(folder.path());
        std::fs::write(ring.join("steps.jsonl"), line(1) + &line(2)).unwrap();
        track(&config, &tracked).unwrap();
        let (first, id) = (event_bytes(folder.path()), place(&ring, "id"));
        assert_eq!(place(&ring, "last"), json!([2, 2000]));
        std::fs::write(ring.join("steps.jsonl"), line(1) + &line(2) + &line(3)).unwrap();
        track(&config, &tracked).unwrap();
        let (second, head) = (event_bytes(folder.path()) - first, event_head());
        assert_eq!(second - head, (first - head) / 2, "one step and a head");
        assert_eq!((place(&ring, "last"), place(&ring, "id")), (json!([3, 3000]), id.clone()));
        // A folder that was moved aside and made anew is another run.
        std::fs::write(ring.join("steps.jsonl"), line(1).replace("1000", "9000")).unwrap();
        track(&config, &tracked).unwrap();
        assert_eq!(place(&ring, "last"), json!([1, 9000]));
        assert_ne!(place(&ring, "id"), id);
    }

    /// Bytes of a file without steps and with an empty configuration.
    fn event_head() -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let (config, tracked, _) = tracked(folder.path());
        track(&config, &tracked).unwrap();
        event_bytes(folder.path())
    }

    #[test]
    fn a_tracker_that_fails_is_said_and_the_others_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let (mut config, tracked, ring) = tracked(folder.path());
        std::fs::write(ring.join("steps.jsonl"), line(1)).unwrap();
        config.to.push(Tracker::Wandb);
        config.interpreter = PathBuf::from("/nowhere/python3");
        assert!(
            config.problems()[0].contains("tracking.to names wandb, but /nowhere/python3 cannot be started")
        );
        let error = track(&config, &tracked).unwrap_err().to_string();
        assert_eq!(error, "1 of 2 trackers failed");
        assert!(event_bytes(folder.path()) > event_head());
    }
}
