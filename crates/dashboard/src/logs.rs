//! The logs of a run's processes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

/// Bytes from a log's end that are read.
const TAIL_LIMIT_BYTES: u64 = 4 << 20;
/// Most lines of an answer.
const LINES_LIMIT: usize = 2000;

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LogLine {
    /// As it was written; empty where the line begins otherwise.
    pub(crate) time: String,
    pub(crate) level: String,
    pub(crate) text: String,
}

/// A log by the name of its process.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) process: String,
    path: PathBuf,
}

impl Log {
    /// The logs below a ring's folder, by name.
    pub(crate) fn all(folder: &Path) -> Vec<Self> {
        let mut logs = Vec::new();
        for entry in std::fs::read_dir(folder.join("logs")).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            if let (true, Some(name)) = (is_log, path.file_stem()) {
                logs.push(Self { process: name.to_string_lossy().into_owned(), path });
            }
        }
        logs.sort_by(|one, other| one.process.cmp(&other.process));
        logs
    }

    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.path.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The last lines that hold a text, whatever its case, oldest first.
    pub(crate) fn tail(&self, lines: usize, search: &str) -> Vec<LogLine> {
        let text = tail_of(&self.path);
        let search = search.to_lowercase();
        let found = text.lines().rev().filter(|line| line.to_lowercase().contains(&search));
        let mut found: Vec<LogLine> = found.take(lines.min(LINES_LIMIT)).map(parse).collect();
        found.reverse();
        found
    }
}

/// The end of a file, from the beginning of a line.
fn tail_of(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        let from = length.saturating_sub(TAIL_LIMIT_BYTES);
        file.seek(SeekFrom::Start(from))?;
        file.take(TAIL_LIMIT_BYTES).read_to_end(&mut bytes)?;
        if from > 0 {
            let line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
            bytes.drain(..line);
        }
        Ok(())
    });
    match read {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{} cannot be read: {error}", path.display()),
    }
}

/// A line of either format of `service.log_format`; anything else is text alone.
pub(crate) fn parse(line: &str) -> LogLine {
    if line.starts_with('{')
        && let Ok(Value::Object(entry)) = serde_json::from_str(line)
    {
        return parse_json(&entry);
    }
    let mut parts = line.splitn(2, ' ');
    let (time, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().trim_start());
    let (level, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let is_level = matches!(level, "ERROR" | "WARN" | "INFO" | "DEBUG" | "TRACE");
    if is_level && time.starts_with(|digit: char| digit.is_ascii_digit()) {
        return LogLine { time: time.into(), level: level.into(), text: text.into() };
    }
    LogLine { time: String::new(), level: String::new(), text: line.to_owned() }
}

fn parse_json(entry: &serde_json::Map<String, Value>) -> LogLine {
    let (mut time, mut level, mut text, mut fields) = Default::default();
    for (name, value) in entry {
        match (name.as_str(), value) {
            ("timestamp", Value::String(value)) => value.clone_into(&mut time),
            ("level", Value::String(value)) => value.clone_into(&mut level),
            ("fields", Value::Object(inner)) => add_fields(inner, &mut text, &mut fields),
            ("message", Value::String(value)) => value.clone_into(&mut text),
            (name, value) => fields += &format!(" {name}={value}"),
        }
    }
    LogLine { time, level, text: text + &fields }
}

fn add_fields(inner: &serde_json::Map<String, Value>, text: &mut String, fields: &mut String) {
    for (name, value) in inner {
        match (name.as_str(), value) {
            ("message", Value::String(message)) => message.clone_into(text),
            (name, value) => *fields += &format!(" {name}={value}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_formats_and_of_neither_are_read() {
        let text = parse("2026-11-29T11:35:58.2Z  INFO joined member=learner session=0");
        assert_eq!((text.level.as_str(), text.text.as_str()), ("INFO", "joined member=learner session=0"));
        let json = parse(
            r#"{"timestamp":"2026-11-29T11:35:58Z","level":"WARN","fields":{"message":"late","n":2},"target":"x"}"#,
        );
        assert_eq!((json.time.as_str(), json.level.as_str()), ("2026-11-29T11:35:58Z", "WARN"));
        assert!(json.text.starts_with("late") && json.text.contains("n=2"), "{}", json.text);
        for other in ["thread 'main' panicked at src/x.rs", "", "{not json", "2026 WHAT is this"] {
            assert_eq!(parse(other).text, other);
        }
    }

    #[test]
    fn the_last_lines_are_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("logs")).unwrap();
        let path = folder.path().join("logs/actor-0.log");
        let lines: Vec<String> =
            (0..100_000).map(|n| format!("line {n} of a long log that goes on")).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        std::fs::write(folder.path().join("logs/notes.txt"), "no log").unwrap();
        let logs = Log::all(folder.path());
        assert_eq!(logs.len(), 1);
        assert_eq!(logs[0].process, "actor-0");
        let tail = logs[0].tail(2, "");
        assert_eq!(tail[1].text, "line 99999 of a long log that goes on");
        assert_eq!(logs[0].tail(10, "LINE 99998 ").len(), 1);
    }
}
