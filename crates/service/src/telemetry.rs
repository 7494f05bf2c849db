//! Logging to standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Starts logging for this process. A second call changes nothing.
///
/// # Errors
/// When the filter cannot be parsed.
pub fn init_logging(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    // Where nobody reads standard error any more there is nobody to be told either.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // An already installed subscriber (a test's) stays.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).with_target(false).finish().try_init(),
        LogFormat::Json => builder.json().with_current_span(true).finish().try_init(),
    };
    // A panic is an error in the log like any other; the task or thread it ends is reported by its owner.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "panic");
    }));
    Ok(())
}
