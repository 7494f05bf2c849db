//! Wall time. Everything here runs on ordinary threads and waits for real processes, so there is no clock to
//! pause.

#[expect(
    clippy::disallowed_types,
    reason = "OS threads wait for real processes; no async runtime, nothing to pause"
)]
pub(crate) type Moment = std::time::Instant;

/// Milliseconds from now until `until` for `poll`, rounded up so that a wait never ends too early; 0 once it
/// has passed.
pub(crate) fn poll_millis(until: Moment) -> u16 {
    let left = until.saturating_duration_since(Moment::now());
    u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX)
}
