//! What crates show each other: every dependency is used, and every public item is somebody's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cargo_metadata::{DependencyKind, Package};
use quote::ToTokens as _;
use syn::{Fields, ImplItem, Item, ReturnType, Signature, TraitItem};

use tests::root;

use crate::workspace::{identifiers, identifiers_of, is_public, metadata, modules, sources};

/// Dependencies that no source names, each with its reason.
const UNNAMED: [(&str, &str); 0] = [];

/// Public items without a use outside their crate that are meant to be there: what documentation tells users
/// to begin with.
const ENTRY_POINTS: [(&str, &str); 8] = [
    // What the formulas' documentation refers to, and what a reader of the papers looks for.
    ("algo", "DEFAULT_DRAWS"),
    ("algo", "MAX_LOG_RATIO"),
    ("algo", "WHITEN_EPSILON"),
    ("algo", "clip_score"),
    ("algo", "log_mass"),
    // Bounds and lists that the documentation of what is refused names.
    ("model", "COMPANIONS"),
    ("model", "render_named"),
    ("types", "MAX_SEQUENCE_TOKENS"),
];

/// Every Rust file with the identifiers in it.
fn named() -> Vec<(PathBuf, BTreeSet<String>)> {
    let mut named = Vec::new();
    for (path, text) in sources() {
        let mut names = BTreeSet::new();
        identifiers_of(&text, &mut |name| {
            names.insert(name);
        });
        named.push((path, names));
    }
    named
}

/// The identifiers in files under one of these folders.
fn named_in(named: &[(PathBuf, BTreeSet<String>)], folders: &[PathBuf]) -> BTreeSet<String> {
    let within = named.iter().filter(|(path, _)| folders.iter().any(|folder| path.starts_with(folder)));
    within.flat_map(|(_, names)| names.iter().cloned()).collect()
}

#[test]
fn every_direct_dependency_is_named_by_the_code() {
    let named = named();
    let mut unnamed = Vec::new();
    for package in &metadata().packages {
        let folder = package.manifest_path.parent().unwrap().as_std_path();
        let mut shipped = named_in(&named, &[folder.join("src"), folder.join("native")]);
        // Code that a build script generates names what its generator writes.
        let building = named_in(&named, &[folder.join("build.rs")]);
        if building.contains("tonic_prost_build") {
            shipped.extend(["prost", "tonic", "tonic_prost"].map(str::to_owned));
        }
        let all = named_in(&named, &[folder.to_owned()]);
        for dependency in &package.dependencies {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
            let names = match dependency.kind {
                DependencyKind::Normal => &shipped,
                DependencyKind::Build => &building,
                _ => &all,
            };
            let known = (package.name.as_str(), dependency.name.as_str());
            if !names.contains(&name) && !UNNAMED.contains(&known) {
                unnamed.push(format!("{} -> {} ({:?})", package.name, dependency.name, dependency.kind));
            }
        }
    }
    assert!(unnamed.is_empty(), "dependencies that no code names:\n{}", unnamed.join("\n"));
}

/// A public item of a library.
struct PublicItem {
    name: String,
    /// The identifiers that its users must be able to name or hold: of its signature, its fields, its
    /// variants.
    shows: BTreeSet<String>,
}

#[test]
fn every_public_item_is_used_outside_its_crate() {
    let named = named();
    let packages = metadata().packages;
    let mut unused = Vec::new();
    for package in packages.iter().filter(|package| package.name.as_str() != "tests") {
        let items = public_items(package);
        let needed = needed(&items, &named_outside(package, &packages, &named));
        for item in items.iter().filter(|item| !needed.contains(&item.name)) {
            if !ENTRY_POINTS.contains(&(package.name.as_str(), item.name.as_str())) {
                unused.push(format!("{}::{}", package.name, item.name));
            }
        }
    }
    unused.sort();
    unused.dedup();
    assert!(unused.is_empty(), "public without need ({}):\n{}", unused.len(), unused.join("\n"));
}

/// The identifiers in everything that sees a package from outside: other packages, and its own programs,
/// tests, examples.
fn named_outside(
    package: &Package,
    packages: &[Package],
    named: &[(PathBuf, BTreeSet<String>)],
) -> BTreeSet<String> {
    let folder = package.manifest_path.parent().unwrap().as_std_path();
    let own = ["tests", "examples", "native", "src/bin", "src/main.rs"].map(|part| folder.join(part));
    let others = packages.iter().filter(|other| other.name != package.name);
    let others = others.map(|other| other.manifest_path.parent().unwrap().as_std_path().to_owned());
    // One of the examples is a package itself, and not seen from outside by its own sources.
    let examples = Some(root().join("examples")).filter(|examples| !folder.starts_with(examples));
    let folders: Vec<PathBuf> = own.into_iter().chain(others).chain(examples).collect();
    named_in(named, &folders)
}

/// The names that are used outside, and those that these show.
fn needed(items: &[PublicItem], outside: &BTreeSet<String>) -> BTreeSet<String> {
    let mut by_name: BTreeMap<&str, Vec<&PublicItem>> = BTreeMap::new();
    for item in items {
        by_name.entry(&item.name).or_default().push(item);
    }
    let mut needed: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<&str> = by_name.keys().copied().filter(|name| outside.contains(*name)).collect();
    while let Some(name) = open.pop() {
        if !needed.insert(name.to_owned()) {
            continue;
        }
        for item in &by_name[name] {
            open.extend(item.shows.iter().map(String::as_str).filter(|shown| by_name.contains_key(shown)));
        }
    }
    needed
}

fn public_items(package: &Package) -> Vec<PublicItem> {
    let source = package.manifest_path.parent().unwrap().join("src");
    let mut found = Vec::new();
    for module in modules(source.as_std_path()).values() {
        module.items.iter().for_each(|item| collect(item, &mut found));
    }
    found
}

fn collect(item: &Item, found: &mut Vec<PublicItem>) {
    let mut shows = BTreeSet::new();
    let mut show = |tokens| {
        identifiers(tokens, &mut |name| {
            shows.insert(name);
        });
    };
    let name = match item {
        Item::Const(item) if is_public(&item.vis) => {
            show(item.ty.to_token_stream());
            &item.ident
        }
        Item::Fn(item) if is_public(&item.vis) => {
            show(signature(&item.sig));
            &item.sig.ident
        }
        Item::Struct(item) if is_public(&item.vis) => {
            show(item.generics.to_token_stream());
            show(public_fields(&item.fields));
            &item.ident
        }
        Item::Enum(item) if is_public(&item.vis) => {
            item.variants.iter().for_each(|variant| show(variant.fields.to_token_stream()));
            &item.ident
        }
        Item::Trait(item) if is_public(&item.vis) => {
            for inner in &item.items {
                if let TraitItem::Fn(method) = inner {
                    show(signature(&method.sig));
                }
            }
            &item.ident
        }
        Item::Type(item) if is_public(&item.vis) => {
            show(item.ty.to_token_stream());
            &item.ident
        }
        Item::Impl(item) => {
            for inner in &item.items {
                let ImplItem::Fn(method) = inner else { continue };
                // A method of a trait is used through the trait.
                if item.trait_.is_none() && is_public(&method.vis) {
                    let mut shows = BTreeSet::new();
                    identifiers(signature(&method.sig), &mut |name| {
                        shows.insert(name);
                    });
                    found.push(PublicItem { name: method.sig.ident.to_string(), shows });
                }
            }
            return;
        }
        _ => return,
    };
    found.push(PublicItem { name: name.to_string(), shows });
}

/// The types of a function's arguments and of what it returns.
fn signature(signature: &Signature) -> proc_macro2::TokenStream {
    let mut tokens = signature.generics.to_token_stream();
    signature.inputs.iter().for_each(|input| input.to_tokens(&mut tokens));
    if let ReturnType::Type(_, returned) = &signature.output {
        returned.to_tokens(&mut tokens);
    }
    tokens
}

fn public_fields(fields: &Fields) -> proc_macro2::TokenStream {
    let mut tokens = proc_macro2::TokenStream::new();
    for field in fields.iter().filter(|field| is_public(&field.vis)) {
        field.ty.to_tokens(&mut tokens);
    }
    tokens
}
