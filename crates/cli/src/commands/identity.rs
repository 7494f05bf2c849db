//! What a command shows of itself to the processes of a run, and asks of those who come to it.

use std::net::SocketAddr;
use std::path::PathBuf;

use service::{BadInput, Security, SecurityConfig};

/// Where the run asks who comes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Identity {
    /// The run's token file, where it has one, or the file of a role that may do this.
    #[arg(long, value_name = "FILE", env = "SLUICE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// The run's folder of certificates, where it has one.
    #[arg(long, value_name = "DIR", env = "SLUICE_CERTIFICATES")]
    certificates: Option<PathBuf>,
}

impl Identity {
    /// What it comes to, for this role.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn security(&self, role: &'static str) -> anyhow::Result<Security> {
        let Self { token_file, certificates } = self.clone();
        load(role, &SecurityConfig { token_file, certificates, ..SecurityConfig::default() })
    }
}

/// Who may come to a command that listens.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Admission {
    #[command(flatten)]
    identity: Identity,
    /// Listen on an address that other machines reach although nobody is asked who they are.
    #[arg(long)]
    insecure: bool,
}

impl Admission {
    /// What it comes to for a process of this role that listens at an address.
    ///
    /// # Errors
    /// When others reach the address and nobody would be asked, or a file cannot be used.
    pub(crate) fn security(&self, role: &'static str, address: SocketAddr) -> anyhow::Result<Security> {
        let security = self.identity.security(role)?;
        if security.asks() || self.insecure || address.ip().to_canonical().is_loopback() {
            return Ok(security);
        }
        let host = address.ip();
        let problem = format!(
            "--host is {host}, which other machines reach, and nobody who comes would be asked who they are: give \
             --token-file FILE (`sluice token new FILE` writes one), or --insecure in a network that nobody else is in"
        );
        Err(BadInput(problem).into())
    }
}

/// What a configuration comes to, for this role.
///
/// # Errors
/// When a file cannot be used.
pub(crate) fn load(role: &'static str, config: &SecurityConfig) -> anyhow::Result<Security> {
    Ok(Security::load(role, config).map_err(|problem| BadInput(problem.to_string()))?)
}
