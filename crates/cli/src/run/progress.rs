//! What a person sees while the ring runs: a bar and the figures that matter.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use coordinator::Status;
use coordinator::state::{Phase, StepRecord};
use indicatif::{ProgressBar, ProgressStyle};

use super::process::ProcessId;
use super::summary;
use super::supervisor::{Addresses, RingEnd};
use crate::recipe::RingFolder;

/// Lines that a run prints where there is no terminal.
const LINE_COUNT: u64 = 20;
/// How often the bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// The progress of a ring.
#[derive(Debug)]
pub(crate) struct RingProgress {
    bar: ProgressBar,
    /// Whether lines take the place of the bar.
    plain: bool,
    batches: u64,
    shown: u64,
    first_token_after: Option<Duration>,
    started: tokio::time::Instant,
}

impl RingProgress {
    /// A progress at its beginning, of a run of so many batches.
    pub(crate) fn new(batches: u64) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(batches) };
        let style = ProgressStyle::with_template("{bar:30.cyan} {pos}/{len} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(DRAW_INTERVAL);
        let started = tokio::time::Instant::now();
        Self { bar, plain, batches, shown: 0, first_token_after: None, started }
    }

    fn line(&self, text: &str) {
        if self.plain { say(text) } else { self.bar.println(text) }
    }

    /// The processes run, their coordinator at these addresses.
    pub(crate) fn started(&self, coordinator: &Addresses, logs: &Path, processes: &[ProcessId]) {
        let Addresses { page, grpc } = coordinator;
        let logs = logs.display();
        self.line(&format!(
            "watch it at http://{page} or by `sluice top --coordinator {grpc}`; logs in {logs}"
        ));
        let list: Vec<String> = processes.iter().map(ToString::to_string).collect();
        self.line(&format!("started {}", list.join(", ")));
    }

    /// Shows how things are.
    pub(crate) fn show(&mut self, status: &Status) {
        if self.first_token_after.is_none() && status.account.issued > 0 {
            let took = self.started.elapsed();
            self.first_token_after = Some(took);
            self.line(&format!("first prompts leased after {:.1} s", took.as_secs_f64()));
        }
        self.bar.set_length(status.batches);
        self.bar.set_position(status.trained);
        let figures = status.last_step.as_ref().map(figures).unwrap_or_default();
        let pace = format!("{:.0} tokens/s, {} to go", status.tokens_per_second, to_go(status.eta_seconds));
        let waiting =
            if status.phase == Phase::Running { String::new() } else { format!(" · {:?}", status.phase) };
        self.bar.set_message(format!("{figures}{pace} · waits for {}{waiting}", status.waiting_for));
        let every = (self.batches / LINE_COUNT).max(1);
        if self.plain && status.trained >= self.shown + every {
            self.shown = status.trained;
            say(&format!("batch {}/{}: {figures}{pace}", status.trained, status.batches));
        }
    }

    /// Somebody pressed Ctrl-C.
    pub(crate) fn interrupted(&self) {
        self.line(
            "draining: what is begun is finished and a checkpoint written; Ctrl-C again leaves at once",
        );
    }

    /// The ring in this folder has ended.
    pub(crate) fn finish(&self, ended: RingEnd, restarts: u64, folder: &RingFolder) {
        self.bar.finish_and_clear();
        if let Some(table) = summary::table_of(&folder.steps()) {
            say(&format!("\n{table}"));
        }
        let status = std::fs::read(folder.status()).unwrap_or_default();
        if let Ok(status) = serde_json::from_slice(&status) {
            say(&summary::responses(&status));
        }
        if restarts > 0 {
            say(&format!("{restarts} restart(s) of a role"));
        }
        if ended == RingEnd::Aborted {
            say("left at once; `--resume` goes on from the newest checkpoint");
        }
        if let Some(output) = folder.root().parent() {
            say(&format!("`sluice dashboard {}` shows its curves, samples and logs", output.display()));
        }
    }
}

/// Says a line. A run goes on when nobody listens any more.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Score, pass rate, KL, staleness of a step.
fn figures(step: &StepRecord) -> String {
    let outcome =
        step.outcome_mean.map(|outcome| format!("pass@1 {:.1} %, ", 100.0 * outcome)).unwrap_or_default();
    let kl = step.metrics.kl_to_ref.map(|kl| format!("KL {kl:.3}, ")).unwrap_or_default();
    format!(
        "score {:+.3}, {outcome}{kl}staleness {:.1}, {:.2} s/step, ",
        step.score_mean, step.metrics.staleness, step.metrics.step_seconds
    )
}

fn to_go(seconds: Option<f64>) -> String {
    match seconds {
        None => "?".to_owned(),
        Some(seconds) if seconds < 90.0 => format!("{seconds:.0} s"),
        Some(seconds) => format!("{:.0} min", seconds / 60.0),
    }
}
