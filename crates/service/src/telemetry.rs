//! Logging to standard error.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// JSON lines that begin with whose they are, so that those of all processes can lie in one place.
struct Signed {
    /// `"role":"actor",`, and so on.
    fields: String,
    json: Format<Json>,
}

impl Signed {
    fn new(identity: &[(&str, String)]) -> Self {
        let fields = identity.iter().map(|(key, value)| format!("\"{key}\":{},", serde_json::json!(value)));
        Self {
            fields: fields.collect(),
            json: tracing_subscriber::fmt::format().json().with_current_span(true),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Signed
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.json.format_event(context, Writer::new(&mut line), event)?;
        write!(writer, "{{{}{}", self.fields, line.strip_prefix('{').unwrap_or(&line))
    }
}

/// Starts logging for this process. A second call changes nothing. Lines of JSON begin with `identity`, whose
/// keys are plain words.
///
/// # Errors
/// When the filter cannot be parsed.
pub fn init_logging(filter: &str, format: LogFormat, identity: &[(&str, String)]) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    // Where nobody reads standard error any more there is nobody to be told either.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    // An already installed subscriber (a test's) stays.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).with_target(false).finish().try_init(),
        LogFormat::Json => builder.json().event_format(Signed::new(identity)).finish().try_init(),
    };
    // A panic is an error in the log like any other; the task or thread it ends is reported by its owner.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "panic");
    }));
    Ok(())
}
