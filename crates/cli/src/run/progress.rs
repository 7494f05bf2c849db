//! What a person sees while the ring runs: a bar on a terminal, lines elsewhere.
//!
//! Without a terminal there is a line for a twentieth of the batches, and one every
//! [`Heartbeat::INTERVAL`] whatever happens, which says what the run waits for. The first failure of each
//! kind is said when it happens, and so is every evaluation on held-out prompts.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use coordinator::Status;
use coordinator::state::Phase;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;
use types::{PolicyVersion, Timestamp};

use super::figures;
use super::process::ProcessId;
use super::summary;
use super::supervisor::{Addresses, RingEnd};
use crate::heartbeat::Heartbeat;
use crate::recipe::RingFolder;
use crate::say::say;

/// Lines that a run prints where there is no terminal, beside those of [`Heartbeat::INTERVAL`].
const LINE_COUNT: u64 = 20;
/// What is said while nothing is known.
const NO_ANSWER: &str = "the coordinator does not answer";
/// How often the bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// The progress of a ring.
#[derive(Debug)]
pub(crate) struct RingProgress {
    bar: ProgressBar,
    /// Whether lines take the place of the bar.
    plain: bool,
    /// Batches after which there is a line.
    every: u64,
    /// The last batch that a line was printed for, and when the last line was printed.
    shown: u64,
    shown_at: Instant,
    is_leased: bool,
    /// The version that was evaluated last.
    evaluated: Option<PolicyVersion>,
    /// Kinds of failures that were said: role and reason.
    failures: BTreeSet<[String; 2]>,
    /// Changes from then on were not said yet.
    changed_at: Timestamp,
    last: Option<Status>,
    started: Instant,
}

impl RingProgress {
    /// A progress at its beginning, of a run of so many batches that was started then.
    pub(crate) fn new(batches: u64, began: Timestamp) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(batches) };
        let style = ProgressStyle::with_template("{bar:30.cyan} {pos}/{len} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(DRAW_INTERVAL);
        let started = Instant::now();
        Self {
            bar,
            plain,
            every: (batches / LINE_COUNT).max(1),
            shown: 0,
            shown_at: started,
            is_leased: false,
            evaluated: None,
            failures: BTreeSet::new(),
            changed_at: began,
            last: None,
            started,
        }
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

    /// Shows how things are; none while the coordinator does not answer.
    pub(crate) fn show(&mut self, status: Option<Status>) {
        let Some(status) = status else {
            self.bar.set_message(NO_ANSWER);
            if self.is_line_due() {
                self.shown_at = Instant::now();
                say(NO_ANSWER);
            }
            return;
        };
        if !self.is_leased && status.account.issued > 0 {
            self.is_leased = true;
            self.line(&format!("first prompts leased after {:.1} s", self.started.elapsed().as_secs_f64()));
        }
        self.show_new_changes(&status);
        self.show_new_failures(&status);
        self.show_new_evaluation(&status);
        self.bar.set_length(status.batches);
        self.bar.set_position(status.trained);
        let figures = figures_of(&status);
        self.bar.set_message(format!("{figures} · {}", waiting(&status)));
        if let Some(text) = self.line_of(&status, &figures) {
            (self.shown, self.shown_at) = (status.trained, Instant::now());
            say(&text);
        }
        self.last = Some(status);
    }

    /// The line that is due where there is no terminal: of a batch, or of what the run waits for.
    fn line_of(&self, status: &Status, figures: &str) -> Option<String> {
        let text = format!("batch {}/{}: {figures}", status.trained, status.batches);
        let is_new = status.trained > self.shown;
        let is_told = status.trained >= self.shown + self.every || status.trained == status.batches;
        match (self.plain, is_new && is_told, self.is_line_due()) {
            (false, ..) | (true, false, false) => None,
            (true, true, _) => Some(text),
            (true, false, true) => Some(format!("{text} · {}", waiting(status))),
        }
    }

    fn is_line_due(&self) -> bool {
        self.plain && self.shown_at.elapsed() >= Heartbeat::INTERVAL
    }

    fn show_new_failures(&mut self, status: &Status) {
        for failure in &status.failures {
            if self.failures.insert([failure.role.clone(), failure.reason.clone()]) {
                self.line(&figures::of_failure(failure));
            }
        }
    }

    /// What of the configuration is another since this start.
    fn show_new_changes(&mut self, status: &Status) {
        let new = status.plan_changes.iter().filter(|change| change.time >= self.changed_at);
        for change in new {
            self.line(&format!("changed: {}", change.change));
        }
        if let Some(last) = status.plan_changes.last() {
            self.changed_at = self.changed_at.max(Timestamp(last.time.0 + 1));
        }
    }

    fn show_new_evaluation(&mut self, status: &Status) {
        let Some(evaluation) = &status.last_evaluation else { return };
        if self.evaluated != Some(evaluation.version) {
            self.evaluated = Some(evaluation.version);
            self.line(&figures::of_evaluation(evaluation));
        }
    }

    /// Somebody pressed Ctrl-C.
    pub(crate) fn interrupted(&self) {
        self.line(
            "draining: what is begun is finished and a checkpoint written; Ctrl-C again leaves at once",
        );
    }

    /// The ring in this folder has ended, or could not go on.
    pub(crate) fn finish(&self, ended: Option<RingEnd>, restarts: u64, folder: &RingFolder) {
        self.bar.finish_and_clear();
        if let Some(table) = summary::table_of(&folder.steps()) {
            say(&format!("\n{table}"));
        }
        if let Some(status) = &self.last {
            let losses = figures::of_losses(&status.account);
            let losses = if losses.is_empty() { String::new() } else { format!("; {losses}") };
            say(&format!("{} of {} batches trained{losses}", status.trained, status.batches));
            if let Some(evaluation) = &status.last_evaluation {
                say(&figures::of_evaluation(evaluation));
            }
            for failure in &status.failures {
                say(&figures::of_failure(failure));
            }
        }
        if restarts > 0 {
            say(&format!("{restarts} restart(s) of a role"));
        }
        if ended == Some(RingEnd::Aborted) {
            say("left at once; `--resume` goes on from the newest checkpoint");
        }
        if let Some(output) = folder.root().parent() {
            say(&format!("`sluice dashboard {}` shows its curves, samples and logs", output.display()));
        }
    }
}

/// How a run is doing, in one line.
pub(crate) fn line_of(status: &Status) -> String {
    let Status { trained, batches, .. } = status;
    format!("batch {trained}/{batches}: {} · {}", figures_of(status), waiting(status))
}

/// Everything that is known in numbers.
fn figures_of(status: &Status) -> String {
    let step = status.last_step.as_ref().map(figures::of_step).unwrap_or_default();
    let parts = [step, figures::of_pace(status), figures::of_losses(&status.account)];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn waiting(status: &Status) -> String {
    let phase =
        if status.phase == Phase::Running { String::new() } else { format!(" · {:?}", status.phase) };
    format!("waits for {}{phase}", status.waiting_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn without_a_terminal_there_is_a_line_at_least_every_half_minute() {
        let mut progress = RingProgress { plain: true, ..RingProgress::new(500, Timestamp(0)) };
        assert!(!progress.is_line_due());
        for _ in 0..3 {
            tokio::time::advance(Heartbeat::INTERVAL).await;
            assert!(progress.is_line_due());
            // Also while nobody answers.
            progress.show(None);
            assert!(!progress.is_line_due());
            assert_eq!(progress.bar.message(), NO_ANSWER, "a terminal says it too");
        }
        assert!(Heartbeat::INTERVAL <= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_due_says_what_the_run_waits_for() {
        let mut status: Status = serde_json::from_value(serde_json::json!({
            "run": "x", "phase": "running", "waiting_for": "scores of 3 responses", "version": 2, "batches": 500,
            "trained": 2, "checkpointed": 0, "ready_prompts": 0, "batch_prompts": 8, "open_prompts": 1,
            "tokens_per_second": 0.0, "eta_seconds": null, "actors": [], "reward_servers": [], "learner": null,
            "account": {"issued": 0, "in_flight": 0, "endings": {}, "unaccounted": 0, "late_results": 0},
            "last_step": null
        }))
        .unwrap();
        let mut progress = RingProgress { plain: true, ..RingProgress::new(500, Timestamp(0)) };
        assert_eq!(progress.line_of(&status, "score 1"), None);
        tokio::time::advance(Heartbeat::INTERVAL).await;
        let due = progress.line_of(&status, "score 1").unwrap();
        assert_eq!(due, "batch 2/500: score 1 · waits for scores of 3 responses");
        progress.show(Some(status.clone()));
        assert_eq!(progress.line_of(&status, "score 1"), None, "it was said");
        // A batch of those that are said has a line of its own, due or not, and no waiting.
        status.trained = 27;
        assert_eq!(progress.line_of(&status, "score 1").unwrap(), "batch 27/500: score 1");
        progress.plain = false;
        assert_eq!(progress.line_of(&status, "score 1"), None, "a terminal has its bar");
    }
}
