//! Lines of JSON to token sequences.

use std::path::Path;

use model::ChatRequest;
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use super::config::TrainingConfig;
use super::source::TextEncoder;
use crate::error::{Error, Result};
use crate::lines;

/// A prompt and a response to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) prompt: Vec<u32>,
    pub(crate) response: Vec<u32>,
}

/// Two responses to one prompt, the first preferred.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    pub(crate) chosen: Answer,
    pub(crate) rejected: Answer,
    /// How much better the first is known to be.
    pub(crate) margin: f32,
}

/// A response that is wanted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labelled {
    pub(crate) answer: Answer,
    pub(crate) desirable: bool,
}

/// A line, whatever the objective; each takes the fields it needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    prompt: Option<String>,
    response: Option<String>,
    messages: Option<Vec<Value>>,
    prompt_tokens: Option<Vec<u32>>,
    response_tokens: Option<Vec<u32>>,
    chosen: Option<String>,
    rejected: Option<String>,
    chosen_tokens: Option<Vec<u32>>,
    rejected_tokens: Option<Vec<u32>>,
    margin: Option<f32>,
    label: Option<bool>,
}

type Problem<T> = std::result::Result<T, String>;

/// Reads examples.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) encoder: Option<&'a TextEncoder>,
    pub(crate) training: &'a TrainingConfig,
}

/// Examples of a file, and how many were longer than allowed.
#[derive(Debug)]
pub(crate) struct Examples<T> {
    pub(crate) examples: Vec<T>,
    pub(crate) too_long: usize,
}

impl Reader<'_> {
    /// Responses to learn.
    pub(crate) fn answers(&self, path: &Path) -> Result<Examples<Answer>> {
        self.read(path, |reader, line| reader.answer(line), |answer| answer.tokens())
    }

    /// Pairs.
    pub(crate) fn pairs(&self, path: &Path) -> Result<Examples<Pair>> {
        let longest = |pair: &Pair| pair.chosen.tokens().max(pair.rejected.tokens());
        self.read(path, |reader, line| reader.pair(line), longest)
    }

    /// Labelled responses.
    pub(crate) fn labelled(&self, path: &Path) -> Result<Examples<Labelled>> {
        let parse = |reader: &Self, line: Line| {
            let desirable = line.label.ok_or("has no label (true or false)")?;
            Ok(Labelled { answer: reader.answer(line)?, desirable })
        };
        self.read(path, parse, |labelled| labelled.answer.tokens())
    }

    fn read<T>(
        &self,
        path: &Path,
        parse: impl Fn(&Self, Line) -> Problem<T>,
        tokens: impl Fn(&T) -> usize,
    ) -> Result<Examples<T>> {
        let mut found = Examples { examples: Vec::new(), too_long: 0 };
        lines::read(path, |line: Line| {
            let example = parse(self, line)?;
            if tokens(&example) > self.training.max_length {
                found.too_long += 1;
            } else {
                found.examples.push(example);
            }
            Ok(())
        })?;
        if found.too_long > 0 {
            warn!(
                path = %path.display(), too_long = found.too_long, max_length = self.training.max_length,
                "examples left out"
            );
        }
        if found.examples.is_empty() {
            let problem = format!("no example of at most {} tokens in the file", self.training.max_length);
            return Err(Error::Line { path: path.to_owned(), line: 1, problem });
        }
        Ok(found)
    }

    fn answer(&self, line: Line) -> Problem<Answer> {
        match line {
            Line { prompt_tokens: Some(prompt), response_tokens: Some(response), .. } => {
                Answer::of(prompt, response)
            }
            Line { messages: Some(messages), .. } => self.chat(&messages),
            Line { prompt: Some(prompt), response: Some(response), .. } => {
                Answer::of(self.prompt(&prompt)?, self.response(&response)?)
            }
            _ => {
                Err("must have prompt and response, messages, or prompt_tokens and response_tokens"
                    .to_owned())
            }
        }
    }

    fn pair(&self, line: Line) -> Problem<Pair> {
        let margin = line.margin.unwrap_or(0.0);
        let (prompt, chosen, rejected) = match line {
            Line {
                prompt_tokens: Some(prompt),
                chosen_tokens: Some(chosen),
                rejected_tokens: Some(rejected),
                ..
            } => (prompt, chosen, rejected),
            Line { prompt: Some(prompt), chosen: Some(chosen), rejected: Some(rejected), .. } => {
                (self.prompt(&prompt)?, self.response(&chosen)?, self.response(&rejected)?)
            }
            _ => {
                return Err("must have prompt, chosen and rejected, or the three with _tokens".to_owned());
            }
        };
        if !margin.is_finite() {
            return Err(format!("margin is {margin}, must be a finite number"));
        }
        Ok(Pair {
            chosen: Answer::of(prompt.clone(), chosen)?,
            rejected: Answer::of(prompt, rejected)?,
            margin,
        })
    }

    fn encoder(&self) -> Problem<&TextEncoder> {
        self.encoder.ok_or_else(|| "is text, but the model's folder has no tokenizer.json".to_owned())
    }

    /// As the actors encode a prompt.
    fn prompt(&self, text: &str) -> Problem<Vec<u32>> {
        self.encoder()?.tokenizer.encode(text, true).map_err(|error| error.to_string())
    }

    fn response(&self, text: &str) -> Problem<Vec<u32>> {
        let encoder = self.encoder()?;
        let mut tokens = encoder.tokenizer.encode(text, false).map_err(|error| error.to_string())?;
        tokens.extend(encoder.eos);
        Ok(tokens)
    }

    /// The last message is the response to those before it.
    fn chat(&self, messages: &[Value]) -> Problem<Answer> {
        let encoder = self.encoder()?;
        let template = encoder.template.as_ref().ok_or("has messages, but the model has no chat template")?;
        let render = |messages: &[Value], add_generation_prompt: bool| {
            let request = ChatRequest { messages, add_generation_prompt, ..ChatRequest::default() };
            template.render(&request).map_err(|error| error.to_string())
        };
        let Some((last, before)) = messages.split_last() else { return Err("has no messages".to_owned()) };
        if last.get("role").and_then(Value::as_str) != Some("assistant") {
            return Err("its last message is not the assistant's".to_owned());
        }
        let prompt = render(before, true)?;
        let whole = render(messages, false)?;
        let response = whole.strip_prefix(&prompt).ok_or(
            "the chat template does not continue its own prompt, so that the response cannot be told apart",
        )?;
        let encode = |text: &str| encoder.tokenizer.encode(text, false).map_err(|error| error.to_string());
        Answer::of(encode(&prompt)?, encode(response)?)
    }
}

impl Answer {
    fn of(prompt: Vec<u32>, response: Vec<u32>) -> Problem<Self> {
        match (prompt.is_empty(), response.is_empty()) {
            (true, _) => Err("its prompt has no tokens".to_owned()),
            (_, true) => Err("its response has no tokens".to_owned()),
            (false, false) => Ok(Self { prompt, response }),
        }
    }

    /// Prompt and response.
    pub(crate) fn tokens(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}
