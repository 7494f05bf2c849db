//! A file of lines that grows, read piece by piece.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Reads what is new.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// Bytes read so far: whole lines.
    read: u64,
}

/// Whether a file goes on where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// It does.
    GoesOn,
    /// It is shorter than before: what was read of it holds no more.
    BeganAnew,
}

impl Follower {
    /// Of a file that need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands on the lines that were added since the last call. Half a last line waits for its other half.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(&mut self, mut line: impl FnMut(Continuity, &[u8])) -> std::io::Result<()> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut continuity = Continuity::GoesOn;
        if file.metadata()?.len() < self.read {
            self.read = 0;
            continuity = Continuity::BeganAnew;
        }
        let mut reader = BufReader::with_capacity(1 << 18, file);
        reader.seek(SeekFrom::Start(self.read))?;
        let mut text = Vec::new();
        loop {
            text.clear();
            let count = reader.read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') {
                return Ok(());
            }
            self.read += count as u64;
            line(continuity, &text);
            continuity = Continuity::GoesOn;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn lines(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        follower
            .read(|continuity, line| {
                let mark = if continuity == Continuity::BeganAnew { "anew " } else { "" };
                lines.push(format!("{mark}{}", String::from_utf8_lossy(line).trim_end()));
            })
            .unwrap();
        lines
    }

    #[test]
    fn lines_come_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut follower = Follower::new(path.clone());
        assert!(lines(&mut follower).is_empty(), "no file yet");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(lines(&mut follower), ["one"]);
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(lines(&mut follower), ["two", "three"]);
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(lines(&mut follower), ["anew four"]);
    }
}
