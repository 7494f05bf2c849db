//! Who may speak to a process (`docs/decisions.md`, D18): roles prove themselves by tokens (`tokens`), by
//! certificates (`certificates`) or by both, and every door asks for that in the same way.
//!
//! A request comes through when the role that it proves is one of those that its method or page names. gRPC
//! is asked by a layer in front of every service (`guard`), HTTP by one in front of every page (`pages`);
//! both come to [`Security`], before anything of a message is read. Who is refused is counted, said
//! once a minute for each address, and changes nothing.

mod certificates;
mod guard;
mod pages;
mod refusals;
mod stamp;
mod tokens;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use certificates::{CertificateProblem, WEIGHTS, certificate_names};
pub(crate) use certificates::{Dialer, Roles, Tls};
pub use guard::{Callers, Credentials, Guard, Guarded};
pub use pages::serve_pages;
pub(crate) use pages::{PROBES, PageDoor, serve};
pub use tokens::{ROLES, Secret, TokenProblem, role_file};

use crate::metrics::{self, Reason};
use certificates::CertificateFolder;
use refusals::RefusalLog;
use tokens::TokenFile;

/// How often files are looked at for changes.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Who may speak to a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SecurityConfig {
    /// The run's secret, which all its roles share (`sluice token new FILE`), or a file with what one role
    /// needs of it (`sluice token roles FILE DIR`). Every request then has to prove a role that may make it.
    /// The file is read again when it changes.
    pub token_file: Option<PathBuf>,
    /// A folder with `ca.pem`, and with `ROLE.pem` and `ROLE.key` for the role of the process (`sluice certs
    /// DIR` writes one for trials). Calls then go over TLS on which both sides show a certificate, and so do
    /// pages on addresses that other machines reach. The files are read again when they change.
    pub certificates: Option<PathBuf>,
    /// Listen on addresses that other machines reach although nobody is asked who they are.
    pub insecure: bool,
    /// Connections that a port holds from one other machine, and half of what the process can hold at most.
    /// Those of a large node, or of everybody behind one gateway (NAT), come from one address.
    pub connections_per_address: usize,
    /// How long calls may begin on a connection: its peer is then told to open another (GOAWAY), where it is
    /// asked anew who it is. Streams that are open go on.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub connection_age: Duration,
}

impl Default for SecurityConfig {
    fn default() -> Self {
        // A whole node of processes, not a cluster.
        Self {
            token_file: None,
            certificates: None,
            insecure: false,
            connections_per_address: 1_024,
            connection_age: Duration::from_secs(3600),
        }
    }
}

/// A port that a process listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// The key that names it.
    key: &'static str,
    /// Its address: a host, of which a port may be said.
    address: String,
}

impl Door {
    /// The one that this key names, at this address: `host:port`, or a host alone.
    pub fn new(key: &'static str, address: impl fmt::Display) -> Self {
        Self { key, address: address.to_string() }
    }

    /// Whether only this machine reaches it. A name that is not `localhost` may be anybody's.
    fn is_local(&self) -> bool {
        let with_port = self.address.rsplit_once(':').filter(|(host, port)| {
            // The last part of an IPv6 address without brackets is no port.
            port.parse::<u16>().is_ok() && (host.starts_with('[') || !host.contains(':'))
        });
        let host = with_port.map_or(self.address.as_str(), |(host, _)| host).trim_matches(['[', ']']);
        host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.to_canonical().is_loopback())
    }
}

impl SecurityConfig {
    /// Whether those who come are asked who they are.
    fn asks(&self) -> bool {
        self.token_file.is_some() || self.certificates.is_some()
    }

    /// The doors that stand open to strangers, each as one sentence that names its key and what to do.
    pub fn problems(&self, doors: &[Door]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.connections_per_address == 0 {
            problems.push("security.connections_per_address must be at least 1".to_owned());
        }
        if self.connection_age.is_zero() {
            problems.push("security.connection_age must be above 0s".to_owned());
        }
        if self.asks() || self.insecure {
            return problems;
        }
        let open = doors.iter().filter(|door| !door.is_local());
        problems.extend(open.map(|Door { key, address }| {
            format!(
                "{key} is {address}, which other machines reach, and nobody who comes would be asked who they are: name \
                 the run's token file as token_file in [security] of the recipe or [service.security] of this process \
                 (`sluice token new FILE` writes one), or a folder of certificates as certificates (`sluice certs DIR`), or say insecure = true there, in a network that nobody else is in"
            )
        }));
        problems
    }
}

/// Why a process cannot prove or ask what it is told to.
#[derive(Debug, thiserror::Error)]
pub enum SecurityProblem {
    /// The token file cannot be used.
    #[error("token_file: {0}")]
    Token(#[from] TokenProblem),
    /// The certificates cannot be used.
    #[error("certificates: {0}")]
    Certificate(#[from] CertificateProblem),
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    address: Option<SocketAddr>,
    /// The roles of its certificate, where it has shown one.
    roles: Option<Roles>,
}

impl Peer {
    pub(crate) fn new(address: Option<SocketAddr>) -> Self {
        Self { address, roles: None }
    }

    /// The same, who has shown a certificate of these roles.
    pub(crate) fn with_roles(self, roles: Option<Roles>) -> Self {
        Self { roles, ..self }
    }

    fn ip(self) -> Option<IpAddr> {
        self.address.map(|address| address.ip())
    }

    /// Where the connection comes from.
    pub(crate) fn address(self) -> Option<SocketAddr> {
        self.address
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
    #[error("the certificate is of a role that may not do this")]
    OtherCertificate,
    #[error("no certificate: this run asks for one of its own; name its folder as security.certificates")]
    NoCertificate,
}

impl Refusal {
    fn reason(self) -> Reason {
        match self {
            Self::NoToken => Reason::NoToken,
            Self::WrongToken => Reason::WrongToken,
            Self::OtherRole { .. } | Self::OtherCertificate => Reason::OtherRole,
            Self::NoCertificate => Reason::NoCertificate,
        }
    }

    /// Whether another role might do it.
    pub(crate) fn is_of_role(self) -> bool {
        matches!(self, Self::OtherRole { .. } | Self::OtherCertificate)
    }
}

/// What a process asks of those who come, and proves where it goes. A cheap clone.
#[derive(Clone)]
pub struct Security(Arc<Inner>);

/// What a configuration bounds connections by.
#[derive(Debug, Clone, Copy)]
struct ConnectionBounds {
    per_address: usize,
    age: Duration,
}

impl From<&SecurityConfig> for ConnectionBounds {
    fn from(config: &SecurityConfig) -> Self {
        Self { per_address: config.connections_per_address, age: config.connection_age }
    }
}

struct Inner {
    role: &'static str,
    tokens: Option<RwLock<TokenFile>>,
    certificates: Option<RwLock<CertificateFolder>>,
    connections: ConnectionBounds,
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
    pub fn load(role: &'static str, config: &SecurityConfig) -> Result<Self, SecurityProblem> {
        let tokens = config.token_file.as_ref().map(|path| TokenFile::read(path)).transpose()?;
        let certificates = config.certificates.as_ref();
        let certificates = certificates.map(|folder| CertificateFolder::read(folder, role)).transpose()?;
        Ok(Self::of(role, tokens, certificates, config.into()))
    }

    /// Nobody is asked, and nothing is proved.
    pub fn open() -> Self {
        Self::of("nobody", None, None, (&SecurityConfig::default()).into())
    }

    fn of(
        role: &'static str,
        tokens: Option<TokenFile>,
        certificates: Option<CertificateFolder>,
        connections: ConnectionBounds,
    ) -> Self {
        let (tokens, certificates) = (tokens.map(RwLock::new), certificates.map(RwLock::new));
        let refusals = Mutex::default();
        Self(Arc::new(Inner { role, tokens, certificates, connections, refusals }))
    }

    /// Connections that a port holds from one other machine.
    pub(crate) fn connections_per_address(&self) -> usize {
        self.0.connections.per_address
    }

    /// How long calls may begin on a connection.
    pub(crate) fn connection_age(&self) -> Duration {
        self.0.connections.age
    }

    /// Whether those who come are asked who they are.
    pub fn asks(&self) -> bool {
        self.0.tokens.is_some() || self.0.certificates.is_some()
    }

    /// Whether ports speak TLS to other machines.
    pub fn has_certificates(&self) -> bool {
        self.0.certificates.is_some()
    }

    /// Both ends of TLS, where there are certificates.
    pub(crate) fn tls(&self) -> Option<Tls> {
        let certificates = self.0.certificates.as_ref()?.read().unwrap_or_else(PoisonError::into_inner);
        Some(certificates.tls().clone())
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

    /// Whether a call may be made by whoever shows this token, and has shown the peer's certificate: both
    /// count, where both are asked for. A refusal is counted and said here.
    pub(crate) fn admit_call(
        &self,
        callers: &[&str],
        token: Option<&str>,
        peer: Peer,
    ) -> Result<(), Refusal> {
        let certificate =
            if self.0.certificates.is_some() { Self::check_roles(callers, peer) } else { Ok(()) };
        self.settled(certificate.and_then(|()| self.check_token(callers, token)), peer)
    }

    /// The same for a page, for which either will do: browsers have no certificate. `is_tls` says whether one
    /// could have been shown; where not, and nothing else is asked for, the page is this machine's own.
    pub(crate) fn admit_page(
        &self,
        callers: &[&str],
        token: Option<&str>,
        peer: Peer,
        is_tls: bool,
    ) -> Result<(), Refusal> {
        let by_certificate =
            if is_tls { Self::check_roles(callers, peer) } else { Err(Refusal::NoCertificate) };
        let admitted = match (&self.0.tokens, by_certificate) {
            (_, Ok(())) => Ok(()),
            (Some(_), Err(_)) => self.check_token(callers, token),
            (None, Err(_)) if !is_tls => Ok(()),
            (None, Err(refusal)) => Err(refusal),
        };
        self.settled(admitted, peer)
    }

    fn settled(&self, admitted: Result<(), Refusal>, peer: Peer) -> Result<(), Refusal> {
        let Err(refusal) = admitted else { return Ok(()) };
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

    fn check_roles(callers: &[&str], peer: Peer) -> Result<(), Refusal> {
        match peer.roles {
            Some(roles) if roles.any_of(callers) => Ok(()),
            Some(_) => Err(Refusal::OtherCertificate),
            None => Err(Refusal::NoCertificate),
        }
    }

    fn check_token(&self, callers: &[&str], token: Option<&str>) -> Result<(), Refusal> {
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
                Ok(true) => tracing::info!("tokens or certificates have changed: the new ones count"),
                Err(error) if !failed => {
                    tracing::error!(%error, "tokens or certificates cannot be used any more: those from before count on");
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
    fn refresh(&self) -> Result<bool, SecurityProblem> {
        let mut changed = false;
        if let Some(tokens) = &self.0.tokens {
            let newer = tokens.read().unwrap_or_else(PoisonError::into_inner).newer()?;
            changed |= put(tokens, newer);
        }
        if let Some(certificates) = &self.0.certificates {
            let newer = certificates.read().unwrap_or_else(PoisonError::into_inner).newer()?;
            changed |= put(certificates, newer);
        }
        Ok(changed)
    }
}

/// Puts something newer in the place of what is there; whether there was.
fn put<T>(place: &RwLock<T>, newer: Option<T>) -> bool {
    let Some(newer) = newer else { return false };
    *place.write().unwrap_or_else(PoisonError::into_inner) = newer;
    true
}
