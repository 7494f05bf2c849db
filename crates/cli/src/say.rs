//! Words for people beside a command's results. What is under way goes on when nobody listens any more:
//! `sluice run RECIPE 2>&1 | head -1` trains to its end.

use std::io::Write as _;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When this process last said something; when it was first asked, before it has.
static LAST: LazyLock<Mutex<Instant>> = LazyLock::new(|| Mutex::new(Instant::now()));

/// Says a line on standard error.
pub(crate) fn say(text: &str) {
    write(&mut last(), text);
}

/// Says a line on standard error if nothing was said for this long. Returns how long to wait before it could
/// be due again.
pub(crate) fn say_after_silence(interval: Duration, line: impl FnOnce() -> String) -> Duration {
    let mut last = last();
    let silence = last.elapsed();
    if silence >= interval {
        write(&mut last, &line());
        return interval;
    }
    interval - silence
}

/// How long nothing was said.
pub(crate) fn silence() -> Duration {
    last().elapsed()
}

/// Says a line on standard output.
pub(crate) fn say_result(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A time for people.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 90.0 { format!("{seconds:.1} s") } else { format!("{:.1} min", seconds / 60.0) }
}

fn write(last: &mut Instant, text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
    *last = Instant::now();
}

fn last() -> MutexGuard<'static, Instant> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
}
