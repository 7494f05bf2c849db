//! Where a process listens, as members tell each other.

use std::fmt;
use std::str::FromStr;

use crate::Invalid;

/// `host:port` of a TCP port; the host is a name or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) if !host.is_empty() => Ok(Self { host: host.to_owned(), port }),
            _ => Err(Invalid::new(format!("address {text:?}"), "must be host:port")),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["127.0.0.1:7700", "learner-0.sluice.svc:29500", "[::1]:80", "h:0"] {
            assert_eq!(good.parse::<HostPort>().unwrap().to_string(), good);
        }
        for bad in ["", "host", "host:", ":80", "host:70000", "host:port", "host:-1"] {
            let error = bad.parse::<HostPort>().unwrap_err().to_string();
            assert!(error.ends_with("must be host:port"), "{error}");
        }
    }
}
