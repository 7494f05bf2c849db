//! No two files of a crate import each other, neither directly nor by way of others. A module and those
//! inside it are one room: they may.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens as _;
use syn::{Item, UseTree};

use crate::workspace::{Module, metadata, modules};

/// How many re-exports are followed to where a name is defined.
const REEXPORTS_LIMIT: usize = 8;

/// A module's path in its crate.
type ModulePath = Vec<String>;

/// A name that a module brings in: as what, and from which path.
struct Import {
    name: String,
    path: Vec<String>,
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for package in &metadata().packages {
        let source = package.manifest_path.parent().unwrap().join("src");
        let modules = modules(source.as_std_path());
        for circle in circles_of(&Imports::of(&modules)) {
            circles.push(format!("{}: {}", package.name, circle.join(" <-> ")));
        }
    }
    assert!(circles.is_empty(), "files that import each other:\n{}", circles.join("\n"));
}

/// What the modules of a crate import.
struct Imports {
    by_module: BTreeMap<ModulePath, Vec<Import>>,
    /// Paths that stand in the code: `crate::a::b` and the like.
    inline: BTreeMap<ModulePath, Vec<Vec<String>>>,
}

impl Imports {
    fn of(modules: &BTreeMap<PathBuf, Module>) -> Self {
        let mut imports = Self { by_module: BTreeMap::new(), inline: BTreeMap::new() };
        for module in modules.values() {
            let own = imports.by_module.entry(module.path.clone()).or_default();
            let inline = imports.inline.entry(module.path.clone()).or_default();
            for item in &module.items {
                match item {
                    Item::Use(item) => flatten(&item.tree, &mut Vec::new(), own),
                    other => paths(other.to_token_stream(), inline),
                }
            }
        }
        imports
    }

    /// The modules that a module needs, itself and those it lies in or that lie in it left out.
    fn targets(&self, module: &ModulePath) -> BTreeSet<ModulePath> {
        let imported = self.by_module[module].iter().map(|import| &import.path);
        let paths = imported.chain(&self.inline[module]);
        let targets = paths.filter_map(|path| self.resolve(module, path, REEXPORTS_LIMIT));
        targets.filter(|target| !target.starts_with(module) && !module.starts_with(target)).collect()
    }

    /// The module that defines what a path in `module` names; nothing when it is of another crate.
    fn resolve(&self, module: &ModulePath, path: &[String], reexports_left: usize) -> Option<ModulePath> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (module.clone(), &path[1..]),
            "super" => (module[..module.len().checked_sub(1)?].to_vec(), &path[1..]),
            first => {
                let child: ModulePath = module.iter().cloned().chain([first.to_owned()]).collect();
                if !self.by_module.contains_key(&child) {
                    return None;
                }
                (child, &path[1..])
            }
        };
        while let [first, tail @ ..] = rest {
            let child: ModulePath = at.iter().cloned().chain([first.clone()]).collect();
            if first == "super" {
                at.pop()?;
            } else if self.by_module.contains_key(&child) {
                at = child;
            } else {
                return Some(self.reexported(&at, first, reexports_left).unwrap_or(at));
            }
            rest = tail;
        }
        Some(at)
    }

    /// Where a name that `module` itself imports comes from, if it is of this crate.
    fn reexported(&self, module: &ModulePath, name: &str, reexports_left: usize) -> Option<ModulePath> {
        let import = self.by_module.get(module)?.iter().find(|import| import.name == name)?;
        self.resolve(module, &import.path, reexports_left.checked_sub(1)?)
    }
}

/// The names that a `use` brings in.
fn flatten(tree: &UseTree, before: &mut Vec<String>, imports: &mut Vec<Import>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            flatten(&path.tree, before, imports);
            before.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|item| flatten(item, before, imports)),
        UseTree::Glob(_) => imports.push(Import { name: "*".to_owned(), path: before.clone() }),
        UseTree::Name(name) => {
            let path = before.iter().cloned().chain([name.ident.to_string()]).collect();
            imports.push(Import { name: name.ident.to_string(), path });
        }
        UseTree::Rename(rename) => {
            let path = before.iter().cloned().chain([rename.ident.to_string()]).collect();
            imports.push(Import { name: rename.rename.to_string(), path });
        }
    }
}

/// The paths in code that begin with `crate` or `super`.
fn paths(tokens: TokenStream, found: &mut Vec<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                path.push(ident.to_string());
                colons = 0;
            }
            other => {
                keep_path(&mut path, found);
                colons = 0;
                match other {
                    TokenTree::Ident(ident) => path.push(ident.to_string()),
                    TokenTree::Group(group) => paths(group.stream(), found),
                    _ => {}
                }
            }
        }
    }
    keep_path(&mut path, found);
}

/// Moves a finished path to those found, if it is one of this crate.
fn keep_path(path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let path = std::mem::take(path);
    if path.first().is_some_and(|first| first == "crate" || first == "super") {
        found.push(path);
    }
}

/// The circles among the modules: sets in which each needs each other.
fn circles_of(imports: &Imports) -> Vec<Vec<String>> {
    let arrows: BTreeMap<&ModulePath, BTreeSet<ModulePath>> =
        imports.by_module.keys().map(|module| (module, imports.targets(module))).collect();
    let reached: BTreeMap<&ModulePath, BTreeSet<&ModulePath>> =
        arrows.keys().map(|module| (*module, reach(module, &arrows))).collect();
    let mut circles = BTreeSet::new();
    for (module, others) in &reached {
        let circle: BTreeSet<String> = others
            .iter()
            .filter(|other| reached[**other].contains(*module))
            .map(|other| other.join("/"))
            .collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().map(|circle| circle.into_iter().collect()).collect()
}

/// Everything that can be come to from a module along the arrows.
fn reach<'a>(
    start: &ModulePath,
    arrows: &BTreeMap<&'a ModulePath, BTreeSet<ModulePath>>,
) -> BTreeSet<&'a ModulePath> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start.clone()];
    while let Some(module) = open.pop() {
        for target in &arrows[&module] {
            let (target, _) = arrows.get_key_value(target).unwrap();
            if reached.insert(*target) {
                open.push((*target).clone());
            }
        }
    }
    reached
}
