//! Scores and log-probs of whole files: `sluice score` and `sluice logprobs`.
//!
//! A line of the input is `{"tokens"}`, a sequence, or `{"prompt_tokens", "response_tokens"}`, a response as
//! `sluice generate` writes it. Of a sequence the result is written with its `id`; of a response all that the
//! line holds, and the result beside it. Where there is no `id` the line's number stands for it. Lines are
//! read in windows of bounded size, a window's sequences are computed longest first in batches of a token
//! budget, and its results are written in the input's order. So memory is bounded whatever the file's length.
//! An episode of several sequences (`sequence_begins`) has each computed by itself: the score is that of the
//! last one, and a token with which a further one begins has a log-prob of 0, as nobody drew it.
//! The output appears under its name when it is complete; `-` is standard input and output.

mod lines;

use std::cmp::Reverse;
use std::path::PathBuf;

use model::Device;
use service::BadInput;
use service::jsonl::WrongLines;
use types::DType;

use self::lines::{Input, InputLine, Output, Part};
use crate::network::{self, FrozenNetwork, HeadOutputs, Placement, Sequence};
use crate::temperature::Temperature;

/// Full batches that the lines of a window make.
const WINDOW_BATCH_COUNT: usize = 64;

/// What to compute on and how.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOptions {
    /// The model's folder.
    pub model: PathBuf,
    /// A JSON Lines file of sequences or responses.
    pub input: PathBuf,
    /// Where the results go.
    pub output: PathBuf,
    /// The key under which log-probs of responses are written.
    pub logprobs_key: String,
    /// Whether lines that are wrong are passed over.
    pub keep_going: bool,
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
            logprobs_key: "logprobs".to_owned(),
            keep_going: false,
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
    /// Bytes of the input; 0 where they are not known.
    pub total_bytes: u64,
}

/// Why a file cannot be computed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] network::Error),
    /// A line of the input is not what it should be, or lines were passed over.
    #[error(transparent)]
    Input(#[from] BadInput),
    /// The results cannot be written.
    #[error("{0:#}")]
    Write(anyhow::Error),
    /// The network's number is none.
    #[error("{place}: the model computes {number} for this sequence")]
    NotFinite {
        /// File and line.
        place: String,
        /// The number.
        number: f32,
    },
}

impl Error {
    /// Whether the user's input is to blame, and not the system.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Model(_) | Self::Input(_))
    }
}

/// Writes a `score` for every line of the input.
///
/// # Errors
/// Names the file, and for a line its number. Then there is no output. Lines that were passed over are an
/// error beside the output.
pub fn score_file(options: &FileOptions, progress: impl FnMut(Progress)) -> Result<Progress, Error> {
    let placement = Placement { device: options.device, dtype: options.dtype };
    let network = FrozenNetwork::reward_model(&options.model, placement, options.normalise)?;
    run(&network, options, progress)
}

/// Writes `logprobs` for every line of the input: of a sequence `[tokens - 1]`, `log p(tokens[t + 1] |
/// tokens[..= t])`; of a response `[response]`, those of its own tokens.
///
/// # Errors
/// As [`score_file`].
pub fn logprobs_file(options: &FileOptions, progress: impl FnMut(Progress)) -> Result<Progress, Error> {
    let placement = Placement { device: options.device, dtype: options.dtype };
    let network =
        FrozenNetwork::policy(&options.model, placement, Temperature::of(Some(options.temperature)))?;
    run(&network, options, progress)
}

fn run(
    network: &FrozenNetwork,
    options: &FileOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Progress, Error> {
    let budget = options.batch_tokens.max(1);
    let wrong = WrongLines::new(options.keep_going);
    let mut input = Input::open(&options.input, &wrong)?;
    let mut output = Output::create(options)?;
    let mut done = Progress { total_bytes: input.total_bytes(), ..Progress::default() };
    loop {
        let window = input.window(budget.saturating_mul(WINDOW_BATCH_COUNT), network)?;
        if window.is_empty() {
            output.finish()?;
            wrong.finish()?;
            return Ok(done);
        }
        // The sequences of all lines, each with the place of its line.
        let parts: Vec<(usize, &Part)> = (0..)
            .zip(&window)
            .flat_map(|(at, line): (usize, &InputLine)| line.parts.iter().map(move |part| (at, part)))
            .collect();
        let mut results: Vec<Option<HeadOutputs>> = vec![None; parts.len()];
        for batch in batches(&parts, budget) {
            let sequences: Vec<Sequence> = batch
                .iter()
                .map(|at| Sequence { tokens: &parts[*at].1.tokens, from: parts[*at].1.from })
                .collect();
            let tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
            let numbers = network.outputs(&sequences);
            let numbers = numbers.map_err(|error| window[parts[batch[0]].0].wrong(&error.to_string()))?;
            for (at, numbers) in batch.iter().zip(numbers) {
                results[*at] = Some(numbers);
            }
            done.sequences += batch.len() as u64;
            done.tokens += tokens as u64;
            progress(done);
        }
        let mut found = parts.iter().map(|(at, _)| *at).zip(results).peekable();
        for (at, line) in window.iter().enumerate() {
            let of_line = std::iter::from_fn(|| found.next_if(|(of, _)| *of == at));
            let numbers = joined(of_line.filter_map(|(_, numbers)| numbers));
            check(line, numbers.as_ref())?;
            output.write(line, numbers.as_ref())?;
        }
        done.bytes = input.bytes();
        progress(done);
    }
}

/// What a line's sequences give together: the score of the last one, as in a ring, or a log-prob for each
/// token behind the first one's prompt, where those with which a further sequence begins have 0.
fn joined(numbers: impl Iterator<Item = HeadOutputs>) -> Option<HeadOutputs> {
    numbers.reduce(|before, further| match (before, further) {
        (HeadOutputs::Logprobs(mut all), HeadOutputs::Logprobs(further)) => {
            all.push(0.0);
            all.extend(further);
            HeadOutputs::Logprobs(all)
        }
        (_, further) => further,
    })
}

/// A window's sequences, longest first, in batches of at most `budget` tokens; a longer one is a batch of its
/// own.
fn batches(parts: &[(usize, &Part)], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|at| Reverse(parts[*at].1.tokens.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for at in order {
        let length = parts[at].1.tokens.len();
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

fn check(line: &InputLine, numbers: Option<&HeadOutputs>) -> Result<(), Error> {
    let bad = match numbers {
        Some(HeadOutputs::Score(score)) => Some(*score).filter(|score| !score.is_finite()),
        Some(HeadOutputs::Logprobs(logprobs)) => {
            logprobs.iter().copied().find(|logprob| !logprob.is_finite())
        }
        None => None,
    };
    match bad {
        Some(number) => Err(Error::NotFinite { place: line.place(), number }),
        None => Ok(()),
    }
}
