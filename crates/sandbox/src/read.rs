//! Readers for files of problems and samples: JSON lines, plain or gzip, one record at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::competition::competition_problem;
use crate::problem::{HumanEval, Mbpp, Problem};

/// A line longer than this is not a record of any of these files.
const LINE_LIMIT_BYTES: u64 = 256 << 20;

/// What some editors put in front of a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A file that cannot be read, or a line in it.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file itself.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// One line of it.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// A problem of a file, with the solution that some files carry.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The problem.
    pub problem: Problem,
    /// A response that solves it, where the file has one.
    pub reference: Option<String>,
}

/// Streams the problems of a `.jsonl` or `.jsonl.gz` file (told apart by content, not by name): lines in the
/// shape of HumanEval, of LeetCodeDataset, of MBPP (full or sanitised), of DeepSeek-Coder's LeetCode
/// contests, of APPS, of LiveCodeBench, or a tagged [`Problem`]. Empty lines are skipped.
///
/// # Errors
/// [`ReadError::File`] where the file cannot be opened; each item is a [`ReadError::Line`] where its line is
/// broken.
pub fn read_problems(
    path: &Path,
) -> Result<impl Iterator<Item = Result<Record, ReadError>> + use<>, ReadError> {
    Ok(lines(path)?.map(|line| {
        let line = line?;
        record(line.parse()?).map_err(|error| line.wrong(error.to_string()))
    }))
}

/// The problem of one line.
///
/// # Errors
/// What is wrong with it, in words.
pub fn read_problem(line: &str) -> Result<Record, NoProblem> {
    record(serde_json::from_str(line)?)
}

/// The lines of a plain or compressed file that are not empty.
fn lines(path: &Path) -> Result<impl Iterator<Item = Result<RawLine, ReadError>> + use<>, ReadError> {
    let text = open(path).map_err(|source| ReadError::File { path: path.to_owned(), source })?;
    let all = LineReader { path: path.to_owned(), text, number: 0 };
    Ok(all.filter(|line| line.as_ref().map_or(true, |line| !line.text.trim_ascii().is_empty())))
}

/// The text of a plain or compressed file.
fn open(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    let mut plain = BufReader::new(File::open(path)?);
    let compressed = plain.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(if compressed { Box::new(BufReader::new(MultiGzDecoder::new(plain))) } else { Box::new(plain) })
}

/// The fields of OpenAI's file.
#[derive(Deserialize)]
struct HumanEvalLine {
    task_id: String,
    prompt: String,
    entry_point: String,
    /// `completion` in LeetCodeDataset, whose lines have this shape too.
    #[serde(alias = "completion")]
    canonical_solution: Option<String>,
    test: String,
    #[serde(default)]
    mutates_arguments: bool,
}

/// The fields of Google's file, and of its sanitised version.
#[derive(Deserialize)]
struct MbppLine {
    task_id: Value,
    code: Option<String>,
    #[serde(default)]
    test_setup_code: String,
    #[serde(default)]
    test_imports: Vec<String>,
    test_list: Vec<String>,
    entry_point: Option<String>,
    #[serde(default)]
    mutates_arguments: bool,
}

/// The fields of DeepSeek-Coder's file of LeetCode contests: a script that uses the response's `Solution`.
#[derive(Deserialize)]
struct ContestLine {
    task_id: Value,
    test: String,
    #[serde(default)]
    mutates_arguments: bool,
}

/// Why a line is no problem.
#[derive(Debug, thiserror::Error)]
pub enum NoProblem {
    /// It is no JSON, or a field is none of its shape.
    #[error(transparent)]
    Fields(#[from] serde_json::Error),
    /// It has the shape of no file that is known.
    #[error(
        "no problem: expected HumanEval's `prompt`, `entry_point` and `test`, MBPP's `test_list`, a contest's \
         `test`, APPS' `input_output`, LiveCodeBench's `public_test_cases`, or a `kind`"
    )]
    Shape,
    /// It cannot be graded: its name, and why.
    #[error("problem {0} {1}")]
    Refused(String, &'static str),
}

fn record(value: Value) -> Result<Record, NoProblem> {
    let record = parsed(value)?;
    match record.problem.refusal() {
        Some(refusal) => Err(NoProblem::Refused(record.problem.task_id().to_owned(), refusal)),
        None => Ok(record),
    }
}

fn parsed(value: Value) -> Result<Record, NoProblem> {
    if value.get("kind").is_some() {
        let problem = serde_json::from_value(value)?;
        return Ok(Record { problem, reference: None });
    }
    if value.get("test_list").is_some() {
        let line: MbppLine = serde_json::from_value(value)?;
        let task_id = name(&line.task_id);
        let mut setup = line.test_imports.join("\n");
        setup.push('\n');
        setup.push_str(&line.test_setup_code);
        let problem = Problem::Mbpp(Mbpp {
            task_id,
            test_setup_code: setup,
            test_list: line.test_list,
            entry_point: line.entry_point,
            mutates_arguments: line.mutates_arguments,
            prelude: String::new(),
        });
        return Ok(Record { problem, reference: line.code });
    }
    if value.get("entry_point").is_some() && value.get("test").is_some() {
        let line: HumanEvalLine = serde_json::from_value(value)?;
        let problem = Problem::HumanEval(HumanEval {
            task_id: line.task_id,
            prompt: line.prompt,
            entry_point: line.entry_point,
            test: line.test,
            mutates_arguments: line.mutates_arguments,
        });
        return Ok(Record { problem, reference: line.canonical_solution });
    }
    if value.get("test").is_some_and(Value::is_string) {
        let line: ContestLine = serde_json::from_value(value)?;
        let contest = Mbpp::of_contest(name(&line.task_id), line.test, line.mutates_arguments);
        let problem = Problem::Mbpp(contest);
        return Ok(Record { problem, reference: None });
    }
    // LeetCodeDataset has an `input_output` of its own, beside its tests.
    if let Some(line) = value.as_object()
        && let Some(problem) = competition_problem(line)?
    {
        return Ok(Record { problem, reference: None });
    }
    Err(NoProblem::Shape)
}

/// A problem's name, which some files have as a number.
fn name(task_id: &Value) -> String {
    task_id.as_str().map_or_else(|| task_id.to_string(), str::to_owned)
}

/// One line and where it stands.
struct RawLine {
    path: PathBuf,
    number: u64,
    text: Vec<u8>,
}

impl RawLine {
    fn wrong(&self, reason: String) -> ReadError {
        ReadError::Line { path: self.path.clone(), line: self.number, reason }
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, ReadError> {
        serde_json::from_slice(&self.text).map_err(|error| self.wrong(error.to_string()))
    }
}

struct LineReader {
    path: PathBuf,
    text: Box<dyn BufRead + Send>,
    number: u64,
}

impl Iterator for LineReader {
    type Item = Result<RawLine, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.number += 1;
        let mut line = RawLine { path: self.path.clone(), number: self.number, text: Vec::new() };
        let reason = match self.text.by_ref().take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line.text) {
            Ok(0) => return None,
            Ok(length) if (length as u64) < LINE_LIMIT_BYTES => {
                // Files from Windows begin with a mark of their encoding.
                if self.number == 1 && line.text.starts_with(BYTE_ORDER_MARK) {
                    line.text.drain(..BYTE_ORDER_MARK.len());
                }
                return Some(Ok(line));
            }
            Ok(_) => format!("longer than {LINE_LIMIT_BYTES} bytes"),
            Err(error) => error.to_string(),
        };
        // A broken stream stays broken: say so once, then end.
        self.text = Box::new(io::empty());
        Some(Err(line.wrong(reason)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    const HUMAN_EVAL: &str = r#"{"task_id":"T/0","prompt":"def f():\n","entry_point":"f","canonical_solution":"  return 1","test":"def check(candidate): pass"}"#;
    const MBPP: &str = r#"{"text":"words","code":"def f(): pass","task_id":11,"test_setup_code":"x = 1","test_imports":["import math"],"test_list":["assert f()"],"challenge_test_list":[]}"#;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn both_shapes_are_read_plain_and_compressed() {
        let text = format!("{HUMAN_EVAL}\n\n{MBPP}\n");
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        let marked = format!("\u{feff}{}", text.replace('\n', "\r\n"));
        for bytes in [text.clone().into_bytes(), gzip.finish().unwrap(), marked.into_bytes()] {
            let file = file(&bytes);
            let records: Vec<_> = read_problems(file.path()).unwrap().collect::<Result<_, _>>().unwrap();
            assert_eq!(records.len(), 2);
            assert_eq!(records[0].problem.prompt(), "def f():\n");
            assert_eq!(records[0].reference.as_deref(), Some("  return 1"));
            let Problem::Mbpp(mbpp) = &records[1].problem else { panic!("{:?}", records[1]) };
            assert_eq!((mbpp.task_id.as_str(), mbpp.test_setup_code.as_str()), ("11", "import math\nx = 1"));
        }
    }

    #[test]
    fn a_broken_line_is_named_and_the_others_are_still_read() {
        let file = file(format!("{HUMAN_EVAL}\n{{\"task_id\": 3\n\n{{\"prompt\": 1}}\n{MBPP}").as_bytes());
        let items: Vec<_> = read_problems(file.path()).unwrap().collect();
        let wrong: Vec<String> =
            items.iter().filter_map(|item| item.as_ref().err().map(ToString::to_string)).collect();
        assert_eq!(items.len() - wrong.len(), 2);
        assert!(wrong[0].contains(":2: EOF while parsing"), "{}", wrong[0]);
        assert!(wrong[1].contains(":4: no problem"), "{}", wrong[1]);
    }

    #[test]
    fn leetcode_problems_are_read_in_both_shapes_and_a_problem_without_tests_is_named() {
        let dataset = r#"{"task_id":"two-sum","prompt":"import math\n","completion":"class Solution: pass","entry_point":"Solution().f","test":"def check(candidate): pass","query":"words","meta":{}}"#;
        let contest = r#"{"task_id":1,"prompt":"words","test":"my_solution = Solution()\nassert my_solution.f(1) == 2"}"#;
        let untested = r#"{"task_id":"MB/7","test_list":[],"code":"def f(): pass"}"#;
        let file = file(format!("{dataset}\n{contest}\n{untested}\n").as_bytes());
        let items: Vec<_> = read_problems(file.path()).unwrap().collect();
        let record = items[0].as_ref().unwrap();
        assert_eq!(record.reference.as_deref(), Some("class Solution: pass"));
        let Problem::Mbpp(mbpp) = &items[1].as_ref().unwrap().problem else { panic!("{:?}", items[1]) };
        assert_eq!(mbpp.test_list.len(), 1);
        assert!(mbpp.prelude.contains("from typing import *"));
        let refused = items[2].as_ref().unwrap_err().to_string();
        assert!(refused.contains(":3: problem MB/7 has no tests"), "{refused}");
    }

    #[test]
    fn a_truncated_archive_is_an_error_with_the_line_it_broke_on() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
        gzip.write_all(format!("{HUMAN_EVAL}\n").repeat(3).as_bytes()).unwrap();
        let bytes = gzip.finish().unwrap();
        let file = file(&bytes[..bytes.len() / 2]);
        let items: Vec<_> = read_problems(file.path()).unwrap().collect();
        assert!(items.first().is_some_and(Result::is_ok));
        assert!(
            items.last().is_some_and(|item| matches!(item, Err(ReadError::Line { line: 2, .. }))),
            "{items:?}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_problems(Path::new("/does/not/exist.jsonl")).err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.starts_with("/does/not/exist.jsonl: No such file")));
    }
}
