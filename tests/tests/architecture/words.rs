//! The words of the code: the field's terms and no metaphors, lines that fit, closures without names the
//! exception.

use std::collections::BTreeMap;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use tests::root;

use crate::workspace::sources;

/// Longest line of a comment, in characters. Code is rustfmt's.
const LINE_LIMIT: usize = 110;

/// Most closures bound to a name (`let x = |..|`) in a thousand lines.
const NAMED_CLOSURES_PER_THOUSAND: f64 = 1.0;

/// Words that stood for something else, and what the field calls it.
const METAPHORS: [(&str, &str); 12] = [
    ("desk", "registry"),
    ("panel", "scorer set"),
    ("lane", "queue"),
    ("ledger", "in flight"),
    ("keeper", "spawner, updater"),
    ("workshop", "probe"),
    ("frontier", "prompt queue"),
    ("stopwatch", "timer"),
    ("trainee", "trainable model"),
    ("farewell", "goodbye"),
    ("patience", "wait policy"),
    ("appointment", "retry after"),
];

/// Where such a word is the field's own: panels of packed matrices and of dashboards, lanes of vector
/// registers.
const TERMS: [(&str, &str); 4] = [
    ("panel", "crates/engine"),
    ("lane", "crates/engine"),
    ("panel", "crates/cli/tests/deploy.rs"),
    ("panel", "tests/tests/dashboards.rs"),
];

/// The words of a text, in small letters: `MaxLaneCount` and `max_lane_count` have three each.
fn words(text: &str) -> impl Iterator<Item = String> {
    let mut spaced = String::with_capacity(text.len() + text.len() / 8);
    let mut before = ' ';
    for letter in text.chars() {
        if letter.is_uppercase() && before.is_lowercase() {
            spaced.push(' ');
        }
        spaced.extend(letter.to_lowercase());
        before = letter;
    }
    let words: Vec<String> = spaced
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    words.into_iter()
}

#[test]
fn the_code_speaks_the_words_of_the_field() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        let relative = path.strip_prefix(root()).unwrap().to_owned();
        if relative.ends_with("architecture/words.rs") {
            continue;
        }
        let name = relative.file_stem().unwrap().to_string_lossy().into_owned();
        for (number, line) in [name.as_str()].into_iter().chain(text.lines()).enumerate() {
            for word in words(line) {
                let singular = word.strip_suffix('s').unwrap_or(&word);
                let is_term =
                    TERMS.iter().any(|(term, folder)| *term == singular && relative.starts_with(folder));
                let metaphor = METAPHORS.iter().find(|(metaphor, _)| *metaphor == singular && !is_term);
                if let Some((metaphor, term)) = metaphor {
                    found.push(format!("{}:{number}: {metaphor} (say {term})", relative.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{} metaphors:\n{}", found.len(), found.join("\n"));
}

#[test]
fn comments_fit_on_a_page() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let characters = line.chars().count();
            if characters > LINE_LIMIT && is_prose(line) {
                let relative = path.strip_prefix(root()).unwrap().display();
                long.push(format!("{relative}:{}: {characters}", number + 1));
            }
        }
    }
    assert!(long.is_empty(), "{} lines over {LINE_LIMIT} characters:\n{}", long.len(), long.join("\n"));
}

/// Whether a line is a comment, and no row of a table nor part of a picture.
fn is_prose(line: &str) -> bool {
    let is_comment = line.trim_start().starts_with("//");
    is_comment && !["|", "-->", "    "].iter().any(|mark| line.trim_start().contains(mark))
}

#[test]
fn closures_with_names_are_rare() {
    let by_crate = closures_by_crate();
    let closures: usize = by_crate.values().map(|(closures, _)| closures).sum();
    let lines: usize = by_crate.values().map(|(_, lines)| lines).sum();
    let share = closures as f64 * 1e3 / lines as f64;
    assert!(
        share <= NAMED_CLOSURES_PER_THOUSAND,
        "{closures} in {lines} lines: write functions, methods or loops instead, {by_crate:?}"
    );
}

/// Closures bound to names, and lines, outside tests, by source folder.
fn closures_by_crate() -> BTreeMap<String, (usize, usize)> {
    let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (path, text) in sources() {
        let relative = path.strip_prefix(root()).unwrap().to_owned();
        let folder = relative.iter().take_while(|part| *part != "src").collect::<std::path::PathBuf>();
        if folder == relative || relative.starts_with("tests") {
            continue;
        }
        let counted = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let entry = found.entry(folder.display().to_string()).or_default();
        entry.1 += counted.lines().count();
        if let Ok(tokens) = counted.parse() {
            entry.0 += named_closures(tokens);
        }
    }
    found
}

/// How often `let NAME = |` or `let NAME = move |` stands in the tokens.
fn named_closures(tokens: TokenStream) -> usize {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut closures = 0;
    for (place, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) if group.delimiter() != Delimiter::Parenthesis || place > 0 => {
                closures += named_closures(group.stream());
            }
            TokenTree::Ident(ident) if ident == "let" => {
                closures += usize::from(binds_closure(&tokens[place..]))
            }
            _ => {}
        }
    }
    closures
}

/// Whether these tokens, which begin with `let`, bind a closure to a name.
fn binds_closure(tokens: &[TokenTree]) -> bool {
    let words = tokens.iter().take(6).map(ToString::to_string).filter(|word| word != "mut" && word != "move");
    let words: Vec<String> = words.take(4).collect();
    matches!(&words[..], [_, _, equals, bar] if equals == "=" && bar == "|")
}
