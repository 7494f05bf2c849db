//! The Prometheus recorder, and what every process says about itself.

mod definition;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

pub use definition::{Label, Metric, describe};

/// Why somebody who comes is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    NoToken,
    WrongToken,
    OtherRole,
    NoCertificate,
    Handshake,
    Silent,
    OtherProtocol,
    TooMany,
}

impl Reason {
    const ALL: [Self; 8] = [
        Self::NoToken,
        Self::WrongToken,
        Self::OtherRole,
        Self::NoCertificate,
        Self::Handshake,
        Self::Silent,
        Self::OtherProtocol,
        Self::TooMany,
    ];
    const NAMES: [&str; 8] = [
        "no_token",
        "wrong_token",
        "other_role",
        "no_certificate",
        "handshake",
        "silent",
        "other_protocol",
        "too_many",
    ];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// How a member's stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The member has closed it, or given it up (CANCEL of HTTP/2, which h2 tells as an end).
    Closed,
    /// Its connection is gone.
    Lost,
    /// A message was larger than what travels.
    TooLarge,
    /// What came was no message, or no HTTP/2.
    Unreadable,
    /// It ended in another way before a hello, or there was none in time.
    NoHello,
}

impl StreamEnd {
    const ALL: [Self; 5] = [Self::Closed, Self::Lost, Self::TooLarge, Self::Unreadable, Self::NoHello];
    const NAMES: [&str; 5] = ["closed", "lost", "too_large", "unreadable", "no_hello"];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// What every process reports about itself.
pub const PROCESS_METRICS: &[Metric] = &[
    Metric::counter(
        "rlhf_refused_total",
        "Requests and connections that were refused at a port before anything of them was read.",
    )
    .by(&[Label::one_of("reason", &Reason::NAMES)]),
    Metric::counter(
        "rlhf_streams_ended_total",
        "Streams of members by how they ended: closed or given up by the member, lost with their connection, with a message \
         that was too large or unreadable, or before a hello.",
    )
    .by(&[Label::one_of("reason", &StreamEnd::NAMES)]),
    Metric::gauge("rlhf_build_info", "Constant 1; the labels name the role and the build.").by(&[
        Label::one_of("role", &["coordinator", "reward-server", "learner", "actor"]),
        Label::described("version", "the release"),
        Label::described("commit", "as `SLUICE_COMMIT` said when it was built, else `unknown`"),
    ]),
    Metric::gauge("process_resident_memory_bytes", "Resident memory of this process."),
    Metric::counter(
        "process_cpu_seconds_total",
        "Processor time that this process has used, in user and kernel mode, to whole seconds.",
    ),
    Metric::gauge("process_open_fds", "Open file descriptors of this process."),
    Metric::gauge("process_threads", "Threads of this process."),
    Metric::gauge("process_start_time_seconds", "When this process was started, seconds since 1970."),
];

/// Upper bounds of histogram buckets for durations, from a tenth of a millisecond to ten minutes.
const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
];
/// For counts of tokens.
const TOKENS_BUCKETS: &[f64] =
    &[1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0];
/// For policy versions.
const VERSIONS_BUCKETS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0];

/// Ticks in which Linux tells processor time to user space, on every architecture.
const TICKS_PER_SECOND: u64 = 100;

/// Installs the process's recorder.
///
/// # Errors
/// When another recorder is installed.
pub(crate) fn install(role: &'static str) -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_tokens".into()), TOKENS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_versions".into()), VERSIONS_BUCKETS)?
        .install_recorder()?;
    describe(PROCESS_METRICS);
    build_info(role);
    begin_counters();
    Ok(handle)
}

/// Counters are there before what they count: what appears with it has no rate.
#[expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]
fn begin_counters() {
    for reason in Reason::ALL {
        metrics::counter!("rlhf_refused_total", "reason" => reason.name()).absolute(0);
    }
    for end in StreamEnd::ALL {
        metrics::counter!("rlhf_streams_ended_total", "reason" => end.name()).absolute(0);
    }
}

/// A member's stream has ended.
#[expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]
pub(crate) fn stream_ended(end: StreamEnd) {
    metrics::counter!("rlhf_streams_ended_total", "reason" => end.name()).increment(1);
}

/// Somebody was refused at a port.
#[expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]
pub(crate) fn refused(reason: Reason) {
    metrics::counter!("rlhf_refused_total", "reason" => reason.name()).increment(1);
}

#[expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]
fn build_info(role: &'static str) {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), option_env!("SLUICE_COMMIT").unwrap_or("unknown"));
    metrics::gauge!("rlhf_build_info", "role" => role, "version" => version, "commit" => commit).set(1.0);
}

/// Reads the process's own figures, just before they are rendered.
#[expect(clippy::disallowed_macros, reason = "this is the crate's metrics.rs")]
pub(crate) fn observe_process() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kibibytes) = status_field(&status, "VmRSS:") {
        metrics::gauge!("process_resident_memory_bytes").set(kibibytes * 1024.0);
    }
    if let Some(threads) = status_field(&status, "Threads:") {
        metrics::gauge!("process_threads").set(threads);
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(ticks) = cpu_ticks(&stat) {
        metrics::counter!("process_cpu_seconds_total").absolute(ticks / TICKS_PER_SECOND);
    }
    let system = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    if let Some(started) = start_time(&stat, &system) {
        metrics::gauge!("process_start_time_seconds").set(started);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds").set(descriptors.count() as f64);
    }
}

/// Ticks of user and kernel mode in `/proc/self/stat`. The name in parentheses may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// When a process was started, seconds since 1970: ticks after boot in `/proc/self/stat`, and the time of
/// boot in `/proc/stat`.
fn start_time(stat: &str, system: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot: u64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot as f64 + ticks as f64 / TICKS_PER_SECOND as f64)
}

/// The number behind a name in `/proc/self/status`.
fn status_field(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "42 (a (b) 7) R 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20";
        assert_eq!(cpu_ticks(stat), Some(400));
        assert_eq!(cpu_ticks("42 (cut off"), None);
    }

    #[test]
    fn a_process_started_so_many_ticks_after_boot() {
        let stat = "42 (a (b) 7) R 1 2 3 4 5 6 7 8 9 10 250 150 0 0 20 0 4 0 12345 1 2";
        assert_eq!(start_time(stat, "cpu 1 2\nbtime 1700000000\nprocesses 3\n"), Some(1_700_000_123.45));
        assert_eq!(start_time(stat, "cpu 1 2\n"), None);
        assert_eq!(start_time("42 (cut off) R 1", "btime 1\n"), None);
    }
}
