//! `sluice certs`: certificates for trials.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use service::security::{ROLES, certificate_names};

use super::private_file::write_new;
use crate::say::say;

/// How long they hold, in years.
const YEARS: i16 = 1;
const COORDINATOR: &str = "coordinator";

/// Writes an authority of its own and a certificate for each role, for trials: `security.certificates` names
/// the folder. Where a run is meant to be safe its certificates come from an authority whose key lies
/// elsewhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder for `ca.pem`, `ca.key`, and `ROLE.pem` and `ROLE.key` of each role; files that are there
    /// are left alone.
    folder: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When a file is there already or cannot be written.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = &arguments.folder;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("create {}", folder.display()))?;
    let mut authority = params("Sluice trial authority", Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    write_new(&folder.join("ca.pem"), &authority.self_signed(&key)?.pem())?;
    write_new(&folder.join("ca.key"), &key.serialize_pem())?;
    let issuer = Issuer::new(authority, key);
    for role in ROLES.into_iter().chain([COORDINATOR]) {
        let mut certificate = params(role, certificate_names(role))?;
        certificate.use_authority_key_identifier_extension = true;
        certificate.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        certificate.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let signed = certificate.signed_by(&key, &issuer)?;
        write_new(&folder.join(format!("{role}.pem")), &signed.pem())?;
        write_new(&folder.join(format!("{role}.key")), &key.serialize_pem())?;
    }
    let folder = folder.display();
    say(&format!(
        "wrote certificates for {YEARS} year: name {folder} as certificates in [security] of the recipe"
    ));
    Ok(())
}

/// A certificate of this name for these services, from yesterday on.
fn params(name: &str, services: Vec<String>) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(services)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let yesterday = jiff::Zoned::now().date().yesterday()?;
    let (month, day) = (u8::try_from(yesterday.month())?, u8::try_from(yesterday.day())?);
    params.not_before = date_time_ymd(yesterday.year().into(), month, day);
    // A 29th of February has no anniversary.
    params.not_after = date_time_ymd((yesterday.year() + YEARS).into(), month, day.min(28));
    Ok(params)
}
