//! JSON Lines, plain or gzipped, one line at a time: errors name the file and the line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::BadInput;

/// Longest line, in bytes: a bound against files that are no JSON Lines.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// One line of a file, not yet parsed.
#[derive(Debug, Clone)]
pub struct Line {
    path: PathBuf,
    number: usize,
    text: String,
}

impl Line {
    /// Parses it.
    ///
    /// # Errors
    /// Names file, line and problem.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, BadInput> {
        serde_json::from_str(&self.text).map_err(|error| self.wrong(&error.to_string()))
    }

    /// The line as it stands in the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// File and number, for errors about it.
    pub fn place(&self) -> String {
        format!("{}:{}", self.path.display(), self.number)
    }

    /// An error about it.
    pub fn wrong(&self, problem: &str) -> BadInput {
        BadInput(format!("{}: {problem}", self.place()))
    }
}

/// The lines of a file; `-` is standard input. Empty lines are skipped.
///
/// # Errors
/// When the file cannot be opened.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Line, BadInput>> + use<>, BadInput> {
    let reader = open(path).map_err(|error| BadInput(format!("cannot read {}: {error}", path.display())))?;
    let mut reader = BufReader::new(reader);
    let path = path.to_owned();
    let lines = (1..).map_while(move |number| {
        let mut text = String::new();
        let problem = match (&mut reader).take(MAX_LINE_BYTES).read_line(&mut text) {
            Ok(0) => return None,
            Ok(_) if text.len() as u64 == MAX_LINE_BYTES => {
                Some(format!("is longer than {MAX_LINE_BYTES} bytes"))
            }
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        let line = Line { path: path.clone(), number, text };
        Some(match problem {
            Some(problem) => Err(line.wrong(&problem)),
            None => Ok(line),
        })
    });
    Ok(lines.filter(|line| line.as_ref().map_or(true, |line| !line.text.trim().is_empty())))
}

/// A file's text; gzip is recognised by its content, `-` is standard input.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    let mut file = BufReader::new(File::open(path)?);
    let gzipped = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

/// A file of lines being written; `-` is standard output.
pub struct Writer {
    path: PathBuf,
    output: Box<dyn Write>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Writer {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let output: Box<dyn Write> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = File::create(path);
            Box::new(BufWriter::new(file.with_context(|| format!("write {}", path.display()))?))
        };
        Ok(Self { path: path.to_owned(), output })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write<T: Serialize>(&mut self, row: &T) -> anyhow::Result<()> {
        let text = serde_json::to_string(row)?;
        writeln!(self.output, "{text}").with_context(|| format!("write {}", self.path.display()))
    }

    /// Makes sure that all of it has reached the operating system.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.output.flush().with_context(|| format!("write {}", self.path.display()))
    }
}

/// Writes rows to a file.
///
/// # Errors
/// When it cannot be written.
pub fn write<'a, T: Serialize + 'a>(path: &Path, rows: impl Iterator<Item = &'a T>) -> anyhow::Result<()> {
    let mut writer = Writer::create(path)?;
    for row in rows {
        writer.write(row)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn lines_are_counted_and_broken_ones_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"a\": 1}\n\n{\"a\": \n").unwrap();
        let lines: Vec<Line> = read(file.path()).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].parse::<serde_json::Value>().unwrap()["a"], 1);
        let error = lines[1].parse::<serde_json::Value>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:3: ", file.path().display())), "{error}");
        assert!(read(Path::new("/nowhere.jsonl")).is_err());
    }

    #[test]
    fn gzip_is_recognised_by_its_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file.reopen().unwrap(), flate2::Compression::fast());
        encoder.write_all(b"{\"a\": 1}\n").unwrap();
        encoder.finish().unwrap();
        assert_eq!(read(file.path()).unwrap().count(), 1);
    }
}
