//! A file of prompts to a file of responses: JSON Lines in, JSON Lines out, in the order of the input.

use std::path::PathBuf;

use engine::generate::{DrawOptions, Generator, Progress, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use service::BadInput;
use service::jsonl::{self, Line};
use types::{FinishReason, PromptContent};

/// What to generate from which file into which.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileOptions {
    /// Lines `{"id", "prompt" | "tokens" | "messages"}`, plain or gzipped; `-` is standard input.
    pub(super) input: PathBuf,
    /// Lines `{"id", "index", "tokens", "text", "logprobs", "finish_reason"}`, one for each response; `-` is
    /// standard output.
    pub(super) output: PathBuf,
    /// How responses are drawn.
    pub(super) draw: DrawOptions,
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
/// [`BadInput`] names file and line of what is no prompt or one the model cannot take; what was written
/// before stays.
pub(super) fn generate(
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::EngineConfig;
    use model::tokenizer::train_bpe;
    use model::{Architecture, Dimensions, ModelConfig, SaveOptions, SpecialTokens, Weights};
    use serde_json::json;
    use types::SamplingParams;

    use super::*;

    /// A generator over a model of a few thousand parameters.
    fn generator(parent: &Path) -> Generator {
        let dimensions = Dimensions {
            vocab_size: 300,
            hidden_size: 32,
            intermediate_size: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            max_positions: 256,
        };
        let mut config = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
        config.initializer_range = 0.3;
        config.eos_token_ids = vec![256];
        let weights = Weights::random(&config, 11, tch::Kind::Float, tch::Device::Cpu);
        let folder = parent.join("model");
        model::folder::save(&folder, &config, &weights, &SaveOptions::default()).unwrap();
        let texts = ["the quick brown fox jumps over the lazy dog"; 8];
        let special = SpecialTokens { eos: Some("<end>".to_owned()), ..SpecialTokens::default() };
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
        train_bpe(texts.iter(), 300, &special).unwrap().save(&folder, Some(template)).unwrap();
        let engine = EngineConfig { threads: 2, kv_cache_blocks: Some(256), ..EngineConfig::default() };
        Generator::load(&folder, &engine).unwrap()
    }

    /// The lines of the output for an input.
    fn run(generator: &mut Generator, parent: &Path, input: &str, n: usize) -> anyhow::Result<Vec<Value>> {
        let (input_path, output) = (parent.join("in.jsonl"), parent.join("out.jsonl"));
        std::fs::write(&input_path, input)?;
        let sampling = SamplingParams { max_new_tokens: 12, ..SamplingParams::default() };
        let sampling = sampling.try_into().unwrap();
        let draw = DrawOptions { n, seed: 5, sampling };
        let files = FileOptions { input: input_path, output: output.clone(), draw };
        let summary = generate(generator, &files, &mut |_| {})?;
        let text = std::fs::read_to_string(output)?;
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let tokens: usize = rows.iter().map(|row| row["tokens"].as_array().unwrap().len()).sum();
        assert_eq!(summary.new_tokens, tokens as u64);
        Ok(rows)
    }

    #[test]
    fn each_response_is_a_line_in_the_order_of_the_input() {
        let parent = tempfile::tempdir().unwrap();
        let lines: Vec<Value> = (0..60)
            .map(|at| match at % 3 {
                0 => json!({"id": at, "prompt": format!("the fox {at}")}),
                1 => json!({"id": format!("t{at}"), "tokens": vec![at; 1 + at % 40], "kept": "ignored"}),
                _ => json!({"id": at, "messages": [{"role": "user", "content": format!("jump {at}")}]}),
            })
            .collect();
        let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let rows = run(&mut generator(parent.path()), parent.path(), &input, 3).unwrap();
        assert_eq!(rows.len(), 180);
        for (at, row) in rows.iter().enumerate() {
            assert_eq!((&row["id"], &row["index"]), (&lines[at / 3]["id"], &json!(at % 3)));
            for key in ["finish_reason", "logprobs", "text"] {
                assert!(!row[key].is_null(), "{key}");
            }
            assert_eq!(row.as_object().unwrap().len(), 6);
        }
    }

    #[test]
    fn bad_lines_are_named() {
        let parent = tempfile::tempdir().unwrap();
        let mut generator = generator(parent.path());
        let cases = [
            (
                "{\"id\": 0, \"prompt\": \"x\"}\n{\"id\": 1}\n",
                ":2: needs exactly one of prompt, tokens and messages",
            ),
            ("\n{\"id\": 0, \"prompt\": 7}\n", ":2: "),
            (
                "{\"id\": 0, \"tokens\": [1, 300]}\n",
                ":1: prompt token 300 at position 1 is outside the vocabulary",
            ),
            ("{\"prompt\": \"x\"}\n", ":1: missing field `id`"),
        ];
        for (input, expected) in cases {
            let error = run(&mut generator, parent.path(), input, 1).unwrap_err();
            assert!(error.is::<BadInput>(), "{error:#}");
            assert!(error.to_string().contains(&format!("in.jsonl{expected}")), "{error:#}");
        }
    }
}
