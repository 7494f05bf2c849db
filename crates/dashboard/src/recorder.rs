//! Writes down what a ring is like while it runs: `metrics.jsonl` and `status.json` of its folder.
//!
//! Processes are found by their `*.address.json` files and asked for their `/metrics`. A run is looked at
//! every two seconds at first and less often the longer it runs, so that the file grows with the logarithm
//! of its length and not with its length.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde_json::Value;
use service::{CancellationToken, Security};

use crate::exposition::Page;
use crate::fetch::{agent, get};
use crate::measurements::Measurement;
use crate::run::{StatusSource, address_files};

/// Time between two looks at the beginning.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(2);
/// The interval is the run's age divided by this: a curve of a long run has some thousand points.
const LOOKS_PER_AGE: f64 = 1000.0;
/// How long a process may take to answer.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most processes that are asked; the first by name.
const PROCESSES_LIMIT: usize = 64;

/// Looks at a ring and writes.
pub struct Recorder {
    folder: PathBuf,
    status: StatusSource,
    security: Security,
    agent: ureq::Agent,
    /// The last values of each process, of which a line says only what is different.
    last: BTreeMap<String, BTreeMap<String, f64>>,
    described: BTreeSet<String>,
    /// When the first line was written, in seconds since 1970.
    began: Option<f64>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder of the ring in a folder, who shows its processes an observer's token; `status` says how the
    /// run is.
    pub fn new(
        folder: PathBuf,
        security: Security,
        status: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Self {
        Self {
            folder,
            security,
            status: std::sync::Arc::new(status),
            agent: agent(SCRAPE_TIMEOUT),
            last: BTreeMap::new(),
            described: BTreeSet::new(),
            began: None,
        }
    }

    /// Records until the token is cancelled, then the status once more. What cannot be written is said and
    /// tried again: a run does not end because nobody can watch it.
    ///
    /// # Errors
    /// When a look panics.
    pub async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let mut is_told = false;
        loop {
            let ended = token.is_cancelled();
            let looked = tokio::task::spawn_blocking(move || {
                let looked = self.look(ended);
                (self, looked)
            });
            let (this, looked) = looked.await?;
            self = this;
            if let Err(error) = &looked
                && !is_told
            {
                tracing::warn!(error = format!("{error:#}"), "what the page shows cannot be written down");
            }
            is_told = looked.is_err();
            if ended {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval()) => {}
                () = token.cancelled() => {}
            }
        }
    }

    fn interval(&self) -> Duration {
        let age = self.began.map_or(0.0, |began| (now() - began).max(0.0));
        SHORTEST_INTERVAL.max(Duration::from_secs_f64(age / LOOKS_PER_AGE))
    }

    /// Asks everybody and writes down what is new. At the end nobody is asked any more.
    fn look(&mut self, ended: bool) -> anyhow::Result<()> {
        let status = serde_json::to_vec(&(self.status)())?;
        write_whole(&self.folder.join("status.json"), &status)?;
        if ended {
            return Ok(());
        }
        let path = self.folder.join("metrics.jsonl");
        if self.began.is_none() {
            self.began = first_time(&path).or(Some(now()));
        }
        let mut lines = Vec::new();
        let token = self.security.token_of("observer");
        for (process, addresses) in address_files(&self.folder).into_iter().take(PROCESSES_LIMIT) {
            let Some(address) = addresses.get("metrics") else { continue };
            // One that does not answer has ended, or is about to begin.
            if let Some(text) = get(&self.agent, &format!("http://{address}/metrics"), token.as_deref()) {
                let line = self.difference(process, Page::parse(&text));
                serde_json::to_writer(&mut lines, &line)?;
                lines.push(b'\n');
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(&lines));
        written.with_context(|| format!("write {}", path.display()))
    }

    /// What of a page has changed.
    fn difference(&mut self, process: String, page: Page) -> Measurement {
        let mut descriptions = BTreeMap::new();
        for (name, what) in page.descriptions {
            if self.described.insert(name.clone()) {
                descriptions.insert(name, (what.kind, what.meaning));
            }
        }
        let last = self.last.entry(process.clone()).or_default();
        let mut values = page.values;
        values.retain(|name, value| last.insert(name.clone(), *value) != Some(*value));
        Measurement { time: now(), process, values, descriptions }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// When the first line of a file was written.
fn first_time(path: &Path) -> Option<f64> {
    let mut line = String::new();
    BufReader::new(File::open(path).ok()?).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok().map(|first: Measurement| first.time)
}

/// Writes a file in one step, so that a reader never sees half of it.
fn write_whole(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path));
    written.with_context(|| format!("write {}", path.display()))
}
