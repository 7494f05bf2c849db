//! Certificates: mutual TLS of a coordinator's process, with members that are and are not what they say.

use std::path::Path;
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use proto::pb::observer_client::ObserverClient;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use service::grpc::connect;
use service::security::certificate_names;
use service::{Security, SecurityConfig};
use tokio::time::Instant;
use tonic::Code;

use crate::coordinator_process::CoordinatorProcess;

const ROLES: [&str; 4] = ["coordinator", "learner", "actor", "observer"];

/// Writes an authority and certificates of roles into a folder.
fn certify(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let write = |name: String, text: String| std::fs::write(folder.join(name), text).unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority_text = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    for role in ROLES {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(certificate_names(role)).unwrap();
        write(format!("{role}.pem"), certificate.signed_by(&key, &issuer).unwrap().pem());
        write(format!("{role}.key"), key.serialize_pem());
    }
    write("ca.pem".to_owned(), authority_text);
}

fn security(folder: &Path, role: &'static str) -> Security {
    let config = SecurityConfig { certificates: Some(folder.to_owned()), ..SecurityConfig::default() };
    Security::load(role, &config).unwrap()
}

async fn status(coordinator: &CoordinatorProcess, security: &Security) -> Result<String, String> {
    let channel = connect(&coordinator.address, "coordinator", security).await;
    let mut observer = ObserverClient::new(channel.map_err(|error| format!("{error:#}"))?);
    let reply = observer.status(pb::StatusRequest {}).await;
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
            Ok(channel) => ObserverClient::new(channel).status(pb::StatusRequest {}).await.is_err(),
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
