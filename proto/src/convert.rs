//! Conversions between `pb` and domain types: `From` on the way out, validating `TryFrom` on the way in.

mod actor;
pub(crate) mod batch;
mod data;
mod learner;
mod reward;

/// A span of time as it travels: in whole milliseconds, those that do not fit as the most that do.
fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
