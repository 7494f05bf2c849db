//! Scores and log-probs of whole files: `sluice score` and `sluice logprobs`.
//!
//! A line of the input is `{"id", "tokens"}`; fields beside them are ignored. Lines are read in windows of
//! bounded size, a window's sequences are computed longest first in batches of a token budget, and its
//! results are written in the input's order. So memory is bounded whatever the file's length. The output
//! appears under its name when it is complete.

use std::cmp::Reverse;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use model::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::DType;

use crate::network::{self, FrozenNetwork, HeadOutputs, Placement, Sequence};

/// Full batches that the lines of a window make.
const WINDOW_BATCH_COUNT: usize = 64;
/// No line of the input is longer.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// What to compute on and how.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOptions {
    /// The model's folder.
    pub model: PathBuf,
    /// A JSON Lines file of `{"id", "tokens"}`.
    pub input: PathBuf,
    /// Where the results go.
    pub output: PathBuf,
    /// The device that computes.
    pub device: Device,
    /// Element type in memory; that of the model's file where not given.
    pub dtype: Option<DType>,
    /// Most tokens of a batch.
    pub batch_tokens: usize,
    /// Temperature of log-probs.
    pub temperature: f64,
    /// Apply the mean and deviation that a reward model's folder stores.
    pub normalise: bool,
}

impl FileOptions {
    /// The usual way: on the processor, in the file's element type, at temperature 1, normalised.
    pub fn new(model: PathBuf, input: PathBuf, output: PathBuf) -> Self {
        Self {
            model,
            input,
            output,
            device: Device::Cpu,
            dtype: None,
            batch_tokens: crate::config::ModelsConfig::default().batch_tokens,
            temperature: 1.0,
            normalise: true,
        }
    }
}

/// How far a file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sequences done.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Bytes of the input read.
    pub bytes: u64,
    /// Bytes of the input.
    pub total_bytes: u64,
}

/// Why a file cannot be computed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] network::Error),
    /// A file cannot be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A line of the input is not what it should be.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The network's number is none.
    #[error("{path}:{line}: the model computes {number} for this sequence")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The number.
        number: f32,
    },
}

impl Error {
    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether the user's input is to blame, and not the system.
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Io { action: "write", .. } | Self::NotFinite { .. })
    }
}

/// A line of the output.
#[derive(Serialize)]
struct Scored<'a> {
    id: &'a Value,
    score: f32,
}

/// A line of the output.
#[derive(Serialize)]
struct WithLogprobs<'a> {
    id: &'a Value,
    logprobs: &'a [f32],
}

/// Writes `{"id", "score"}` for every line of the input.
///
/// # Errors
/// Names the file, and for a line its number. Then there is no output.
pub fn score_file(options: &FileOptions, progress: impl FnMut(Progress)) -> Result<Progress, Error> {
    let placement = Placement { device: options.device, dtype: options.dtype };
    let network = FrozenNetwork::reward_model(&options.model, placement, options.normalise)?;
    run(&network, options, progress)
}

/// Writes `{"id", "logprobs": [tokens - 1]}` for every line of the input: `log p(tokens[t + 1] | tokens[..=
/// t])`.
///
/// # Errors
/// Names the file, and for a line its number. Then there is no output.
pub fn logprobs_file(options: &FileOptions, progress: impl FnMut(Progress)) -> Result<Progress, Error> {
    let placement = Placement { device: options.device, dtype: options.dtype };
    let network = FrozenNetwork::policy(&options.model, placement, options.temperature)?;
    run(&network, options, progress)
}

fn run(
    network: &FrozenNetwork,
    options: &FileOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Progress, Error> {
    let budget = options.batch_tokens.max(1);
    let mut input = Input::open(&options.input)?;
    let mut output = Output::create(&options.output)?;
    let mut done = Progress { total_bytes: input.total_bytes, ..Progress::default() };
    loop {
        let window = input.window(budget.saturating_mul(WINDOW_BATCH_COUNT), network)?;
        if window.is_empty() {
            output.finish()?;
            return Ok(done);
        }
        let mut results: Vec<Option<HeadOutputs>> = vec![None; window.len()];
        for batch in batches(&window, budget) {
            let sequences: Vec<Sequence> =
                batch.iter().map(|at| Sequence { tokens: &window[*at].tokens, from: 1 }).collect();
            let tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
            let numbers = network
                .outputs(&sequences)
                .map_err(|error| input.wrong(window[batch[0]].number, error.to_string()))?;
            for (at, numbers) in batch.iter().zip(numbers) {
                results[*at] = Some(numbers);
            }
            done.sequences += batch.len() as u64;
            done.tokens += tokens as u64;
            progress(done);
        }
        for (line, numbers) in window.iter().zip(results) {
            check(&input.path, line.number, numbers.as_ref())?;
            output.write(&line.id, numbers.as_ref())?;
        }
        done.bytes = input.bytes;
        progress(done);
    }
}

/// The window's lines, longest first, in batches of at most `budget` tokens; a longer line is a batch of its
/// own.
fn batches(window: &[InputLine], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..window.len()).collect();
    order.sort_by_key(|at| Reverse(window[*at].tokens.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for at in order {
        let length = window[at].tokens.len();
        match batches.last_mut() {
            Some(batch) if tokens + length <= budget => {
                tokens += length;
                batch.push(at);
            }
            _ => {
                tokens = length;
                batches.push(vec![at]);
            }
        }
    }
    batches
}

fn check(path: &Path, line: u64, numbers: Option<&HeadOutputs>) -> Result<(), Error> {
    let bad = match numbers {
        Some(HeadOutputs::Score(score)) => Some(*score).filter(|score| !score.is_finite()),
        Some(HeadOutputs::Logprobs(logprobs)) => {
            logprobs.iter().copied().find(|logprob| !logprob.is_finite())
        }
        None => None,
    };
    match bad {
        Some(number) => Err(Error::NotFinite { path: path.to_owned(), line, number }),
        None => Ok(()),
    }
}

/// A line of the input.
#[derive(Debug)]
struct InputLine {
    number: u64,
    id: Value,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct RawLine {
    id: Value,
    tokens: Vec<u32>,
}

struct Input {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
    bytes: u64,
    total_bytes: u64,
}

impl Input {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::io("read", path, source))?;
        let total_bytes = file.metadata().map_err(|source| Error::io("read", path, source))?.len();
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), number: 0, bytes: 0, total_bytes })
    }

    /// The next lines, until they hold `tokens` tokens; none at the end of the file.
    fn window(&mut self, tokens: usize, network: &FrozenNetwork) -> Result<Vec<InputLine>, Error> {
        let mut window: Vec<InputLine> = Vec::new();
        let mut taken = 0;
        while taken < tokens
            && let Some(line) = self.line(network)?
        {
            // A line weighs at least 64, so that many short ones do not make a large window.
            taken += line.tokens.len().max(64);
            window.push(line);
        }
        Ok(window)
    }

    fn line(&mut self, network: &FrozenNetwork) -> Result<Option<InputLine>, Error> {
        let mut text = Vec::new();
        while text.trim_ascii().is_empty() {
            text.clear();
            self.number += 1;
            let read = (&mut self.reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
            let read = read.map_err(|source| Error::io("read", &self.path, source))? as u64;
            self.bytes += read;
            match read {
                0 => return Ok(None),
                MAX_LINE_BYTES => {
                    return Err(self.wrong(self.number, format!("is longer than {MAX_LINE_BYTES} bytes")));
                }
                _ => {}
            }
        }
        let RawLine { id, tokens } = serde_json::from_slice(&text)
            .map_err(|error| self.wrong(self.number, format!("is no {{\"id\", \"tokens\"}}: {error}")))?;
        if tokens.is_empty() {
            return Err(self.wrong(self.number, "has no tokens".to_owned()));
        }
        if let Some((token, vocabulary)) = network.foreign_token(&tokens) {
            let problem = format!("token {token} is outside the model's vocabulary of {vocabulary}");
            return Err(self.wrong(self.number, problem));
        }
        Ok(Some(InputLine { number: self.number, id, tokens }))
    }

    fn wrong(&self, line: u64, problem: String) -> Error {
        Error::Line { path: self.path.clone(), line, problem }
    }
}

/// A file that gets its name when it is complete.
struct Output {
    path: PathBuf,
    partial: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl Output {
    fn create(path: &Path) -> Result<Self, Error> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|source| Error::io("write", &partial, source))?;
        Ok(Self { path: path.to_owned(), partial, writer: Some(BufWriter::new(file)) })
    }

    fn write(&mut self, id: &Value, numbers: Option<&HeadOutputs>) -> Result<(), Error> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let written = match numbers {
            Some(HeadOutputs::Score(score)) => {
                serde_json::to_writer(&mut *writer, &Scored { id, score: *score })
            }
            Some(HeadOutputs::Logprobs(logprobs)) => {
                serde_json::to_writer(&mut *writer, &WithLogprobs { id, logprobs })
            }
            None => Ok(()),
        };
        let written = written.map_err(std::io::Error::from).and_then(|()| writer.write_all(b"\n"));
        written.map_err(|source| Error::io("write", &self.partial, source))
    }

    fn finish(mut self) -> Result<(), Error> {
        if let Some(mut writer) = self.writer.take() {
            writer.flush().map_err(|source| Error::io("write", &self.partial, source))?;
        }
        std::fs::rename(&self.partial, &self.path).map_err(|source| Error::io("write", &self.path, source))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.writer.is_some() {
            // The error that led here is the one to report.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
