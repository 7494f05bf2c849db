//! Certificates: mutual TLS of a coordinator's process, with members that are and are not what they say.

use std::path::Path;
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use proto::pb::observer_client::ObserverClient;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use service::grpc::connect;
use service::security::certificate_names;
use service::{Security, SecurityConfig};
use tokio::time::Instant;
use tonic::Code;

use crate::coordinator_process::CoordinatorProcess;
use crate::streams::get;

const ROLES: [&str; 4] = ["coordinator", "learner", "actor", "observer"];

/// Who signs certificates.
struct Authority {
    text: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let text = authority.self_signed(&key).unwrap().pem();
        Self { text, issuer: Issuer::new(authority, key) }
    }

    /// Writes its own certificate and those of roles into a folder; expired ones held until 2020.
    fn certify(&self, folder: &Path, is_expired: bool) {
        std::fs::create_dir_all(folder).unwrap();
        let write = |name: String, text: String| std::fs::write(folder.join(name), text).unwrap();
        for role in ROLES {
            let key = KeyPair::generate().unwrap();
            let mut certificate = CertificateParams::new(certificate_names(role)).unwrap();
            if is_expired {
                certificate.not_before = date_time_ymd(2019, 1, 1);
                certificate.not_after = date_time_ymd(2020, 1, 1);
            }
            write(format!("{role}.pem"), certificate.signed_by(&key, &self.issuer).unwrap().pem());
            write(format!("{role}.key"), key.serialize_pem());
        }
        write("ca.pem".to_owned(), self.text.clone());
    }
}

/// Writes an authority and certificates of roles into a folder.
fn certify(folder: &Path) -> Authority {
    let authority = Authority::new();
    authority.certify(folder, false);
    authority
}

fn security(folder: &Path, role: &'static str) -> Security {
    let config = SecurityConfig { certificates: Some(folder.to_owned()), ..SecurityConfig::default() };
    Security::load(role, &config).unwrap()
}

async fn status(coordinator: &CoordinatorProcess, security: &Security) -> Result<String, String> {
    let channel = connect(&coordinator.address, "coordinator", security).await;
    let mut observer = ObserverClient::new(channel.map_err(|error| format!("{error:#}"))?);
    let reply = observer.status(pb::StatusRequest::default()).await;
    reply.map(|reply| reply.into_inner().json).map_err(|status| format!("{:?}: {status}", status.code()))
}

#[tokio::test]
async fn both_sides_show_certificates_and_roles_are_read_from_them() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    certify(&ours);
    certify(&theirs);
    let setting = format!("service.security.certificates={}", ours.display());
    let coordinator = CoordinatorProcess::start(&[&setting]).await;

    status(&coordinator, &security(&ours, "observer")).await.unwrap();
    let refused = status(&coordinator, &security(&ours, "actor")).await.unwrap_err();
    assert!(refused.contains("PermissionDenied"), "{refused}");
    // An actor's certificate as a learner.
    let channel = connect(&coordinator.address, "coordinator", &security(&ours, "actor")).await.unwrap();
    let refused = CoordinatorClient::new(channel).learn(tokio_stream::pending()).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Another authority, no TLS, and a client that expects somebody else there.
    for (security, service) in [
        (security(&theirs, "observer"), "coordinator"),
        (Security::open(), "coordinator"),
        (security(&ours, "observer"), "reward-server"),
    ] {
        let connected = connect(&coordinator.address, service, &security).await;
        let refused = match connected {
            Ok(channel) => ObserverClient::new(channel).status(pb::StatusRequest::default()).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "{service}");
    }
    assert!(!coordinator.log().contains("joined"), "{}", coordinator.log());
    assert_eq!(coordinator.log().lines().filter(|line| line.contains(" refused ")).count(), 1);

    // Exchanged without a restart.
    certify(&ours);
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = status(&coordinator, &security(&ours, "observer")).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many were refused for a reason.
async fn refused(coordinator: &CoordinatorProcess, reason: &str) -> u64 {
    // With certificates alone pages on loopback are plain.
    let (_, page) = get(&coordinator.metrics, "/metrics", "").await;
    let name = format!("rlhf_refused_total{{reason=\"{reason}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(name.as_str()));
    line.unwrap_or_else(|| panic!("{name} in {page}")).parse().unwrap()
}

#[tokio::test]
async fn an_expired_certificate_and_one_of_another_authority_are_refused_counted_and_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
    let authority = certify(&ours);
    certify(&theirs);
    let setting = format!("service.security.certificates={}", ours.display());
    let coordinator = CoordinatorProcess::start(&[&setting]).await;
    let observer = security(&ours, "observer");
    let before = status(&coordinator, &observer).await.unwrap();

    // Of the same authority and the right role, and over; the client trusts the server's, so that only the
    // server can refuse.
    let expired = folder.path().join("expired");
    authority.certify(&expired, true);
    for attempt in 1..=3 {
        let refused = status(&coordinator, &security(&expired, "observer")).await.unwrap_err();
        assert!(!refused.contains("PermissionDenied"), "attempt {attempt} came as far as a call: {refused}");
    }
    // Another authority signed it; the client trusts ours.
    std::fs::copy(ours.join("ca.pem"), theirs.join("ca.pem")).unwrap();
    for _ in 0..2 {
        status(&coordinator, &security(&theirs, "learner")).await.unwrap_err();
    }
    // A client may have tried again by itself.
    assert!(refused(&coordinator, "handshake").await >= 5);
    let log = coordinator.log();
    assert_eq!(log.lines().filter(|line| line.contains(" refused ")).count(), 1, "{log}");
    assert!(log.to_lowercase().contains("expired"), "{log}");
    assert!(!log.contains("joined"), "{log}");
    let after = status(&coordinator, &observer).await.unwrap();
    let account = |status: &str| {
        let status: serde_json::Value = serde_json::from_str(status).unwrap();
        ["account", "actors", "learner", "trained"].map(|key| status[key].clone())
    };
    assert_eq!(account(&after), account(&before));
}
