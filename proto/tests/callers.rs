//! Every method of the schema says who may call it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;

use proto::CALLERS;

#[test]
fn every_method_names_the_roles_that_may_call_it() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = std::fs::read_dir(folder.join("sluice/v1")).unwrap();
    let files: Vec<_> = schema.map(|file| file.unwrap().path()).collect();
    let mut methods = BTreeSet::new();
    for file in protox::compile(&files, [folder]).unwrap().file {
        for service in &file.service {
            let methods_of = service.method.iter();
            methods.extend(
                methods_of.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())),
            );
        }
    }
    let named: BTreeSet<String> = CALLERS.iter().map(|(method, _)| (*method).to_owned()).collect();
    assert!(methods.len() >= 8, "found only {methods:?}");
    assert_eq!(named, methods, "proto/src/callers.rs");
    assert!(CALLERS.iter().all(|(_, callers)| !callers.is_empty()));
}
