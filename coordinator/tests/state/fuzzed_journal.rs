//! One file of a journal, whichever, damaged in any way: the journal is refused by name, or holds what was
//! durable.

use std::fs;
use std::path::{Path, PathBuf};

use coordinator::journal::Journal;

use crate::journal::{facts, record, used};
use crate::small_run::plan;

const MARK: &str = "durable-facts";

/// The files under a folder, by their paths in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_fuzzed_journal_is_refused_or_holds_what_was_durable() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, mut run) = Journal::open(folder.path(), &plan()).unwrap();
    let mut runs = vec![run.clone()];
    for fact in &facts(24) {
        record(&mut journal, &mut run, std::slice::from_ref(fact));
        runs.push(run.clone());
    }
    drop(journal);
    let files = files(folder.path());
    // The first byte says which file it is. The zeros that a store reserves at the end of its log are left
    // out.
    let good: Vec<Vec<u8>> = (0u8..)
        .zip(&files)
        .map(|(index, file)| [vec![index], used(&folder.path().join(file))].concat())
        .collect();
    fuzz::run("journal", &good, |input| {
        let Some((index, bytes)) = input.split_first() else { return };
        let file = &files[usize::from(*index) % files.len()];
        let damaged = tempfile::tempdir().unwrap();
        for (place, whole) in files.iter().zip(&good) {
            let path = damaged.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, if place == file { bytes } else { &whole[1..] }).unwrap();
        }
        match Journal::open(damaged.path(), &plan()) {
            Ok((_, found)) if file.ends_with(MARK) => assert!(runs.contains(&found), "{}", file.display()),
            Ok((_, found)) => assert_eq!(found, run, "{}", file.display()),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(damaged.path().to_str().unwrap()) && said.len() < 4096, "{said}");
            }
        }
    });
}
