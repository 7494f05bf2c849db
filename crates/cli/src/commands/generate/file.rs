//! A file of prompts to a file of responses: JSON Lines in, JSON Lines out, in the order of the input.

use std::path::PathBuf;

use engine::generate::{DrawOptions, Progress, Response, Said};
use serde::Serialize;
use serde_json::{Map, Value};
use service::BadInput;
use service::jsonl::{self, Line, WrongLines};
use types::{FinishReason, PromptContent};

use crate::episodes::{BehindPrompt, Drawing, EpisodeTotals};

/// What to generate from which file into which.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileOptions {
    /// Lines with `prompt`, `tokens` or `messages`, plain or gzipped; `-` is standard input.
    pub(super) input: PathBuf,
    /// Those lines with what was drawn, one for each response; `-` is standard output.
    pub(super) output: PathBuf,
    /// How responses are drawn.
    pub(super) draw: DrawOptions,
}

/// Keys of a response's line that its prompt's may have, with another meaning.
const RESPONSE_KEYS: [&str; 12] = [
    "id",
    "index",
    "prompt_tokens",
    "response_tokens",
    "tokens",
    "text",
    "logprobs",
    "response_mask",
    "sequence_begins",
    "turns",
    "end",
    "finish_reason",
];

#[derive(Serialize)]
struct OutputLine<'a> {
    id: &'a Value,
    index: usize,
    prompt_tokens: &'a [u32],
    response_tokens: &'a [u32],
    /// The response's, by their older name.
    tokens: &'a [u32],
    text: &'a str,
    logprobs: &'a [f32],
    /// Of an episode: which of them the policy drew, what was said, and why there was no further turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_mask: Option<&'a [u8]>,
    /// Places among them with which further sequences begin.
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    sequence_begins: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    turns: Option<&'a [Said]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
    finish_reason: FinishReason,
    #[serde(flatten)]
    of_prompt: &'a Map<String, Value>,
}

/// A prompt's line.
struct PromptLine {
    line: Line,
    id: Value,
    /// What else it holds.
    fields: Map<String, Value>,
}

/// Generates the responses to a file of prompts. Neither file is ever in memory as a whole.
///
/// # Errors
/// [`BadInput`] names file and line of what is no prompt or one the model cannot take, unless such lines are
/// passed over; what was written before stays.
pub(super) fn generate(
    drawing: &mut Drawing,
    options: &FileOptions,
    wrong: &WrongLines,
    progress: &mut dyn FnMut(&Progress),
) -> anyhow::Result<(Progress, Option<EpisodeTotals>)> {
    let (fields, plays) = (drawing.fields.clone(), drawing.plays());
    let lines = jsonl::read(&options.input)?;
    let prompts = lines.filter_map(|line| wrong.sift(line.and_then(prompt)));
    let prompts = (0..).zip(prompts).map(|(number, line)| {
        let (prompt, content) = line?;
        if plays {
            fields.put(number, prompt.line.text().into());
        }
        Ok(((number, prompt), content))
    });
    let mut writer = jsonl::Writer::create(&options.output)?;
    let mut totals = EpisodeTotals::default();
    let mut sink = |(number, prompt): (u64, PromptLine), responses: Result<Vec<Response>, String>| {
        fields.forget(number);
        let responses = responses.map_err(|problem| prompt.line.wrong(&problem));
        let Some(responses) = wrong.sift(responses) else { return Ok(()) };
        for (index, response) in responses?.iter().enumerate() {
            let BehindPrompt { tokens, logprobs, mask, begins } = &BehindPrompt::of(response);
            let played = response.played.as_deref();
            played.into_iter().for_each(|played| totals.add(played));
            writer.write(&OutputLine {
                id: &prompt.id,
                index,
                prompt_tokens: &response.prompt_tokens,
                response_tokens: tokens,
                tokens,
                text: &response.text,
                logprobs,
                response_mask: mask.as_deref(),
                sequence_begins: begins,
                turns: played.map(|played| &played.said[..]),
                end: played.map(|played| played.end.as_str()),
                finish_reason: response.finish_reason,
                of_prompt: &prompt.fields,
            })?;
        }
        Ok(())
    };
    let reached = drawing.generator.run(prompts, &options.draw, &mut sink, progress)?;
    writer.finish()?;
    Ok((reached, plays.then_some(totals)))
}

fn prompt(line: Line) -> Result<(PromptLine, PromptContent), BadInput> {
    let mut fields: Map<String, Value> = line.parse()?;
    let content = match (fields.get("prompt"), fields.get("tokens"), fields.get("messages")) {
        (Some(Value::String(prompt)), None, None) => PromptContent::Text(prompt.clone()),
        (None, Some(tokens), None) => {
            let tokens = serde_json::from_value(tokens.clone());
            PromptContent::Tokens(tokens.map_err(|error| line.wrong(&format!("tokens: {error}")))?)
        }
        (None, None, Some(Value::Array(messages))) | (Some(Value::Array(messages)), None, None)
            if !messages.is_empty() =>
        {
            PromptContent::Messages(Value::Array(messages.clone()).to_string())
        }
        _ => {
            return Err(line
                .wrong("needs exactly one of prompt (text or a chat), tokens (ids) and messages (a list)"));
        }
    };
    let named = ["id", "task_id"].into_iter().find_map(|key| fields.get(key).filter(|id| !id.is_null()));
    let id = named.cloned().unwrap_or_else(|| line.number().into());
    fields.retain(|key, _| !RESPONSE_KEYS.contains(&key.as_str()));
    Ok((PromptLine { line, id, fields }, content))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::EngineConfig;
    use engine::generate::Generator;
    use model::tokenizer::train_bpe;
    use model::{Architecture, Dimensions, ModelConfig, SaveOptions, SpecialTokens, Weights};
    use serde_json::json;
    use types::SamplingParams;

    use super::*;

    /// A generator over a model of a few thousand parameters.
    fn generator(parent: &Path) -> Drawing {
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
        Drawing::new(None, &folder, Generator::load(&folder, &engine).unwrap()).unwrap()
    }

    /// The lines of the output for an input.
    fn run(generator: &mut Drawing, parent: &Path, input: &str, n: usize) -> anyhow::Result<Vec<Value>> {
        run_and(false, generator, parent, (input, n))
    }

    /// The same, passing over wrong lines or not.
    fn run_and(
        keep_going: bool,
        generator: &mut Drawing,
        parent: &Path,
        (input, n): (&str, usize),
    ) -> anyhow::Result<Vec<Value>> {
        let (input_path, output) = (parent.join("in.jsonl"), parent.join("out.jsonl"));
        std::fs::write(&input_path, input)?;
        let sampling = SamplingParams { max_new_tokens: 12, ..SamplingParams::default() };
        let sampling = sampling.try_into().unwrap();
        let draw = DrawOptions { n, seed: 5, sampling };
        let files = FileOptions { input: input_path, output: output.clone(), draw };
        let wrong = WrongLines::new(keep_going);
        let (summary, episodes) = generate(generator, &files, &wrong, &mut |_| {})?;
        let text = std::fs::read_to_string(output)?;
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let tokens: usize = rows.iter().map(|row| row["tokens"].as_array().unwrap().len()).sum();
        assert_eq!((summary.new_tokens, episodes), (tokens as u64, None));
        Ok(rows)
    }

    #[test]
    fn each_response_is_a_line_in_the_order_of_the_input() {
        let parent = tempfile::tempdir().unwrap();
        let lines: Vec<Value> = (0..60)
            .map(|at| match at % 3 {
                0 => json!({"id": at, "prompt": format!("the fox {at}")}),
                1 => json!({"id": format!("t{at}"), "tokens": vec![at; 1 + at % 40], "answer": at, "text": "x"}),
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
            assert_eq!(row["response_tokens"], row["tokens"]);
            match at / 3 % 3 {
                1 => assert_eq!(
                    (&row["prompt_tokens"], &row["answer"]),
                    (&lines[at / 3]["tokens"], &json!(at / 3))
                ),
                _ => assert!(!row["prompt_tokens"].as_array().unwrap().is_empty()),
            }
            assert_ne!(row["text"], "x", "the response's");
        }
    }

    #[test]
    fn bad_lines_are_named() {
        let parent = tempfile::tempdir().unwrap();
        let mut generator = generator(parent.path());
        let cases = [
            (
                "{\"id\": 0, \"prompt\": \"x\"}\n{\"id\": 1}\n",
                ":2: needs exactly one of prompt (text or a chat), tokens (ids) and messages",
            ),
            ("\n{\"id\": 0, \"prompt\": 7}\n", ":2: "),
            (
                "{\"id\": 0, \"tokens\": [1, 300]}\n",
                ":1: prompt token 300 at position 1 is outside the vocabulary",
            ),
            ("{\"tokens\": [-1]}\n", ":1: tokens: invalid value: integer `-1`"),
        ];
        for (input, expected) in cases {
            let error = run(&mut generator, parent.path(), input, 1).unwrap_err();
            assert!(error.is::<BadInput>(), "{error:#}");
            assert!(error.to_string().contains(&format!("in.jsonl{expected}")), "{error:#}");
        }
    }

    #[test]
    fn names_are_optional_and_wrong_lines_are_passed_over_when_asked() {
        let parent = tempfile::tempdir().unwrap();
        let mut generator = generator(parent.path());
        let input = "{\"prompt\": \"the fox\"}\n{\"prompt\": 7}\n{\"tokens\": [1, 300]}\n\
                     {\"task_id\": \"T/1\", \"prompt\": \"jumps\"}\n";
        let rows = run_and(true, &mut generator, parent.path(), (input, 1)).unwrap();
        let ids: Vec<&Value> = rows.iter().map(|row| &row["id"]).collect();
        assert_eq!(ids, [&json!(1), &json!("T/1")]);
    }
}
