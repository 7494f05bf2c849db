//! The certificates of a run: each process has one of its role, signed by the run's own authority, and shows
//! it wherever it goes (mutual TLS 1.3, rustls).
//!
//! A folder holds `ca.pem`, and `ROLE.pem` with `ROLE.key` for a role. Names in certificates are those of
//! roles and not of hosts, because processes come and go on any host: a client knows what it goes to and
//! takes nobody else for it, and a server reads from the client's certificate which role it is.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower_service::Service;

use super::Security;
use super::stamp::Stamp;
use super::tokens::ROLES;

/// What the names in certificates end with. The top-level domain is reserved for private use.
const DOMAIN: &str = "sluice.internal";
/// What weights are pulled from, whichever role serves them.
pub const WEIGHTS: &str = "weights";

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateProblem {
    /// A file cannot be read.
    #[error("cannot read {path}: {problem}; `sluice certs DIR` writes a folder of certificates for trials")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The files do not fit together.
    #[error("the certificates in {folder} cannot be used for role {role}: {problem}")]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// Whose they are.
        role: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// The names of a role's certificate.
pub fn certificate_names(role: &str) -> Vec<String> {
    let serves_weights = ["learner", "actor"].contains(&role);
    let services = serves_weights.then_some(WEIGHTS);
    std::iter::once(role).chain(services).map(name_of).collect()
}

/// The name under which a service is known.
fn name_of(service: &str) -> String {
    format!("{service}.{DOMAIN}")
}

/// The roles that a certificate proves, of those in [`ROLES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Roles(u8);

impl Roles {
    /// Those of a certificate whose signature was checked.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return Self(0) };
        let mut roles = 0;
        for name in parsed.valid_dns_names() {
            let role = name.strip_suffix(DOMAIN).and_then(|name| name.strip_suffix('.'));
            if let Some(place) = role.and_then(|role| ROLES.iter().position(|known| *known == role)) {
                roles |= 1 << place;
            }
        }
        Self(roles)
    }

    pub(crate) fn any_of(self, roles: &[&str]) -> bool {
        ROLES.iter().enumerate().any(|(place, role)| self.0 & (1 << place) != 0 && roles.contains(role))
    }
}

/// Both ends of TLS with one role's certificate.
#[derive(Clone)]
pub(crate) struct Tls {
    /// For calls: who comes has to show a certificate.
    pub(crate) calls: TlsAcceptor,
    /// For pages: who comes may show one.
    pub(crate) pages: TlsAcceptor,
    client: TlsConnector,
}

/// A folder of certificates as it was read for a role.
pub(super) struct CertificateFolder {
    folder: PathBuf,
    role: &'static str,
    stamps: Vec<Stamp>,
    tls: Tls,
}

impl CertificateFolder {
    pub(super) fn read(folder: &Path, role: &'static str) -> Result<Self, CertificateProblem> {
        let stamps = stamps(folder, role)?;
        let tls = tls(folder, role)?;
        Ok(Self { folder: folder.to_owned(), role, stamps, tls })
    }

    /// The folder as it is now, if its files have changed.
    pub(super) fn newer(&self) -> Result<Option<Self>, CertificateProblem> {
        if stamps(&self.folder, self.role)? == self.stamps {
            return Ok(None);
        }
        Self::read(&self.folder, self.role).map(Some)
    }

    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }
}

fn files(folder: &Path, role: &str) -> [PathBuf; 3] {
    ["ca.pem".to_owned(), format!("{role}.pem"), format!("{role}.key")].map(|name| folder.join(name))
}

fn stamps(folder: &Path, role: &str) -> Result<Vec<Stamp>, CertificateProblem> {
    files(folder, role).iter().map(|path| Stamp::of(path).map_err(|error| unreadable(path, &error))).collect()
}

fn unreadable(path: &Path, problem: &dyn std::fmt::Display) -> CertificateProblem {
    CertificateProblem::Read { path: path.to_owned(), problem: problem.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateProblem> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| unreadable(path, &error))?;
    if read.is_empty() { Err(unreadable(path, &"it holds no certificate")) } else { Ok(read) }
}

fn tls(folder: &Path, role: &'static str) -> Result<Tls, CertificateProblem> {
    let [authority, certificate, key] = files(folder, role);
    let (authorities, chain) = (certificates(&authority)?, certificates(&certificate)?);
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, &error))?;
    let made = Identity::new(authorities, chain, key).and_then(|identity| identity.tls());
    made.map_err(|problem| CertificateProblem::Unusable { folder: folder.to_owned(), role, problem })
}

/// What both ends of TLS are made of.
struct Identity {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    fn new(
        authorities: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| error.to_string())?;
        }
        Ok(Self { roots: Arc::new(roots), chain, key, provider: Arc::new(default_provider()) })
    }

    fn tls(&self) -> Result<Tls, String> {
        let client = self.client().map_err(|error| error.to_string())?;
        Ok(Tls { calls: self.server(false, b"h2")?, pages: self.server(true, b"http/1.1")?, client })
    }

    /// The end of who is come to, who has to show a certificate or may.
    fn server(&self, is_optional: bool, protocol: &[u8]) -> Result<TlsAcceptor, String> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let verifier = if is_optional { verifier.allow_unauthenticated() } else { verifier };
        let verifier = verifier.build().map_err(|error| error.to_string())?;
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| error.to_string())?;
        let config = config.with_client_cert_verifier(verifier);
        let config = config.with_single_cert(self.chain.clone(), self.key.clone_key());
        let mut config = config.map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config).into())
    }

    /// The end of who goes somewhere.
    fn client(&self) -> Result<TlsConnector, tokio_rustls::rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let config =
            config.with_protocol_versions(&[&TLS13])?.with_root_certificates(Arc::clone(&self.roots));
        let mut config = config.with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config).into())
    }
}

/// Opens connections of a client. The certificates are those of the moment, also when tonic connects again.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) security: Security,
    /// What has to be at the other end: a role, or [`WEIGHTS`].
    pub(crate) service: &'static str,
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<ClientStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (tls, service) = (self.security.tls(), self.service);
        Box::pin(async move {
            let tls = tls.ok_or_else(|| io::Error::other("no certificates"))?;
            let address = uri.authority().ok_or_else(|| io::Error::other("no address"))?;
            let stream = TcpStream::connect(address.as_str()).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(name_of(service)).map_err(io::Error::other)?;
            Ok(TokioIo::new(tls.client.connect(name, stream).await?))
        })
    }
}
