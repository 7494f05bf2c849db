//! The file of samples: JSON lines that people read, bounded in size.
//!
//! When half the bound is full the file becomes `NAME.previous.jsonl` (the one before is replaced), and a new
//! one begins: both together stay below the bound, and the newest lines are always there.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The file, open at its end.
#[derive(Debug)]
pub(crate) struct SamplesFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

impl SamplesFile {
    /// Opens or begins the file. Half a last line, of a process that was killed, is ended.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let whole = match std::fs::read(path) {
            Ok(text) => text.last().is_none_or(|last| *last == b'\n'),
            Err(_) => true,
        };
        let mut this = Self { path: path.to_owned(), file: open(path)?, bytes: 0, max_bytes };
        this.bytes = this.file.metadata().with_context(|| this.doing("look at"))?.len();
        if !whole {
            this.write(b"\n")?;
        }
        Ok(this)
    }

    /// Adds a line, which comes without its end.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn append(&mut self, mut line: Vec<u8>) -> anyhow::Result<()> {
        line.push(b'\n');
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes / 2 {
            let previous = self.path.with_extension("previous.jsonl");
            std::fs::rename(&self.path, &previous).with_context(|| self.doing("move"))?;
            (self.file, self.bytes) = (open(&self.path)?, 0);
        }
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| self.doing("write"))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} the samples file {}", self.path.display())
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("open the samples file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_there_and_both_files_stay_below_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ring/samples.jsonl");
        let mut file = SamplesFile::open(&path, 1000).unwrap();
        for number in 0..200 {
            file.append(format!("{{\"number\": {number}}}").into_bytes()).unwrap();
            let previous = std::fs::read(path.with_extension("previous.jsonl")).unwrap_or_default();
            let bytes = std::fs::read(&path).unwrap().len() + previous.len();
            assert!(bytes <= 1000, "{bytes} bytes after {number}");
        }
        let lines = std::fs::read_to_string(&path).unwrap();
        assert!(lines.ends_with("{\"number\": 199}\n"), "{lines}");
        let previous = std::fs::read_to_string(path.with_extension("previous.jsonl")).unwrap();
        assert!(previous.len() > 400, "what was before is there too: {previous}");
    }

    #[test]
    fn half_a_line_of_a_killed_process_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        std::fs::write(&path, "{\"number\": 1}\n{\"num").unwrap();
        SamplesFile::open(&path, 1000).unwrap().append(b"{}".to_vec()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"number\": 1}\n{\"num\n{}\n");
    }
}
