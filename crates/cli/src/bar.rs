//! Progress on stderr: a bar where a person looks on, a line now and then where a file does.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::heartbeat::Heartbeat;

/// How long nothing is said before a line says how far it is, where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

/// How often the bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// The progress of one thing that takes a while.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    what: String,
    /// What the next line says, without a terminal.
    line: Arc<Mutex<String>>,
    _heartbeat: Heartbeat,
}

impl Bar {
    /// A bar over `total` steps; 0 when their number is not known.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let is_plain = !std::io::stderr().is_terminal();
        let bar = if is_plain { ProgressBar::hidden() } else { ProgressBar::new(total) };
        bar.set_style(style(total));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(DRAW_INTERVAL);
        bar.set_length(total);
        let line = Arc::new(Mutex::new(format!("  {what} begins")));
        let said = Arc::clone(&line);
        let heartbeat = Heartbeat::new(LINE_INTERVAL, move || {
            said.lock().unwrap_or_else(PoisonError::into_inner).clone()
        });
        Self { bar, what: what.to_owned(), line, _heartbeat: heartbeat }
    }

    /// How far it is, with the figures that matter.
    pub(crate) fn at(&self, done: u64, total: u64, message: &str) {
        if self.bar.length() != Some(total) {
            self.bar.set_style(style(total));
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        self.bar.set_message(message.to_owned());
        let of_total = if total > 0 { format!("/{total}") } else { String::new() };
        let line = format!("  {} {done}{of_total} {message}", self.what);
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// How a bar over so many steps looks: without a share where their number is not known.
fn style(total: u64) -> ProgressStyle {
    let template =
        if total > 0 { "  {prefix} {bar:30.cyan} {pos}/{len} {msg}" } else { "  {prefix} {pos} {msg}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
