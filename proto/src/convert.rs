//! Conversions between `pb` and domain types: `From` on the way out, validating `TryFrom` on the way in.

mod actor;
pub(crate) mod batch;
mod data;
mod environment;
mod learner;
mod reward;

use std::time::Duration;

use types::RunId;

use crate::ProtocolError;

/// Longest `host:port` that is believed.
const ADDRESS_LIMIT_BYTES: usize = 256;

/// A span of time as it travels: in whole milliseconds, those that do not fit as the most that do.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The name of a member's GPU; none where it is empty.
fn gpu(named: &str) -> Option<String> {
    (!named.is_empty()).then(|| data::plain_text(named))
}

/// Checks that a hello speaks this release's protocol.
fn check_version(theirs: u32) -> Result<(), ProtocolError> {
    let ours = crate::PROTOCOL_VERSION;
    if theirs == ours { Ok(()) } else { Err(ProtocolError::OtherVersion { theirs, ours }) }
}

/// The run named in a hello: empty on the first contact.
fn known_run(run: String) -> Result<Option<RunId>, ProtocolError> {
    if run.is_empty() { Ok(None) } else { Ok(Some(RunId::try_from(run)?)) }
}

/// A `host:port`.
fn address(field: &'static str, address: String) -> Result<String, ProtocolError> {
    let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
    let sound = address.len() <= ADDRESS_LIMIT_BYTES && port.is_some_and(|port| port.parse::<u16>().is_ok());
    if sound { Ok(address) } else { Err(ProtocolError::field(field, "must be host:port")) }
}

/// A measurement: JSON, and with it the journal, has no form for a number that is not finite.
fn finite(field: &'static str, number: f64) -> Result<f64, ProtocolError> {
    if number.is_finite() { Ok(number) } else { Err(ProtocolError::field(field, "is no finite number")) }
}
