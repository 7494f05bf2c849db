//! The workspace as the tests see it: its packages, their source files, and the modules that these are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand};
use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Item, Visibility};
use tests::root;

/// The packages of the workspace, without those of the registry.
pub(crate) fn metadata() -> Metadata {
    MetadataCommand::new().current_dir(root()).no_deps().exec().unwrap()
}

/// Every Rust file of the workspace, with its text.
pub(crate) fn sources() -> Vec<(PathBuf, String)> {
    let sources = tests::files(&["rs"]).unwrap();
    assert!(sources.len() > 100, "found only {} sources", sources.len());
    sources
}

/// The identifiers of a stream of tokens. Comments have none; a string has one where it names a function or a
/// module of it, as in `with = "humantime_serde"`.
pub(crate) fn identifiers(tokens: TokenStream, found: &mut dyn FnMut(String)) {
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => found(ident.to_string().trim_start_matches("r#").to_owned()),
            TokenTree::Group(group) => identifiers(group.stream(), found),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                let path = text.trim_matches('"');
                let named = path.split("::").next().unwrap_or(path);
                if path.contains("::") || named.contains('_') {
                    found(named.to_owned());
                }
            }
            TokenTree::Punct(_) => {}
        }
    }
}

/// The identifiers that a file of Rust names.
pub(crate) fn identifiers_of(text: &str, found: &mut dyn FnMut(String)) {
    identifiers(text.parse().unwrap(), found);
}

/// One module of a crate that has a file of its own.
pub(crate) struct Module {
    /// Its path in the crate: `["engine", "scheduler"]`; empty for the root.
    pub(crate) path: Vec<String>,
    /// What it holds, tests left out.
    pub(crate) items: Vec<Item>,
}

/// The modules of a library with files of their own, by file.
pub(crate) fn modules(source: &Path) -> BTreeMap<PathBuf, Module> {
    let mut modules = BTreeMap::new();
    let lib = source.join("lib.rs");
    if lib.exists() {
        read_module(&lib, source, Vec::new(), &mut modules);
    }
    modules
}

/// Reads a module's file, and those of its children, which lie in `folder`.
fn read_module(file: &Path, folder: &Path, path: Vec<String>, modules: &mut BTreeMap<PathBuf, Module>) {
    let text = fs::read_to_string(file).unwrap();
    let items = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display())).items;
    let items: Vec<Item> = items.into_iter().filter(|item| !is_test(item)).collect();
    for item in &items {
        let Item::Mod(child) = item else { continue };
        if child.content.is_some() {
            continue;
        }
        let name = child.ident.to_string();
        let child_file = folder.join(format!("{name}.rs"));
        if child_file.exists() {
            let child_path = path.iter().cloned().chain([name.clone()]).collect();
            read_module(&child_file, &folder.join(&name), child_path, modules);
        }
    }
    modules.insert(file.to_owned(), Module { path, items });
}

/// Whether an item exists in tests only.
fn is_test(item: &Item) -> bool {
    attributes(item).iter().any(|attribute| {
        let mut words = Vec::new();
        if let syn::Meta::List(list) = &attribute.meta {
            identifiers(list.tokens.clone(), &mut |word| words.push(word));
        }
        attribute.path().is_ident("cfg") && words == ["test"]
    })
}

/// What stands over an item.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether everybody may see it.
pub(crate) fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}
