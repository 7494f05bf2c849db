//! What happened in a run, out of its logs: the coordinator's life events, and everybody's warnings and
//! errors.

use std::path::Path;

use serde::Serialize;

use crate::logs::{Log, LogLine};

/// Lines of each log that are looked through.
const LOOKED_AT: usize = 2000;
/// Most events of an answer.
const EVENTS_LIMIT: usize = 500;
/// Beginnings of lines that come with every step, or that a library writes for its own people.
const ROUTINE: [&str; 7] = [
    "step ",
    "batch sent",
    "Creating database",
    "Recovering",
    "Finished ingestion",
    "Received memtable",
    "listening",
];

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LogEvent {
    pub(crate) process: String,
    #[serde(flatten)]
    pub(crate) line: LogLine,
}

/// The newest events, newest first.
pub(crate) fn events(folder: &Path) -> Vec<LogEvent> {
    let mut events = Vec::new();
    for log in Log::all(folder) {
        let is_coordinator = log.process == "coordinator";
        for line in log.tail(LOOKED_AT, "") {
            let is_life =
                is_coordinator && line.level == "INFO" && !ROUTINE.iter().any(|r| line.text.starts_with(r));
            if is_life || matches!(line.level.as_str(), "WARN" | "ERROR") {
                events.push(LogEvent { process: log.process.clone(), line });
            }
        }
    }
    // Times are written alike by all processes: their order is that of their letters.
    events.sort_by(|one, other| other.line.time.cmp(&one.line.time));
    events.truncate(EVENTS_LIMIT);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_events_of_the_coordinator_and_warnings_of_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let coordinator =
            "2026-11-29T11:35:58Z  INFO joined member=actor-0\n2026-11-29T11:36:00Z  INFO step batch=1\n";
        std::fs::write(logs.join("coordinator.log"), coordinator).unwrap();
        let actor = "2026-11-29T11:35:59Z  INFO at work\n2026-11-29T11:36:01Z  WARN stream broke\n";
        std::fs::write(logs.join("actor-0.log"), actor).unwrap();
        let events = events(folder.path());
        let texts: Vec<&str> = events.iter().map(|event| event.line.text.as_str()).collect();
        assert_eq!(texts, ["stream broke", "joined member=actor-0"]);
        assert_eq!(events[0].process, "actor-0");
    }
}
