//! JSON Lines, plain or gzipped, one line at a time: errors name the file and the line. `-` is standard input
//! and output.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::BadInput;

/// Longest line, in bytes: a bound against files that are no JSON Lines.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// What some editors put in front of a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Wrong lines that are said one by one; more are only counted.
const SAID_LIMIT: u64 = 100;

/// What a command does about the lines of its input that are wrong: the first ends it, or each is said,
/// counted and passed over, and the command ends with [`WrongLines::finish`].
#[derive(Debug, Default)]
pub struct WrongLines {
    keep_going: bool,
    count: AtomicU64,
}

impl WrongLines {
    /// Passes over what is wrong if `keep_going`.
    pub fn new(keep_going: bool) -> Self {
        Self { keep_going, count: AtomicU64::new(0) }
    }

    /// Whether lines that are wrong are passed over.
    pub fn keep_going(&self) -> bool {
        self.keep_going
    }

    /// What a line came to; none where it is wrong and passed over.
    pub fn sift<T>(&self, line: Result<T, BadInput>) -> Option<Result<T, BadInput>> {
        match line {
            Ok(right) => Some(Ok(right)),
            Err(BadInput(problem)) if !self.keep_going => {
                Some(Err(BadInput(format!("{problem} (--keep-going passes over lines that are wrong)"))))
            }
            Err(problem) => {
                let before = self.count.fetch_add(1, Ordering::Relaxed);
                let more = if before == SAID_LIMIT { "; what else is wrong is counted" } else { "" };
                if before <= SAID_LIMIT {
                    // Nobody may be listening; the count is told at the end.
                    let _ = writeln!(io::stderr(), "{problem}: passed over{more}");
                }
                None
            }
        }
    }

    /// Ends a command that passed over lines, once everything else is done.
    ///
    /// # Errors
    /// How many there were.
    pub fn finish(&self) -> Result<(), BadInput> {
        match self.count.load(Ordering::Relaxed) {
            0 => Ok(()),
            1 => Err(BadInput("1 line was wrong and passed over; the others are done".to_owned())),
            count => Err(BadInput(format!("{count} lines were wrong and passed over; the others are done"))),
        }
    }
}

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

    /// Its place in the file, from 1.
    pub fn number(&self) -> usize {
        self.number
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

/// The lines of a file; `-` is standard input. Empty lines are skipped. A line that is wrong in itself is
/// followed by the others; a file that cannot be read any further ends with its error.
///
/// # Errors
/// When the file cannot be opened.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Line, BadInput>> + use<>, BadInput> {
    let reader = open(path).map_err(|error| BadInput(format!("cannot read {}: {error}", path.display())))?;
    let lines = Lines { path: path.to_owned(), reader: Some(BufReader::new(reader)), number: 0 };
    Ok(lines.filter(|line| line.as_ref().map_or(true, |line| !line.text.trim().is_empty())))
}

/// The lines of a file, empty ones too.
struct Lines {
    path: PathBuf,
    /// None once it cannot be read any further.
    reader: Option<BufReader<Box<dyn Read>>>,
    number: usize,
}

impl Iterator for Lines {
    type Item = Result<Line, BadInput>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        self.number += 1;
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes);
        let mut line = Line { path: self.path.clone(), number: self.number, text: String::new() };
        match read {
            Ok(0) => return None,
            Ok(length) if length as u64 == MAX_LINE_BYTES => {
                self.reader = None;
                return Some(Err(line.wrong(&format!("is longer than {MAX_LINE_BYTES} bytes"))));
            }
            Ok(_) => {}
            Err(error) => {
                self.reader = None;
                return Some(Err(line.wrong(&error.to_string())));
            }
        }
        Some(match String::from_utf8(bytes) {
            Ok(mut text) => {
                // Files from Windows begin with a mark of their encoding.
                if self.number == 1 && text.starts_with(BYTE_ORDER_MARK) {
                    text.drain(..BYTE_ORDER_MARK.len_utf8());
                }
                line.text = text;
                Ok(line)
            }
            Err(error) => Err(line.wrong(&format!("is no UTF-8: {error}"))),
        })
    }
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
    fn a_mark_of_the_encoding_is_no_part_of_the_first_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all("\u{feff}{\"a\": 1}\r\n\u{feff}{\"a\": 2}\r\n".as_bytes()).unwrap();
        let lines: Vec<Line> = read(file.path()).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(lines[0].parse::<serde_json::Value>().unwrap()["a"], 1);
        let error = lines[1].parse::<serde_json::Value>().unwrap_err().to_string();
        assert!(error.contains(":2: "), "nowhere but at the beginning: {error}");
        let only = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(only.path(), "\u{feff}\n").unwrap();
        assert_eq!(read(only.path()).unwrap().count(), 0, "an empty file");
    }

    #[test]
    fn a_wrong_line_ends_a_command_or_is_counted() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"1\n{\n\xff\xfe\n4\n").unwrap();
        let sifted = |wrong: &WrongLines| {
            let lines = read(file.path()).unwrap();
            lines.filter_map(|line| wrong.sift(line.and_then(|line| line.parse::<u32>()))).collect::<Vec<_>>()
        };
        let kept = WrongLines::new(true);
        let right: Vec<u32> = sifted(&kept).into_iter().map(Result::unwrap).collect();
        assert_eq!(right, [1, 4]);
        assert!(kept.finish().unwrap_err().to_string().starts_with("2 lines were wrong"));
        let first = sifted(&WrongLines::default()).into_iter().find_map(Result::err).unwrap().to_string();
        assert!(first.contains(":2: ") && first.contains("--keep-going"), "{first}");
        WrongLines::new(true).finish().unwrap();
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
