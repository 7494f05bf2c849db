//! What `deny.toml` asks of dependencies, asserted without cargo-deny: licences, sources, and one version of
//! a crate.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cargo_metadata::semver::VersionReq;
use cargo_metadata::{MetadataCommand, Package};
use tests::root;
use toml::Table;

fn deny() -> Table {
    fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap()
}

/// What is built on the platform that `deny.toml` names, ours left out.
fn dependencies() -> Vec<Package> {
    let platform = deny()["graph"]["targets"][0].as_str().unwrap().to_owned();
    let options = ["--locked".to_owned(), format!("--filter-platform={platform}")];
    let metadata = MetadataCommand::new().current_dir(root()).other_options(options).exec().unwrap();
    let resolved: BTreeSet<_> =
        metadata.resolve.as_ref().unwrap().nodes.iter().map(|node| node.id.clone()).collect();
    let ours: BTreeSet<_> = metadata.workspace_members.iter().cloned().collect();
    let taken = |package: &Package| resolved.contains(&package.id) && !ours.contains(&package.id);
    let dependencies: Vec<Package> = metadata.packages.into_iter().filter(taken).collect();
    assert!(dependencies.len() > 100, "found only {} dependencies", dependencies.len());
    dependencies
}

fn strings(list: &toml::Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

#[test]
fn licences_are_on_the_list() {
    let deny = deny();
    let allowed = strings(&deny["licenses"]["allow"]);
    for package in dependencies() {
        let licence = package.license.as_deref().unwrap_or("");
        assert!(
            allows(licence, &allowed),
            "{} {} is under {licence:?}, which deny.toml does not allow",
            package.name,
            package.version
        );
    }
}

#[test]
fn crates_come_from_one_registry() {
    let deny = deny();
    let allowed = strings(&deny["sources"]["allow-registry"]);
    for package in dependencies() {
        let source = package.source.as_ref().map_or("", |source| &source.repr);
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        assert!(allowed.contains(&registry), "{} comes from {source:?}", package.name);
    }
}

#[test]
fn a_crate_has_one_version_unless_deny_toml_says_why_not() {
    let deny = deny();
    let skipped = deny["bans"]["skip"].as_array().unwrap();
    let skipped: BTreeSet<&str> = skipped.iter().map(|skip| skip["crate"].as_str().unwrap()).collect();
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in dependencies() {
        versions.entry(package.name.to_string()).or_default().insert(package.version.to_string());
    }
    versions.retain(|_, versions| versions.len() > 1);
    let several: BTreeSet<&str> = versions.keys().map(String::as_str).collect();
    assert_eq!(several, skipped, "crates with several versions, and deny.toml's bans.skip: {versions:?}");
}

#[test]
fn no_crate_is_below_the_floor_of_a_known_vulnerability() {
    let deny = deny();
    let denied = deny["bans"]["deny"].as_array().unwrap();
    let dependencies = dependencies();
    for denied in denied {
        let (name, versions) = denied["crate"].as_str().unwrap().split_once('@').unwrap();
        let versions: VersionReq = versions.parse().unwrap();
        let mut taken = dependencies.iter().filter(|package| package.name.as_str() == name).peekable();
        // A floor under nothing would be believed to hold something up.
        assert!(taken.peek().is_some(), "deny.toml denies versions of {name}, which is no dependency");
        for package in taken {
            let reason = denied["reason"].as_str().unwrap();
            assert!(!versions.matches(&package.version), "{name} {}: {reason}", package.version);
        }
    }
}

/// Whether an SPDX expression can be met by the allowed licences. `AND` binds more tightly than `OR`; `/` is
/// an old `OR`.
fn allows(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = all_of(rest, allowed);
    while take(rest, "OR") {
        met |= all_of(rest, allowed);
    }
    met
}

fn all_of(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = one(rest, allowed);
    while take(rest, "AND") {
        met &= one(rest, allowed);
    }
    met
}

fn one(rest: &mut &[&str], allowed: &[&str]) -> bool {
    if take(rest, "(") {
        let met = any_of(rest, allowed);
        return take(rest, ")") && met;
    }
    let Some((name, after)) = rest.split_first() else {
        return false;
    };
    *rest = after;
    if take(rest, "WITH") {
        let exception = rest.split_first().map_or("", |(exception, _)| exception);
        *rest = rest.get(1..).unwrap_or_default();
        return allowed.contains(&format!("{name} WITH {exception}").as_str());
    }
    allowed.contains(name)
}

/// Goes past a word, if it is the next one.
fn take(rest: &mut &[&str], word: &str) -> bool {
    let next = rest.first() == Some(&word);
    if next {
        *rest = &rest[1..];
    }
    next
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
    for met in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/GPL-3.0",
        "MIT AND Apache-2.0",
        "(GPL-3.0 OR MIT) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(allows(met, &allowed), "{met}");
    }
    for not_met in
        ["", "GPL-3.0", "MIT AND GPL-3.0", "GPL-3.0 WITH Classpath-exception-2.0", "(MIT", "MIT MIT"]
    {
        assert!(!allows(not_met, &allowed), "{not_met}");
    }
}
