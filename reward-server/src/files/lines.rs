//! The lines that come in and go out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use service::BadInput;
use service::jsonl::{self, Line, Writer, WrongLines};

use super::{Error, FileOptions};
use crate::network::{FrozenNetwork, HeadOutputs};

/// A line of the input.
#[derive(Debug)]
pub(super) struct InputLine {
    line: Line,
    id: Value,
    /// What goes through the network: a sequence, or those of an episode, each of which sees nothing of the
    /// others.
    pub(super) parts: Vec<Part>,
    /// A response: what else the line holds is written too.
    is_response: bool,
}

/// A sequence of tokens.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) tokens: Vec<u32>,
    /// The first token whose log-prob is wanted.
    pub(super) from: usize,
}

#[derive(Deserialize)]
struct Fields {
    id: Option<Value>,
    tokens: Option<Vec<u32>>,
    prompt_tokens: Option<Vec<u32>>,
    response_tokens: Option<Vec<u32>>,
    /// Of a response, as `sluice generate` writes it: no whole sequence has it.
    finish_reason: Option<IgnoredAny>,
    /// Of an episode: the places among the response's tokens with which further sequences begin.
    #[serde(default)]
    sequence_begins: Vec<usize>,
}

impl InputLine {
    fn of(line: Line, network: &FrozenNetwork) -> Result<Self, BadInput> {
        let Fields { id, tokens, prompt_tokens, response_tokens, finish_reason, sequence_begins } =
            line.parse()?;
        let id = id.unwrap_or_else(|| line.number().into());
        let (parts, is_response) = match (prompt_tokens, response_tokens, tokens) {
            (Some(prompt), Some(response), _) => {
                if prompt.is_empty() || response.is_empty() {
                    return Err(
                        line.wrong("has no prompt_tokens or no response_tokens: both need at least one")
                    );
                }
                (parts(prompt, &response, &sequence_begins).map_err(|problem| line.wrong(&problem))?, true)
            }
            (None, None, Some(tokens)) if finish_reason.is_none() => (vec![Part { tokens, from: 1 }], false),
            (None, None, Some(_)) => {
                return Err(line.wrong(
                    "has the tokens of a response without its prompt's, whose numbers would mean nothing: give \
                     prompt_tokens and response_tokens, as sluice generate writes them",
                ));
            }
            _ => {
                return Err(line.wrong(
                    "must have tokens (a whole sequence), or prompt_tokens and response_tokens (a response)",
                ));
            }
        };
        for Part { tokens, .. } in &parts {
            if tokens.is_empty() {
                return Err(line.wrong("has no tokens"));
            }
            if let Some((token, vocabulary)) = network.foreign_token(tokens) {
                return Err(
                    line.wrong(&format!("token {token} is outside the model's vocabulary of {vocabulary}"))
                );
            }
        }
        Ok(Self { line, id, parts, is_response })
    }

    /// Tokens of all its sequences.
    pub(super) fn tokens(&self) -> usize {
        self.parts.iter().map(|part| part.tokens.len()).sum()
    }

    /// File and number.
    pub(super) fn place(&self) -> String {
        self.line.place()
    }

    /// An error about it.
    pub(super) fn wrong(&self, problem: &str) -> BadInput {
        self.line.wrong(problem)
    }
}

/// A response's sequences: the first behind the prompt, each further one from its beginning.
fn parts(prompt: Vec<u32>, response: &[u32], begins: &[usize]) -> Result<Vec<Part>, String> {
    let is_place = |pair: &[usize]| pair[0] < pair[1];
    let cuts = [&[0], begins, &[response.len()]].concat();
    if !cuts.windows(2).all(is_place) {
        return Err(format!(
            "sequence_begins holds {begins:?}, must hold ascending places among the {} response tokens, not the first",
            response.len()
        ));
    }
    let (from, first) = (prompt.len(), &response[..cuts[1]]);
    let mut parts = vec![Part { tokens: [&prompt, first].concat(), from }];
    for cut in cuts[1..].windows(2) {
        parts.push(Part { tokens: response[cut[0]..cut[1]].to_vec(), from: 1 });
    }
    Ok(parts)
}

/// The file that is read.
pub(super) struct Input<'a> {
    lines: Box<dyn Iterator<Item = Result<Line, BadInput>>>,
    wrong: &'a WrongLines,
    bytes: u64,
    total_bytes: u64,
}

impl<'a> Input<'a> {
    pub(super) fn open(path: &Path, wrong: &'a WrongLines) -> Result<Self, BadInput> {
        let lines = Box::new(jsonl::read(path)?);
        // What is compressed or comes through a pipe has a length that says nothing.
        let is_plain = path.extension().is_none_or(|extension| extension != "gz");
        let total_bytes = std::fs::metadata(path).map_or(0, |file| if is_plain { file.len() } else { 0 });
        Ok(Self { lines, wrong, bytes: 0, total_bytes })
    }

    /// Bytes of the lines read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the file; 0 where they are not known.
    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The next lines, until they hold `tokens` tokens; none at the end of the file.
    pub(super) fn window(
        &mut self,
        tokens: usize,
        network: &FrozenNetwork,
    ) -> Result<Vec<InputLine>, BadInput> {
        let (mut window, mut taken): (Vec<InputLine>, usize) = (Vec::new(), 0);
        while taken < tokens {
            let Some(line) = self.lines.next() else { break };
            self.bytes += line.as_ref().map_or(0, |line| line.text().len() as u64);
            let Some(line) = self.wrong.sift(line.and_then(|line| InputLine::of(line, network))) else {
                continue;
            };
            let line = line?;
            // A line weighs at least 64, so that many short ones do not make a large window.
            taken += line.tokens().max(64);
            window.push(line);
        }
        Ok(window)
    }
}

/// A line of the output. Of a sequence nothing else is kept.
#[derive(Serialize)]
struct Scored<'a> {
    id: &'a Value,
    score: f32,
    #[serde(flatten)]
    kept: Map<String, Value>,
}

/// A line of the output.
#[derive(Serialize)]
struct WithLogprobs<'a> {
    id: &'a Value,
    logprobs: &'a [f32],
}

/// A line of the output, of a response; the log-probs stand under a key of the user's.
#[derive(Serialize)]
struct ResponseWithLogprobs<'a> {
    id: &'a Value,
    #[serde(flatten)]
    logprobs: BTreeMap<&'a str, &'a [f32]>,
    #[serde(flatten)]
    kept: Map<String, Value>,
}

/// The file that is written; it gets its name when it is complete.
pub(super) struct Output<'a> {
    options: &'a FileOptions,
    /// Where it is until then; none for standard output.
    partial: Option<PathBuf>,
    writer: Option<Writer>,
}

impl<'a> Output<'a> {
    pub(super) fn create(options: &'a FileOptions) -> Result<Self, Error> {
        let path = &options.output;
        let partial = (path != Path::new("-")).then(|| {
            let mut partial = path.as_os_str().to_owned();
            partial.push(".partial");
            PathBuf::from(partial)
        });
        let writer = Writer::create(partial.as_ref().unwrap_or(path)).map_err(Error::Write)?;
        Ok(Self { options, partial, writer: Some(writer) })
    }

    pub(super) fn write(&mut self, line: &InputLine, numbers: Option<&HeadOutputs>) -> Result<(), Error> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let id = &line.id;
        let key = self.options.logprobs_key.as_str();
        let written = match numbers {
            Some(HeadOutputs::Score(score)) => {
                writer.write(&Scored { id, score: *score, kept: kept(line, "score")? })
            }
            Some(HeadOutputs::Logprobs(logprobs)) if line.is_response => {
                writer.write(&ResponseWithLogprobs {
                    id,
                    logprobs: [(key, logprobs.as_slice())].into(),
                    kept: kept(line, key)?,
                })
            }
            Some(HeadOutputs::Logprobs(logprobs)) => writer.write(&WithLogprobs { id, logprobs }),
            None => Ok(()),
        };
        written.map_err(Error::Write)
    }

    pub(super) fn finish(mut self) -> Result<(), Error> {
        if let Some(writer) = self.writer.take() {
            writer.finish().map_err(Error::Write)?;
        }
        let Some(partial) = self.partial.take() else { return Ok(()) };
        let renamed = std::fs::rename(&partial, &self.options.output);
        let path = self.options.output.display();
        renamed.map_err(|error| Error::Write(anyhow::anyhow!("write {path}: {error}")))
    }
}

/// What a response's line holds beside its id and what is written anew. It was parsed before.
fn kept(line: &InputLine, written: &str) -> Result<Map<String, Value>, BadInput> {
    if !line.is_response {
        return Ok(Map::new());
    }
    let mut fields: Map<String, Value> = line.line.parse()?;
    fields.retain(|key, _| key != "id" && key != written);
    Ok(fields)
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if let Some(partial) = self.partial.take() {
            // The error that led here is the one to report.
            let _ = std::fs::remove_file(partial);
        }
    }
}
