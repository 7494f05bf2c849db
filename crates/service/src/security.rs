//! Who may speak to a process (`docs/decisions.md`, D18): roles prove themselves by tokens (`tokens`), and
//! every door asks for that in the same way.
//!
//! A request comes through when the role that it proves is one of those that its method or page names. gRPC
//! is asked by a layer in front of every service (`guard`), HTTP by one in front of every page (`pages`); both
//! come to [`Security::admit`], before anything of a message is read. Who is refused is counted, said once a
//! minute for each address, and changes nothing.

mod guard;
mod pages;
mod refusals;
mod tokens;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use guard::{Callers, Credentials, Guard, Guarded};
pub use pages::serve_pages;
pub(crate) use pages::{PageDoor, serve};
pub use tokens::{ROLES, Secret, TokenProblem, role_file};

use crate::metrics::{self, Reason};
use refusals::RefusalLog;
use tokens::TokenFile;

/// How often files are looked at for changes.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Who may speak to a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SecurityConfig {
    /// The run's secret, which all its roles share (`sluice token new FILE`), or a file with what one role needs
    /// of it (`sluice token roles FILE DIR`). Every request then has to prove a role that may make it. The file is
    /// read again when it changes.
    pub token_file: Option<PathBuf>,
    /// Listen on addresses that other machines reach although nobody is asked who they are.
    pub insecure: bool,
}

/// A port that a process listens on: the key that names it, and its address.
pub type Door = (&'static str, SocketAddr);

impl SecurityConfig {
    /// Whether those who come are asked who they are.
    fn asks(&self) -> bool {
        self.token_file.is_some()
    }

    /// The doors that stand open to strangers, each as one sentence that names its key and what to do.
    pub fn problems(&self, doors: &[Door]) -> Vec<String> {
        if self.asks() || self.insecure {
            return Vec::new();
        }
        let open = doors.iter().filter(|(_, address)| !address.ip().to_canonical().is_loopback());
        open.map(|(key, address)| {
            format!(
                "{key} is {address}, which other machines reach, and nobody who comes would be asked who they are: name \
                 the run's token file as token_file in [security] of the recipe or [service.security] of this process \
                 (`sluice token new FILE` writes one), or say insecure = true there, in a network that nobody else is in"
            )
        })
        .collect()
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    address: Option<SocketAddr>,
}

impl Peer {
    pub(crate) fn new(address: Option<SocketAddr>) -> Self {
        Self { address }
    }

    /// Its address.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    fn ip(self) -> Option<IpAddr> {
        self.address.map(|address| address.ip())
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "no token: this run asks for one (`authorization: Bearer TOKEN`); name its token file as security.token_file"
    )]
    NoToken,
    #[error("the token is none of this run's: name the run's own token file as security.token_file")]
    WrongToken,
    #[error("the token is that of role {role}, which may not do this")]
    OtherRole { role: &'static str },
}

impl Refusal {
    fn reason(self) -> Reason {
        match self {
            Self::NoToken => Reason::NoToken,
            Self::WrongToken => Reason::WrongToken,
            Self::OtherRole { .. } => Reason::OtherRole,
        }
    }

    /// Whether another role might do it.
    pub(crate) fn is_of_role(self) -> bool {
        matches!(self, Self::OtherRole { .. })
    }
}

/// What a process asks of those who come, and proves where it goes. A cheap clone.
#[derive(Clone)]
pub struct Security(Arc<Inner>);

struct Inner {
    role: &'static str,
    tokens: Option<RwLock<TokenFile>>,
    refusals: Mutex<RefusalLog>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").field("role", &self.0.role).finish_non_exhaustive()
    }
}

impl Security {
    /// What `config` asks for, for a process of this role.
    ///
    /// # Errors
    /// Names the file that cannot be used, and what to do.
    pub fn load(role: &'static str, config: &SecurityConfig) -> Result<Self, TokenProblem> {
        let tokens = config.token_file.as_ref().map(|path| TokenFile::read(path)).transpose()?;
        Ok(Self::of(role, tokens))
    }

    /// Nobody is asked, and nothing is proved.
    pub fn open() -> Self {
        Self::of("nobody", None)
    }

    fn of(role: &'static str, tokens: Option<TokenFile>) -> Self {
        let inner = Inner { role, tokens: tokens.map(RwLock::new), refusals: Mutex::default() };
        Self(Arc::new(inner))
    }

    /// Whether those who come are asked who they are.
    pub fn asks(&self) -> bool {
        self.0.tokens.is_some()
    }

    /// The token that proves a role, where this process knows it.
    pub fn token_of(&self, role: &str) -> Option<String> {
        let tokens = self.0.tokens.as_ref()?.read().unwrap_or_else(PoisonError::into_inner);
        tokens.tokens().of(role).map(str::to_owned)
    }

    /// The token that proves this process's own role.
    pub(crate) fn own_token(&self) -> Option<String> {
        self.token_of(self.0.role)
    }

    /// Whether a request may be made by whoever shows this token. A refusal is counted and said here.
    pub(crate) fn admit(&self, callers: &[&str], token: Option<&str>, peer: Peer) -> Result<(), Refusal> {
        let Err(refusal) = self.check(callers, token) else { return Ok(()) };
        self.refused(refusal.reason(), &refusal, peer);
        Err(refusal)
    }

    /// Counts that somebody was turned away where that is said elsewhere.
    pub(crate) fn turned_away(&self, reason: Reason) {
        metrics::refused(reason);
    }

    /// Counts that somebody was refused, and says it unless that was done a moment ago.
    pub(crate) fn refused(&self, reason: Reason, why: &dyn fmt::Display, peer: Peer) {
        metrics::refused(reason);
        let told = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner).note(peer.ip());
        if let Some(before) = told {
            let address = peer.ip().map_or_else(|| "somewhere".to_owned(), |ip| ip.to_string());
            tracing::warn!(%address, %why, untold = before, "refused");
        }
    }

    fn check(&self, callers: &[&str], token: Option<&str>) -> Result<(), Refusal> {
        let Some(tokens) = &self.0.tokens else { return Ok(()) };
        let token = token.ok_or(Refusal::NoToken)?;
        let found = tokens.read().unwrap_or_else(PoisonError::into_inner).tokens().role_of(token);
        match found {
            None => Err(Refusal::WrongToken),
            Some(role) if callers.contains(&role) => Ok(()),
            Some(role) => Err(Refusal::OtherRole { role }),
        }
    }

    /// Reads the files again whenever they have changed, until `done`. What cannot be read is said, and what
    /// was known before counts on.
    pub(crate) async fn keep_fresh(self, done: CancellationToken) -> anyhow::Result<()> {
        let mut failed = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(RELOAD_INTERVAL) => {}
                () = done.cancelled() => return Ok(()),
            }
            let refreshed = self.refresh();
            match &refreshed {
                Ok(true) => tracing::info!("the token file has changed: the new tokens count"),
                Err(error) if !failed => {
                    tracing::error!(%error, "the token file cannot be used any more: the tokens from before count on");
                }
                Ok(false) | Err(_) => {}
            }
            failed = refreshed.is_err();
        }
    }

    /// Reads the files again if they have changed; whether they had.
    ///
    /// # Errors
    /// When they cannot be used; what was known before counts on.
    pub fn refresh(&self) -> Result<bool, TokenProblem> {
        let Some(tokens) = &self.0.tokens else { return Ok(false) };
        let newer = tokens.read().unwrap_or_else(PoisonError::into_inner).newer()?;
        let changed = newer.is_some();
        if let Some(newer) = newer {
            *tokens.write().unwrap_or_else(PoisonError::into_inner) = newer;
        }
        Ok(changed)
    }
}
