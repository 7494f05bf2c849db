//! Finding a Python interpreter and what it needs to run in a sandbox.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Moment;
use crate::error::Error;

/// What the zygote and its guests execute, by the name they are loaded under.
const SOURCES: [(&str, &str); 11] = [
    ("zygote", include_str!("python/zygote.py")),
    ("packages", include_str!("python/packages.py")),
    ("encoding", include_str!("python/encoding.py")),
    ("candidate", include_str!("python/candidate.py")),
    ("console", include_str!("python/console.py")),
    ("remote", include_str!("python/remote.py")),
    ("graph", include_str!("python/graph.py")),
    ("values", include_str!("python/values.py")),
    ("session", include_str!("python/session.py")),
    ("suite", include_str!("python/suite.py")),
    ("tester", include_str!("python/tester.py")),
];
/// What guests may import though the interpreter has it not: modules by name. LeetCode's interpreter has
/// `sortedcontainers`, and answers to its problems import it.
const PACKAGES: [(&str, &str); 4] = [
    ("sortedcontainers", include_str!("../vendor/sortedcontainers/__init__.py")),
    ("sortedcontainers.sorteddict", include_str!("../vendor/sortedcontainers/sorteddict.py")),
    ("sortedcontainers.sortedlist", include_str!("../vendor/sortedcontainers/sortedlist.py")),
    ("sortedcontainers.sortedset", include_str!("../vendor/sortedcontainers/sortedset.py")),
];
/// Asks an interpreter what it is.
const FACTS_SOURCE: &str = include_str!("python/facts.py");
/// Where the dynamic loader and the C library's own modules are, whatever the interpreter maps.
const SYSTEM_PATHS: [&str; 6] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"];
/// The oldest interpreter that our own Python runs on: major, minor.
const OLDEST_VERSION: [u32; 2] = [3, 8];

/// An interpreter that can be sandboxed.
#[derive(Clone, Debug)]
pub(crate) struct Interpreter {
    /// The executable itself, without links or wrapper scripts.
    pub(crate) path: PathBuf,
    /// Folders and files that it reads.
    pub(crate) reads: Vec<PathBuf>,
    /// Our own modules and the guests' packages, compiled and marshalled by it.
    pub(crate) code: Vec<u8>,
}

#[derive(Deserialize)]
struct Facts {
    implementation: String,
    version: [u32; 3],
    free_threaded: bool,
    executable: PathBuf,
    libraries: Vec<PathBuf>,
    objects: Vec<PathBuf>,
}

impl Interpreter {
    /// The configured interpreter, or the first of `/usr/bin/python3` and `python3` on the path that can be
    /// used.
    pub(crate) fn find(configured: Option<&Path>, import_paths: &[PathBuf]) -> Result<Self, Error> {
        if let Some(path) = configured {
            return Self::inspect(path, import_paths);
        }
        Self::inspect(Path::new("/usr/bin/python3"), import_paths)
            .or_else(|_| Self::inspect(Path::new("python3"), import_paths))
    }

    fn inspect(path: &Path, import_paths: &[PathBuf]) -> Result<Self, Error> {
        Self::try_inspect(path, import_paths)
            .map_err(|error| Error::Interpreter { path: path.to_owned(), reason: error.to_string() })
    }

    fn try_inspect(path: &Path, import_paths: &[PathBuf]) -> Result<Self, Unusable> {
        let output = ask(path)?;
        let end = output.iter().position(|byte| *byte == b'\n').unwrap_or(output.len());
        let facts: Facts = serde_json::from_slice(&output[..end])?;
        let [major, minor, _] = facts.version;
        if facts.implementation != "CPython" || [major, minor] < OLDEST_VERSION {
            return Err(Unusable::Version { found: format!("{} {major}.{minor}", facts.implementation) });
        }
        if facts.free_threaded {
            return Err(Unusable::Version { found: format!("CPython {major}.{minor} without one") });
        }
        let code = output.get(end + 1..).unwrap_or_default().to_vec();
        let reads = reads(&facts, import_paths);
        Ok(Self { path: facts.executable, reads, code })
    }

    /// Whether every user of the machine can reach and read what the interpreter needs.
    pub(crate) fn is_public(&self) -> bool {
        let mut paths = self.reads.iter().chain([&self.path]);
        paths.all(|path| path.ancestors().skip(1).all(|folder| has_mode(folder, 0o001)))
            && has_mode(&self.path, 0o005)
    }
}

/// Whether a path has all these permission bits.
fn has_mode(path: &Path, bits: u32) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|found| found.permissions().mode() & bits == bits)
}

/// Why an interpreter is of no use.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// It cannot be started, or its pipes broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it gave no answer within {0:?}")]
    TimedOut(Duration),
    #[error("it gave no answer; does it start with `-I -S`?")]
    Silent,
    #[error("its answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
    #[error(
        "CPython {}.{} or newer with a global interpreter lock is needed, this is {found}",
        OLDEST_VERSION[0],
        OLDEST_VERSION[1]
    )]
    Version { found: String },
}

/// Runs the interpreter once, outside of any sandbox: it is trusted, its guests are not.
fn ask(path: &Path) -> Result<Vec<u8>, Unusable> {
    let sources: [BTreeMap<_, _>; 2] = [SOURCES.into_iter().collect(), PACKAGES.into_iter().collect()];
    let input = serde_json::to_vec(&sources)?;
    let mut child = Command::new(path)
        .args(["-I", "-S", "-c", FACTS_SOURCE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let answer = exchange(&mut child, input);
    // An interpreter that went on after its answer, or never gave one, is of no use.
    let _ = child.kill();
    let _ = child.wait();
    answer
}

/// Writes the input and reads the answer, on two threads so that neither pipe can block the other, within a
/// timeout.
fn exchange(child: &mut Child, input: Vec<u8>) -> Result<Vec<u8>, Unusable> {
    const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Unusable::Silent);
    };
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut output = Vec::new();
        let result = stdout.read_to_end(&mut output).map(|_| output);
        // Nobody listens any more where the timeout has passed.
        let _ = send.send(result);
    });
    let started = Moment::now();
    let output =
        receive.recv_timeout(ANSWER_TIMEOUT).map_err(|_| Unusable::TimedOut(started.elapsed()))??;
    if writer.is_finished() && output.is_empty() {
        return Err(Unusable::Silent);
    }
    Ok(output)
}

/// Folders of the standard library and of mapped objects, without those that another one contains.
fn reads(facts: &Facts, import_paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut wanted: Vec<PathBuf> = SYSTEM_PATHS.iter().map(PathBuf::from).collect();
    wanted.extend(facts.libraries.iter().cloned());
    wanted.extend(
        facts
            .objects
            .iter()
            .filter(|object| **object != facts.executable)
            .filter_map(|object| object.parent().map(Path::to_owned)),
    );
    wanted.extend(import_paths.iter().cloned());
    wanted.retain(|path| path.exists() && path != Path::new("/"));
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in &wanted {
        let inside = wanted.iter().any(|other| other != path && path.starts_with(other));
        if !inside && !kept.contains(path) {
            kept.push(path.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_interpreter_is_found_with_its_library_and_code() {
        let found = Interpreter::find(None, &[]).unwrap();
        assert!(found.path.is_absolute());
        assert!(found.code.len() > 1000);
        assert!(found.reads.iter().any(|path| path.starts_with("/lib") || path.starts_with("/usr/lib")));
    }

    #[test]
    fn what_is_no_interpreter_is_refused_with_the_reason() {
        for path in ["/bin/true", "/bin/cat", "/does/not/exist"] {
            let error = Interpreter::find(Some(Path::new(path)), &[]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("python interpreter {path}: ")), "{error}");
        }
    }

    #[test]
    fn folders_inside_others_are_left_out() {
        let facts = Facts {
            implementation: "CPython".into(),
            version: [3, 11, 0],
            free_threaded: false,
            executable: "/usr/bin/python3.11".into(),
            libraries: vec!["/usr/lib/python3.11".into()],
            objects: vec!["/usr/bin/python3.11".into(), "/usr/lib/x/libc.so".into()],
        };
        let reads = reads(&facts, &["/usr/lib/python3".into(), "/".into()]);
        let inside = |path: &PathBuf| path.starts_with("/usr/lib") && path != Path::new("/usr/lib");
        assert!(!reads.iter().any(inside), "{reads:?}");
        assert!(!reads.contains(&PathBuf::from("/")));
    }
}
