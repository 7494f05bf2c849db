//! The newest samples of a run, out of `samples.jsonl`: searched, sorted, a page at a time.
//!
//! A sample's fields are the coordinator's (its `samples.rs`). What is read here of them is what the filter
//! view needs ([`groups`](crate::groups)); everything else is handed on as it stands.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bytes from the file's end that are looked through.
const WINDOW_BYTES: u64 = 16 << 20;
/// Most samples of an answer.
const PAGE_LIMIT: usize = 200;

/// What is asked for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Query {
    /// What a sample's line has to hold, whatever its case.
    search: String,
    /// A field's dotted path; the newest sample first when empty.
    sort: String,
    /// Smallest first instead of largest first.
    ascending: bool,
    offset: usize,
    limit: Option<usize>,
}

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Found {
    /// Whether there is such a file.
    exists: bool,
    /// Samples that were looked through: the newest.
    looked_at: usize,
    /// Whether there are older ones.
    has_older: bool,
    /// Samples that match.
    matching: usize,
    /// The dotted paths of numbers that samples have, for sorting.
    numbers: Vec<String>,
    samples: Vec<Value>,
}

/// The newest lines of the file.
#[derive(Debug, Default)]
pub(crate) struct Window {
    text: String,
    exists: bool,
    has_older: bool,
}

impl Window {
    /// Reads them.
    pub(crate) fn read(path: &Path) -> std::io::Result<Self> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let from = length.saturating_sub(WINDOW_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(WINDOW_BYTES).read_to_end(&mut bytes)?;
        if from > 0 {
            let whole = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
            bytes.drain(..whole);
        }
        Ok(Self { text: String::from_utf8_lossy(&bytes).into_owned(), exists: true, has_older: from > 0 })
    }

    /// The samples, newest first. A line that is no JSON is passed over: it may be half written.
    pub(crate) fn samples(&self) -> impl Iterator<Item = Value> {
        self.text.lines().rev().filter_map(|line| serde_json::from_str(line).ok())
    }

    /// A page of what matches.
    pub(crate) fn find(&self, query: &Query) -> Found {
        let words: Vec<String> = query.search.split_whitespace().map(str::to_lowercase).collect();
        let lines = self.text.lines().rev().filter(|line| {
            let line = if words.is_empty() { String::new() } else { line.to_lowercase() };
            words.iter().all(|word| line.contains(word))
        });
        let mut samples: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        if !query.sort.is_empty() {
            // A stable sort: equal ones stay newest first.
            samples.sort_by(|one, other| {
                let order = order(at(one, &query.sort), at(other, &query.sort));
                if query.ascending { order } else { order.reverse() }
            });
        }
        let matching = samples.len();
        let mut numbers = Vec::new();
        for sample in samples.iter().take(PAGE_LIMIT) {
            let found = crate::columns::flatten(sample).into_iter().map(|(name, _)| name);
            numbers.extend(found);
        }
        numbers.sort_unstable();
        numbers.dedup();
        let limit = query.limit.unwrap_or(PAGE_LIMIT).min(PAGE_LIMIT);
        Found {
            exists: self.exists,
            looked_at: self.text.lines().count(),
            has_older: self.has_older,
            matching,
            numbers,
            samples: samples.into_iter().skip(query.offset).take(limit).collect(),
        }
    }
}

/// The value at a dotted path.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, name| value.get(name))
}

/// Numbers before texts before nothing; within a kind by size.
fn order(one: Option<&Value>, other: Option<&Value>) -> Ordering {
    match (one, other) {
        (Some(Value::Number(one)), Some(Value::Number(other))) => {
            let (one, other) = (one.as_f64().unwrap_or(f64::NAN), other.as_f64().unwrap_or(f64::NAN));
            one.total_cmp(&other)
        }
        (Some(Value::String(one)), Some(Value::String(other))) => one.cmp(other),
        (one, other) => kind(one).cmp(&kind(other)),
    }
}

fn kind(value: Option<&Value>) -> u8 {
    match value {
        Some(Value::Number(_)) => 3,
        Some(Value::Bool(true)) => 2,
        Some(Value::String(_)) => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(lines: &[&str]) -> Window {
        Window { text: lines.join("\n"), exists: true, has_older: false }
    }

    fn texts(found: &Found) -> Vec<&str> {
        found.samples.iter().map(|sample| sample["text"].as_str().unwrap()).collect()
    }

    #[test]
    fn the_newest_come_first_and_a_search_finds_words_in_any_order() {
        let window = window(&[
            r#"{"text": "The blue Whale", "score": 1}"#,
            "half a li",
            r#"{"text": "a whale that is blue", "score": 3, "scores": {"rule": 0.5}}"#,
            r#"{"text": "a cat", "score": 2}"#,
        ]);
        assert_eq!(
            texts(&window.find(&Query::default())),
            ["a cat", "a whale that is blue", "The blue Whale"]
        );
        let found = window.find(&Query { search: "whale BLUE".into(), ..Query::default() });
        assert_eq!(texts(&found), ["a whale that is blue", "The blue Whale"]);
        assert_eq!(found.numbers, ["score", "scores.rule"]);
        assert_eq!((found.matching, found.looked_at), (2, 4));
    }

    #[test]
    fn sorting_takes_any_number_and_what_has_none_comes_last() {
        let window = window(&[
            r#"{"text": "none"}"#,
            r#"{"text": "low", "scores": {"rule": -1}}"#,
            r#"{"text": "high", "scores": {"rule": 2.5}}"#,
        ]);
        let query = Query { sort: "scores.rule".into(), ..Query::default() };
        assert_eq!(texts(&window.find(&query)), ["high", "low", "none"]);
        let query = Query { offset: 1, limit: Some(1), ..query };
        assert_eq!(texts(&window.find(&query)), ["low"]);
    }

    #[test]
    fn a_run_without_samples_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let window = Window::read(&folder.path().join("samples.jsonl")).unwrap();
        assert!(!window.find(&Query::default()).exists);
    }

    #[test]
    fn of_a_long_file_the_end_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let line = format!("{{\"text\": \"{}\", \"n\": 1}}\n", "x".repeat(1 << 20));
        std::fs::write(&path, line.repeat(20)).unwrap();
        let found = Window::read(&path).unwrap().find(&Query::default());
        assert!(found.has_older);
        assert_eq!(found.looked_at, 15);
    }
}
