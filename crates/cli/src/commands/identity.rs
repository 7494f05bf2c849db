//! What a command shows of itself to the processes of a run, and asks of those who come to it.

use std::path::PathBuf;

use service::{BadInput, Security, SecurityConfig};

/// Where the run asks who comes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Identity {
    /// The run's token file, where it has one, or the file of a role that may do this.
    #[arg(long, value_name = "FILE", env = "SLUICE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl Identity {
    /// What it comes to, for this role.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn security(&self, role: &'static str) -> anyhow::Result<Security> {
        load(role, &SecurityConfig { token_file: self.token_file.clone(), ..SecurityConfig::default() })
    }
}

/// What a configuration comes to, for this role.
///
/// # Errors
/// When a file cannot be used.
pub(crate) fn load(role: &'static str, config: &SecurityConfig) -> anyhow::Result<Security> {
    Ok(Security::load(role, config).map_err(|problem| BadInput(problem.to_string()))?)
}
