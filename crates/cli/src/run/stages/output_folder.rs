//! The folder that a run owns: locked while the run is under way, and never emptied by advice
//! (`docs/decisions.md`, D25).

use std::fs::{File, TryLockError};
use std::io::{IsTerminal as _, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use service::BadInput;

/// An output folder, held by this process until it is dropped.
#[derive(Debug)]
pub(super) struct OutputFolder {
    path: PathBuf,
    _lock: File,
}

impl OutputFolder {
    /// Takes the folder, which is made where it is missing.
    ///
    /// # Errors
    /// When another run holds it, whose process is named.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        let file = path.join("lock");
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&file);
        let mut lock = opened.with_context(|| format!("open {}", file.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let (path, holder) = (path.display(), holder.trim());
                let problem = format!("{path} belongs to a run that is under way ({holder}): stop it first");
                return Err(BadInput(problem).into());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", file.display()));
            }
        }
        let note = format!("process {}\n", std::process::id());
        let noted =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(note.as_bytes()));
        noted.with_context(|| format!("write {}", file.display()))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
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
        let when = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ");
        for path in there {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside = path.with_file_name(format!("{name}.until-{when}"));
            let moved = std::fs::rename(path, &aside);
            moved.with_context(|| format!("move {} to {}", path.display(), aside.display()))?;
            eprintln!("{} is now {}", path.display(), aside.display());
        }
        Ok(())
    }
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
    eprint!("move {} aside and do it again? [y/N] ", names.join(", "));
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
        let foreign = tempfile::tempdir().unwrap();
        assert!(output.move_aside(&[foreign.path()], Consent::Given).is_err());
    }
}
