//! Lines of JSON to token sequences.

use std::path::Path;

use model::ChatRequest;
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use super::config::TrainingConfig;
use super::report::ExampleCounts;
use super::text_encoder::TextEncoder;
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
pub(crate) struct PreferencePair {
    pub(crate) chosen: Answer,
    pub(crate) rejected: Answer,
    /// How much better the first is known to be.
    pub(crate) margin: f32,
}

/// A response that is wanted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelledAnswer {
    pub(crate) answer: Answer,
    pub(crate) desirable: bool,
}

/// The fields that a line may have, whatever the objective; each takes those it needs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ExampleLine {
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

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExampleError {
    /// It is no prompt with a response.
    #[error("must have prompt and response, messages, or prompt_tokens and response_tokens")]
    NoAnswer,
    /// It is no pair.
    #[error("must have prompt, chosen and rejected, or the three with _tokens")]
    NoPair,
    /// It does not say whether the response is wanted.
    #[error("has no label (true or false)")]
    NoLabel,
    /// Its margin cannot be subtracted.
    #[error("margin is {0}, must be a finite number")]
    Margin(f32),
    /// It needs a tokenizer.
    #[error("is text, but the model's folder has no tokenizer.json")]
    NoTokenizer,
    /// It needs a chat template.
    #[error("has messages, but the model has no chat template")]
    NoChatTemplate,
    /// Its list of messages is empty.
    #[error("has no messages")]
    NoMessages,
    /// Its last message is nothing that a model is to learn to say.
    #[error("its last message is not the assistant's")]
    NotAssistant,
    /// The template says something else before a response than without it.
    #[error("the chat template does not continue its own prompt, so that the response cannot be told apart")]
    TemplateChangesPrompt,
    /// A response without a prompt: no row predicts its first token.
    #[error("its prompt has no tokens")]
    EmptyPrompt,
    /// A prompt without a response.
    #[error("its response has no tokens")]
    EmptyResponse,
    /// The tokenizer refused.
    #[error(transparent)]
    Tokenizer(#[from] model::tokenizer::Error),
    /// The chat template refused.
    #[error(transparent)]
    Chat(#[from] model::chat::Error),
}

/// What an objective reads of a line.
pub(crate) trait Example: Sized {
    /// The example of a line.
    ///
    /// # Errors
    /// Fields that are missing or cannot be used.
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> std::result::Result<Self, ExampleError>;

    /// Tokens of its longest sequence.
    fn tokens(&self) -> usize;
}

/// Reads files of examples.
#[derive(Debug)]
pub(crate) struct ExampleReader<'a> {
    pub(crate) encoder: Option<&'a TextEncoder>,
    pub(crate) training: &'a TrainingConfig,
}

/// Examples of a file.
#[derive(Debug)]
pub(crate) struct Examples<T> {
    pub(crate) examples: Vec<T>,
    /// How many more were longer than allowed.
    pub(crate) too_long: usize,
}

impl<T> Examples<T> {
    pub(crate) fn counts(&self) -> ExampleCounts {
        ExampleCounts { used: self.examples.len(), too_long: self.too_long }
    }
}

impl ExampleReader<'_> {
    /// Reads the examples of a file. Those longer than allowed are left out, and counted.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is no example, a file without any that is short enough.
    pub(crate) fn read<T: Example>(&self, path: &Path) -> Result<Examples<T>> {
        let max_length = self.training.max_length;
        let mut found = Examples { examples: Vec::new(), too_long: 0 };
        lines::read(path, |line: ExampleLine| {
            let example = T::parse(self, line)?;
            if example.tokens() > max_length {
                found.too_long += 1;
            } else {
                found.examples.push(example);
            }
            Ok::<(), ExampleError>(())
        })?;
        if found.too_long > 0 {
            warn!(path = %path.display(), too_long = found.too_long, max_length, "examples left out");
        }
        if found.examples.is_empty() {
            return Err(Error::line(
                path,
                1,
                format!("no example of at most {max_length} tokens in the file"),
            ));
        }
        Ok(found)
    }

    fn encoder(&self) -> std::result::Result<&TextEncoder, ExampleError> {
        self.encoder.ok_or(ExampleError::NoTokenizer)
    }

    /// The tokens of a prompt, as the actors encode it.
    fn prompt(&self, text: &str) -> std::result::Result<Vec<u32>, ExampleError> {
        Ok(self.encoder()?.tokenizer.encode(text, true)?)
    }

    /// The tokens of a response to a prompt, as an actor would draw them, its end included once.
    fn response(&self, prompt: &[u32], text: &str) -> std::result::Result<Vec<u32>, ExampleError> {
        let TextEncoder { tokenizer, eos, .. } = self.encoder()?;
        let mut tokens = tokenizer.encode_response(prompt, text)?;
        // Some data sets write the end into the text.
        if !tokens.last().is_some_and(|last| tokenizer.eos_ids().contains(last)) {
            tokens.extend(eos);
        }
        Ok(tokens)
    }

    /// The last message is the response to those before it.
    fn chat(&self, messages: &[Value]) -> std::result::Result<Answer, ExampleError> {
        let encoder = self.encoder()?;
        let template = encoder.template.as_ref().ok_or(ExampleError::NoChatTemplate)?;
        let (last, before) = messages.split_last().ok_or(ExampleError::NoMessages)?;
        if last.get("role").and_then(Value::as_str) != Some("assistant") {
            return Err(ExampleError::NotAssistant);
        }
        let prompt = ChatRequest { messages: before, add_generation_prompt: true, ..ChatRequest::default() };
        let prompt = template.render(&prompt)?;
        let whole = ChatRequest { messages, add_generation_prompt: false, ..ChatRequest::default() };
        let whole = template.render(&whole)?;
        let response = whole.strip_prefix(&prompt).ok_or(ExampleError::TemplateChangesPrompt)?;
        let tokenizer = &encoder.tokenizer;
        let prompt = tokenizer.encode(&prompt, false)?;
        let response = tokenizer.encode_response(&prompt, response)?;
        Answer::new(prompt, response)
    }
}

impl Answer {
    fn new(prompt: Vec<u32>, response: Vec<u32>) -> std::result::Result<Self, ExampleError> {
        if prompt.is_empty() {
            return Err(ExampleError::EmptyPrompt);
        }
        if response.is_empty() {
            return Err(ExampleError::EmptyResponse);
        }
        Ok(Self { prompt, response })
    }
}

impl Example for Answer {
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> std::result::Result<Self, ExampleError> {
        match line {
            ExampleLine { prompt_tokens: Some(prompt), response_tokens: Some(response), .. } => {
                Self::new(prompt, response)
            }
            ExampleLine { messages: Some(messages), .. } => reader.chat(&messages),
            ExampleLine { prompt: Some(prompt), response: Some(response), .. } => {
                let prompt = reader.prompt(&prompt)?;
                let response = reader.response(&prompt, &response)?;
                Self::new(prompt, response)
            }
            _ => Err(ExampleError::NoAnswer),
        }
    }

    fn tokens(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}

impl Example for PreferencePair {
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> std::result::Result<Self, ExampleError> {
        let margin = line.margin.unwrap_or(0.0);
        let (prompt, chosen, rejected) = match line {
            ExampleLine {
                prompt_tokens: Some(prompt),
                chosen_tokens: Some(chosen),
                rejected_tokens: Some(rejected),
                ..
            } => (prompt, chosen, rejected),
            ExampleLine { prompt: Some(prompt), chosen: Some(chosen), rejected: Some(rejected), .. } => {
                let prompt = reader.prompt(&prompt)?;
                let (chosen, rejected) =
                    (reader.response(&prompt, &chosen)?, reader.response(&prompt, &rejected)?);
                (prompt, chosen, rejected)
            }
            _ => return Err(ExampleError::NoPair),
        };
        if !margin.is_finite() {
            return Err(ExampleError::Margin(margin));
        }
        Ok(Self {
            chosen: Answer::new(prompt.clone(), chosen)?,
            rejected: Answer::new(prompt, rejected)?,
            margin,
        })
    }

    fn tokens(&self) -> usize {
        self.chosen.tokens().max(self.rejected.tokens())
    }
}

impl Example for LabelledAnswer {
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> std::result::Result<Self, ExampleError> {
        let desirable = line.label.ok_or(ExampleError::NoLabel)?;
        Ok(Self { answer: Answer::parse(reader, line)?, desirable })
    }

    fn tokens(&self) -> usize {
        self.answer.tokens()
    }
}

#[cfg(test)]
mod tests {
    use model::SpecialTokens;
    use model::tokenizer::train_bpe;

    use super::*;

    #[test]
    fn a_response_ends_once() {
        let special = SpecialTokens { eos: Some("<end>".to_owned()), ..SpecialTokens::default() };
        let tokenizer = train_bpe(["a b c"].iter(), 300, &special).unwrap();
        let eos = tokenizer.eos_ids().first().copied();
        let encoder = TextEncoder { tokenizer, template: None, eos };
        let reader = ExampleReader { encoder: Some(&encoder), training: &TrainingConfig::default() };
        let prompt = reader.prompt("a").unwrap();
        let plain = reader.response(&prompt, " b").unwrap();
        assert_eq!((plain.last().copied(), plain[..plain.len() - 1].contains(&eos.unwrap())), (eos, false));
        assert_eq!(reader.response(&prompt, " b<end>").unwrap(), plain);
        assert_eq!(reader.response(&prompt, "").unwrap(), [eos.unwrap()]);
    }
}
