//! What this machine gives a run: one finding for each thing that has kept runs from working somewhere, with
//! what to do about it.

mod gpus;
mod limits;
mod parts;
mod places;
mod processor;

use std::fmt;
use std::path::Path;

use serde::Serialize;

pub(crate) use limits::total_memory;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Runs work, some of them slower or with less.
    Warn,
    /// Runs fail.
    Fail,
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The thing: `memory`.
    pub(crate) what: &'static str,
    pub(crate) level: Level,
    /// How it is.
    pub(crate) found: String,
    /// What to do, where it is not as it should be.
    pub(crate) advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, level: Level::Ok, found: found.into(), advice: None }
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, level: Level::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, level: Level::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        write!(f, "{level}  {:<13} {}", self.what, self.found)?;
        if let Some(advice) = &self.advice {
            write!(f, "\n      {:<13} → {advice}", "")?;
        }
        Ok(())
    }
}

/// Looks at everything; runs would write below this folder.
pub(crate) fn examine(folder: &Path) -> Vec<Finding> {
    let mut findings =
        vec![processor::instructions(), processor::cores(), limits::memory(), limits::shared_memory()];
    findings.push(gpus::gpus());
    findings.extend([parts::compute(), parts::python(), parts::sandbox()]);
    findings.extend([limits::open_files(), limits::processes()]);
    findings.extend(places::ports());
    findings.extend([
        places::host_name(),
        places::room(folder),
        places::durable_writes(folder),
        places::clock(folder),
    ]);
    findings
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64 / f64::from(1 << 20);
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_and_its_advice_another() {
        assert_eq!(Finding::ok("memory", "8.0 GiB").to_string(), "ok    memory        8.0 GiB");
        let text = Finding::fail("disk", "full", "make room").to_string();
        assert_eq!(text, "FAIL  disk          full\n                    → make room");
        assert_eq!(
            (size(1 << 20), size(3 << 29), size(5 << 40)),
            ("1.0 MiB".into(), "1.5 GiB".into(), "5.0 TiB".into())
        );
        assert!(Level::Fail > Level::Warn && Level::Warn > Level::Ok);
    }

    #[test]
    fn everything_is_looked_at_and_what_is_not_well_has_an_advice() {
        let folder = tempfile::tempdir().unwrap();
        let findings = examine(folder.path());
        let names: Vec<&str> = findings.iter().map(|finding| finding.what).collect();
        for name in ["instructions", "memory", "GPUs", "sandbox", "open files", "ports", "disk", "clock"] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
        for finding in &findings {
            assert_eq!(finding.level == Level::Ok, finding.advice.is_none(), "{finding}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
