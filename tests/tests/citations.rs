//! What a comment cites is there, and what a page links to is there.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tests::{files, root};

/// How comments name the document of decisions; `D7`, or the title of a section in quotation marks, follows.
const CITATION: &str = concat!("docs/", "decisions.md, ");

/// The titles of a page's sections.
fn titles(page: &str) -> Vec<&str> {
    let mut titles = Vec::new();
    let mut in_code = false;
    for line in page.lines() {
        in_code ^= line.starts_with("```");
        if !in_code && line.starts_with('#') {
            titles.push(line.trim_start_matches('#').trim());
        }
    }
    titles
}

/// A source on one line, the marks of comments left out, so that a citation may be broken over lines.
fn on_one_line(text: &str) -> String {
    let lines = text.lines().map(|line| line.trim().trim_start_matches(['/', '!', '*', '#']).trim());
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn cited_decisions_exist() {
    let decisions = fs::read_to_string(root().join("docs/decisions.md")).unwrap();
    let titles = titles(&decisions);
    let numbers: Vec<&str> =
        titles.iter().filter_map(|title| title.split_once(". ")).map(|(d, _)| d).collect();
    assert_eq!(numbers, (1..=25).map(|number| format!("D{number}")).collect::<Vec<_>>());
    for (path, text) in files(&["rs", "toml", "py", "sh", "proto"]).unwrap() {
        for cited in on_one_line(&text).split(CITATION).skip(1) {
            let known = match cited.strip_prefix('"') {
                Some(title) => title.split_once('"').is_some_and(|(title, _)| titles.contains(&title)),
                None => {
                    let end = cited.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(cited.len());
                    numbers.contains(&&cited[..end])
                }
            };
            let shown: String = cited.chars().take(30).collect();
            assert!(known, "{} cites {CITATION}{shown}..., which is not there", path.display());
        }
    }
}

#[test]
fn the_table_of_what_fits_is_what_its_script_prints() {
    let script = root().join("bench/step/fits.py");
    let printed = std::process::Command::new("python3").arg("-B").arg(script).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("| 70B |"), "{printed}");
    assert!(fs::read_to_string(root().join("bench/RESULTS.md")).unwrap().contains(printed.trim()));
}

/// The anchor that a title has as a link's target, as GitHub makes it.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn links_between_pages_lead_somewhere() {
    let pages = files(&["md"]).unwrap();
    assert!(pages.len() > 10, "found only {} pages", pages.len());
    for (path, text) in pages {
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { beside(&path, file) };
            assert!(target.exists(), "{} links to {link}: {} is missing", path.display(), target.display());
            if !section.is_empty() {
                let page = fs::read_to_string(&target).unwrap();
                let anchors: BTreeSet<String> = titles(&page).into_iter().map(anchor).collect();
                assert!(anchors.contains(section), "{} links to {link}: no such section", path.display());
            }
        }
    }
}

/// The targets of a page's links and pictures.
fn links(page: &str) -> Vec<&str> {
    let markdown = page.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let pictures = ["src=\"", "srcset=\""].into_iter().flat_map(|mark| page.split(mark).skip(1));
    let pictures = pictures.filter_map(|rest| rest.split_once('"'));
    markdown.chain(pictures).map(|(target, _)| target).collect()
}

fn beside(page: &Path, file: &str) -> std::path::PathBuf {
    page.parent().unwrap().join(file)
}
