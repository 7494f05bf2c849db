//! The commands that README and docs tell people to type: those of `sluice` parse, targets of `make` and
//! scripts are there. What they do is shown by other tests.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::Sluice;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Files of our own that are documentation.
fn documents() -> Vec<PathBuf> {
    let mut documents: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name)).into();
    let mut folders: Vec<PathBuf> =
        ["docs", "deploy", "examples", "bench"].map(|name| root().join(name)).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    documents
}

/// The commands of a document: indented lines, those that end with a backslash with the lines behind them, a
/// pipe as several.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(line) = line.strip_prefix("    ") else { continue };
        let mut whole = line.to_owned();
        while let Some(begun) = whole.strip_suffix('\\') {
            whole = format!("{begun} {}", lines.next().unwrap_or_default());
        }
        let Some(words) = shlex::split(&whole) else {
            // Prose with an apostrophe, mostly.
            assert!(!whole.starts_with("sluice ") && !whole.starts_with("make "), "no command: {whole}");
            continue;
        };
        let is_joint = |word: &String| ["|", "&&", ";"].contains(&word.as_str());
        commands.extend(words.split(is_joint).filter(|words| !words.is_empty()).map(<[String]>::to_vec));
    }
    commands
}

#[test]
fn what_the_documents_tell_people_to_type_can_be_typed() {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let (mut ours, mut targets, mut scripts) = (0, 0, 0);
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for command in commands(&text) {
            let said = format!("{}: {}", document.display(), command.join(" "));
            let program = command[0].as_str();
            let program = program.strip_prefix("target/release/").unwrap_or(program);
            match program {
                "sluice" => {
                    ours += 1;
                    let parsed = Sluice::try_parse_from(&command);
                    let shown = parsed.err().filter(clap::Error::use_stderr).map(|error| error.to_string());
                    assert_eq!(shown, None, "{said}");
                    for word in command.iter().filter(|word| word.starts_with("examples/")) {
                        assert!(root().join(word).exists(), "{said}: {word} is not there");
                    }
                }
                "make" => {
                    for target in command[1..].iter().filter(|word| !word.contains('=')) {
                        targets += 1;
                        assert!(makefile.contains(&format!("\n{target}:")), "{said}: no target {target}");
                    }
                }
                "python" | "python3" if command.len() > 1 && !command[1].starts_with('-') => {
                    scripts += 1;
                    assert!(root().join(&command[1]).exists(), "{said}: {} is not there", command[1]);
                }
                _ => {}
            }
        }
    }
    assert!(
        ours >= 20 && targets >= 5 && scripts >= 10,
        "{ours} of ours, {targets} targets, {scripts} scripts"
    );
}
