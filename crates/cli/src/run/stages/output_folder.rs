//! The folder that a run owns: locked while the run is under way, and never emptied by advice
//! (`docs/decisions.md`, D25).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{IsTerminal as _, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use service::BadInput;

use crate::recipe::holds_training;
use crate::say::say;

/// An output folder, held by this process until it is dropped.
#[derive(Debug)]
pub(super) struct OutputFolder {
    path: PathBuf,
    _lock: File,
    /// Folders that this start has made, the innermost first: the output folder and those above it.
    made: Vec<PathBuf>,
    /// What lay in the folder before.
    before: BTreeSet<OsString>,
    /// Whether this start has made something that is worth keeping.
    is_kept: bool,
}

/// How often a folder is taken whose lock somebody else removes at that moment.
const TAKE_ATTEMPTS: usize = 16;

impl OutputFolder {
    /// Takes the folder, which is made where it is missing.
    ///
    /// # Errors
    /// When another run holds it, whose process is named.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        let made: Vec<PathBuf> =
            path.ancestors().take_while(|folder| !folder.exists()).map(Path::to_owned).collect();
        for _ in 0..TAKE_ATTEMPTS {
            std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
            let before = names_in(path).with_context(|| format!("read {}", path.display()))?;
            if let Some(lock) = lock(path)? {
                return Ok(Self { path: path.to_owned(), _lock: lock, made, before, is_kept: false });
            }
        }
        anyhow::bail!("{} is removed and made again by somebody else all the time", path.display())
    }

    /// This start has made something: from now on it leaves everything where it is.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Removes what a start has left that could not begin, so that it does not stand in the way of the next.
    /// What lay there before stays, and so does everything once a stage is done or a batch is trained.
    pub(super) fn forget_start(self) {
        let Ok(names) = names_in(&self.path) else { return };
        let new: Vec<PathBuf> = names.difference(&self.before).map(|name| self.path.join(name)).collect();
        if self.is_kept || new.iter().any(|path| holds_training(path)) {
            return;
        }
        for path in new {
            // What cannot be removed is no worse than what was there without trying.
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
        for folder in &self.made {
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves what stages have made aside, under a name that says when.
    ///
    /// # Errors
    /// When the user is asked and says no, something lies outside the folder, or the system refuses.
    pub(super) fn move_aside(&self, made: &[&Path], consent: Consent) -> anyhow::Result<()> {
        let there: Vec<&Path> = made.iter().copied().filter(|path| path.exists()).collect();
        if let Some(foreign) = there.iter().find(|path| !path.starts_with(&self.path)) {
            let problem = format!("{} is there already; remove it or name another output", foreign.display());
            return Err(BadInput(problem).into());
        }
        if there.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = there.iter().map(|path| path.display().to_string()).collect();
        if consent == Consent::Asked && !is_wanted(&names)? {
            return Err(BadInput("nothing was moved and nothing was started".to_owned()).into());
        }
        let when = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
        for path in there {
            let aside = free_name(path, &when);
            let moved = std::fs::rename(path, &aside);
            moved.with_context(|| format!("move {} to {}", path.display(), aside.display()))?;
            say(&format!("{} is now {}", path.display(), aside.display()));
        }
        Ok(())
    }
}

/// A name beside `path` that says until when it held; numbered where something was moved in the same second.
fn free_name(path: &Path, when: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let dated = path.with_file_name(format!("{name}.until-{when}"));
    let numbered = (2..).map(|number| path.with_file_name(format!("{name}.until-{when}-{number}")));
    std::iter::once(dated.clone()).chain(numbered).find(|path| !path.exists()).unwrap_or(dated)
}

/// The names of what lies in a folder.
fn names_in(folder: &Path) -> std::io::Result<BTreeSet<OsString>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// The folder's lock, with a note that says whose it is; none where it was removed meanwhile.
fn lock(folder: &Path) -> anyhow::Result<Option<File>> {
    let file = folder.join("lock");
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&file);
    let mut lock = match opened {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("open {}", file.display()))?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            let (path, holder) = (folder.display(), holder.trim());
            let problem = format!("{path} belongs to a run that is under way ({holder}): stop it first");
            return Err(BadInput(problem).into());
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", file.display()));
        }
    }
    // A run that ended may have removed the file between the two: then this is a lock on nothing.
    let held = lock.metadata().with_context(|| format!("read {}", file.display()))?;
    if !std::fs::metadata(&file).is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
        return Ok(None);
    }
    let note = format!("process {}\n", std::process::id());
    let noted = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(note.as_bytes()));
    noted.with_context(|| format!("write {}", file.display()))?;
    Ok(Some(lock))
}

/// Whether the user is asked first, where there is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consent {
    Asked,
    /// It follows from what was asked for.
    Given,
}

/// Asks whether these may be moved, where somebody is there to answer.
fn is_wanted(names: &[String]) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(true);
    }
    say(&format!("move {} aside and do it again? [y/N]", names.join(", ")));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_holds_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let held = OutputFolder::take(folder.path()).unwrap();
        let error = OutputFolder::take(folder.path()).unwrap_err().to_string();
        let us = format!("(process {})", std::process::id());
        assert!(error.contains("belongs to a run that is under way") && error.contains(&us), "{error}");
        drop(held);
        OutputFolder::take(folder.path()).unwrap();
    }

    #[test]
    fn a_start_that_made_nothing_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("runs/x");
        let start = |path: &Path| {
            let output = OutputFolder::take(path).unwrap();
            std::fs::create_dir_all(path.join("ring/logs")).unwrap();
            std::fs::create_dir_all(path.join("stages")).unwrap();
            output
        };
        start(&path).forget_start();
        assert!(!parent.path().join("runs").exists(), "the folders above it were made by this start too");
        // A batch is trained: nothing is forgotten.
        let output = start(&path);
        std::fs::write(path.join("ring/steps.jsonl"), "{}\n").unwrap();
        output.forget_start();
        assert!(path.join("ring/logs").exists());
        // And nothing that an earlier start has made.
        std::fs::write(path.join("ring/steps.jsonl"), "").unwrap();
        let output = start(&path);
        std::fs::create_dir_all(path.join("ring-b")).unwrap();
        output.forget_start();
        assert!(path.join("ring/logs").exists() && !path.join("ring-b").exists());
        let mut output = start(&path);
        std::fs::create_dir_all(path.join("sft")).unwrap();
        output.keep();
        output.forget_start();
        assert!(path.join("sft").exists());
    }

    #[test]
    fn what_is_done_again_is_kept_under_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let output = OutputFolder::take(folder.path()).unwrap();
        let ring = folder.path().join("ring");
        std::fs::create_dir(&ring).unwrap();
        std::fs::write(ring.join("steps.jsonl"), "{}").unwrap();
        output.move_aside(&[&ring, &folder.path().join("never-made")], Consent::Given).unwrap();
        assert!(!ring.exists());
        let kept: Vec<PathBuf> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.join("steps.jsonl").is_file())
            .collect();
        assert!(
            matches!(&kept[..], [path] if path.display().to_string().contains("ring.until-")),
            "{kept:?}"
        );
        // In the same second too: each is kept.
        for again in 2..5 {
            std::fs::create_dir(&ring).unwrap();
            std::fs::write(ring.join("steps.jsonl"), "{}").unwrap();
            output.move_aside(&[&ring], Consent::Given).unwrap();
            let kept = std::fs::read_dir(folder.path()).unwrap();
            let kept = kept.filter(|entry| entry.as_ref().unwrap().path().join("steps.jsonl").is_file());
            assert_eq!(kept.count(), again);
        }
        let foreign = tempfile::tempdir().unwrap();
        assert!(output.move_aside(&[foreign.path()], Consent::Given).is_err());
    }
}
