//! Which process a stream comes from, in words for people: where two have one name, somebody has to find
//! both.

use std::fmt;
use std::net::SocketAddr;

use tonic::Request;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::name::host_name;
use crate::security::Peer;

/// The key of the metadata.
const KEY: &str = "sluice-process";
/// Longest name of a host that is believed.
const HOST_BYTES: usize = 64;

/// Where a stream comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The process and its host, as it says.
    process: Option<(u32, String)>,
    /// Where its connection comes from.
    address: Option<SocketAddr>,
}

impl Origin {
    /// That of a request.
    pub fn of<T>(request: &Request<T>) -> Self {
        let peer = request.extensions().get::<Peer>();
        Self { process: read(request.metadata()), address: peer.and_then(|peer| peer.address()) }
    }

    /// Says in a stream's metadata which process this is.
    pub(crate) fn write(metadata: &mut MetadataMap) {
        let text = format!("{} {}", std::process::id(), host_name(HOST_BYTES));
        if let Ok(value) = MetadataValue::try_from(text) {
            metadata.insert(KEY, value);
        }
    }
}

fn read(metadata: &MetadataMap) -> Option<(u32, String)> {
    let (process, host) = metadata.get(KEY)?.to_str().ok()?.split_once(' ')?;
    let is_plain = host.len() <= HOST_BYTES && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    Some((process.parse().ok()?, host.to_owned())).filter(|_| is_plain && !host.is_empty())
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.process, self.address) {
            (Some((process, host)), Some(address)) => write!(f, "process {process} on {host} ({address})"),
            (Some((process, host)), None) => write!(f, "process {process} on {host}"),
            (None, Some(address)) => write!(f, "a process at {address}"),
            (None, None) => f.write_str("a process that does not say where it is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_as_it_was_written_and_nothing_else_is_believed() {
        let mut request = Request::new(());
        assert_eq!(Origin::of(&request).to_string(), "a process that does not say where it is");
        Origin::write(request.metadata_mut());
        let own = Origin::of(&request);
        assert!(own.to_string().starts_with(&format!("process {} on ", std::process::id())), "{own}");
        request.extensions_mut().insert(Peer::new(Some("10.0.0.3:51234".parse().unwrap())));
        let own = Origin::of(&request);
        assert!(own.to_string().ends_with(" (10.0.0.3:51234)"), "{own}");
        let long = format!("7 {}", "x".repeat(HOST_BYTES + 1));
        for strange in ["seven host", "7", "7 ", "7 a; stop all of them", long.as_str()] {
            request.metadata_mut().insert(KEY, strange.parse().unwrap());
            assert_eq!(Origin::of(&request).to_string(), "a process at 10.0.0.3:51234", "{strange}");
        }
    }
}
