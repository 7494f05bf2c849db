//! `sluice generate`: JSON Lines in, JSON Lines out, in the order of the input.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use service::BadInput;
use service::jsonl::{self, Line};
use types::{FinishReason, PromptContent};

use super::{DrawOptions, Generator, Progress, Response};

/// What to generate from which file into which.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOptions {
    /// Lines `{"id", "prompt" | "tokens" | "messages"}`, plain or gzipped; `-` is standard input.
    pub input: PathBuf,
    /// Lines `{"id", "index", "tokens", "text", "logprobs", "finish_reason"}`, one for each response; `-` is standard
    /// output.
    pub output: PathBuf,
    /// How responses are drawn.
    pub draw: DrawOptions,
}

#[derive(Deserialize)]
struct InputLine {
    id: Value,
    prompt: Option<String>,
    tokens: Option<Vec<u32>>,
    messages: Option<Vec<Value>>,
}

#[derive(Serialize)]
struct OutputLine<'a> {
    id: &'a Value,
    index: usize,
    tokens: &'a [u32],
    text: &'a str,
    logprobs: &'a [f32],
    finish_reason: FinishReason,
}

/// Generates the responses to a file of prompts. Neither file is ever in memory as a whole.
///
/// # Errors
/// [`BadInput`] names file and line of what is no prompt or one the model cannot take; what was written before stays.
pub fn generate(
    generator: &mut Generator,
    options: &FileOptions,
    progress: &mut dyn FnMut(&Progress),
) -> anyhow::Result<Progress> {
    let prompts = jsonl::read(&options.input)?.map(|line| {
        let line = line?;
        let (id, content) = prompt(&line)?;
        Ok(((id, line), content))
    });
    let mut writer = jsonl::Writer::create(&options.output)?;
    let mut sink = |(id, line): (Value, Line), responses: Result<Vec<Response>, String>| {
        let responses = responses.map_err(|problem| line.wrong(&problem))?;
        for (index, response) in responses.iter().enumerate() {
            let Response { tokens, text, logprobs, finish_reason, .. } = response;
            writer.write(&OutputLine {
                id: &id,
                index,
                tokens,
                text,
                logprobs,
                finish_reason: *finish_reason,
            })?;
        }
        Ok(())
    };
    let reached = generator.run(prompts, &options.draw, &mut sink, progress)?;
    writer.finish()?;
    Ok(reached)
}

fn prompt(line: &Line) -> Result<(Value, PromptContent), BadInput> {
    let InputLine { id, prompt, tokens, messages } = line.parse()?;
    let content = match (prompt, tokens, messages) {
        (Some(prompt), None, None) => PromptContent::Text(prompt),
        (None, Some(tokens), None) => PromptContent::Tokens(tokens),
        (None, None, Some(messages)) => PromptContent::Messages(Value::Array(messages).to_string()),
        _ => return Err(line.wrong("needs exactly one of prompt, tokens and messages")),
    };
    Ok((id, content))
}
