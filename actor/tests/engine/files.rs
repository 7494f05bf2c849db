//! Generation over files and lists of prompts.

use std::path::{Path, PathBuf};

use actor::engine::{Backend, EngineConfig};
use actor::generate::{DrawOptions, FileOptions, Generator, generate};
use model::tokenizer::train_bpe;
use model::{SaveOptions, SpecialTokens};
use serde_json::{Value, json};
use service::BadInput;
use types::{PromptContent, Sampling};

use crate::fixture::{BACKENDS, config_of, model_of, small_config};

/// A model folder, with a tokenizer and a chat template if wanted.
pub(crate) fn folder(parent: &Path, with_tokenizer: bool) -> PathBuf {
    let (mut model, weights) = model_of(300, 11);
    let path = parent.join("model");
    let eos = 256;
    model.eos_token_ids = vec![eos];
    model::folder::save(&path, &model, &weights, &SaveOptions::default()).unwrap();
    if with_tokenizer {
        let texts = ["the quick brown fox jumps over the lazy dog; then the other quick brown fox jumps"; 8];
        let special = SpecialTokens { eos: Some("<end>".to_owned()), ..SpecialTokens::default() };
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
        train_bpe(texts.iter(), 300, &special).unwrap().save(&path, Some(template)).unwrap();
    }
    path
}

fn options(n: usize) -> DrawOptions {
    DrawOptions { n, seed: 5, sampling: Sampling { max_new_tokens: 12, ..Sampling::default() } }
}

struct Files {
    folder: tempfile::TempDir,
    generator: Generator,
}

impl Files {
    fn new(config: &EngineConfig, with_tokenizer: bool) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let generator = Generator::load(&folder(parent.path(), with_tokenizer), config).unwrap();
        Self { folder: parent, generator }
    }

    fn run(&mut self, input: &str, n: usize) -> anyhow::Result<Vec<Value>> {
        let (input_path, output) =
            (self.folder.path().join("in.jsonl"), self.folder.path().join("out.jsonl"));
        std::fs::write(&input_path, input).unwrap();
        let files = FileOptions { input: input_path, output: output.clone(), draw: options(n) };
        let mut told = None;
        let summary = generate(&mut self.generator, &files, &mut |progress| told = Some(*progress))?;
        assert_eq!(told, Some(summary));
        let text = std::fs::read_to_string(output).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let tokens: usize = rows.iter().map(|row| row["tokens"].as_array().unwrap().len()).sum();
        assert_eq!(summary.new_tokens, tokens as u64);
        Ok(rows)
    }
}

#[test]
fn responses_come_in_the_order_of_the_prompts_and_do_not_depend_on_the_batch() {
    let lines: Vec<Value> = (0..60)
        .map(|at| match at % 3 {
            0 => json!({"id": at, "prompt": format!("the fox {at}")}),
            1 => json!({"id": format!("t{at}"), "tokens": vec![at; 1 + at % 40], "kept": "ignored"}),
            _ => json!({"id": at, "messages": [{"role": "user", "content": format!("jump {at}")}]}),
        })
        .collect();
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let rows = Files::new(&small_config(), true).run(&input, 3).unwrap();
    assert_eq!(rows.len(), 180);
    for (at, row) in rows.iter().enumerate() {
        assert_eq!((&row["id"], &row["index"]), (&lines[at / 3]["id"], &json!(at % 3)));
        for key in ["finish_reason", "logprobs", "text"] {
            assert!(!row[key].is_null(), "{key}");
        }
        assert_eq!(row.as_object().unwrap().len(), 6);
        let ended = row["finish_reason"] == "stop";
        assert_eq!(ended, row["tokens"].as_array().unwrap().last() == Some(&json!(256)));
        assert!(!row["text"].as_str().unwrap().contains("<end>"));
    }
    assert!(rows[0]["tokens"] != rows[1]["tokens"], "siblings are not the same");
    let narrow = EngineConfig { max_sequences: 2, prefill_chunk_tokens: 3, ..small_config() };
    assert_eq!(Files::new(&narrow, true).run(&input, 3).unwrap(), rows);
}

#[test]
fn lists_of_prompts_get_the_same_responses_as_files() {
    BACKENDS.into_iter().for_each(lists_as_files);
}

fn lists_as_files(backend: Backend) {
    let mut files = Files::new(&config_of(backend), true);
    let rows =
        files.run("{\"id\": 0, \"prompt\": \"the fox\"}\n{\"id\": 1, \"tokens\": [3, 4]}\n", 2).unwrap();
    let prompts = [PromptContent::Text("the fox".to_owned()), PromptContent::Tokens(vec![3, 4])];
    let responses = files.generator.responses(&prompts, &options(2), &mut |_| {}).unwrap();
    assert_eq!((responses.len(), responses[1][0].prompt_tokens.as_ref()), (2, [3, 4].as_slice()));
    for (row, response) in rows.iter().zip(responses.iter().flatten()) {
        assert_eq!((&row["tokens"], &row["text"]), (&json!(response.tokens), &json!(response.text)));
    }
    let long = [prompts[0].clone(), PromptContent::Tokens(vec![1; 300])];
    let error = files.generator.responses(&long, &options(2), &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("prompt 1: the prompt has 300 tokens"), "{error}");
    // What the error left behind is gone.
    assert_eq!(files.generator.responses(&prompts, &options(2), &mut |_| {}).unwrap(), responses);
}

#[test]
fn bad_lines_are_named() {
    let mut files = Files::new(&small_config(), true);
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
        let error = files.run(input, 1).unwrap_err();
        assert!(error.is::<BadInput>(), "{error:#}");
        assert!(error.to_string().contains(&format!("in.jsonl{expected}")), "{error:#}");
    }
}

#[test]
fn a_folder_without_a_tokenizer_takes_tokens() {
    let mut files = Files::new(&small_config(), false);
    let rows = files.run("{\"id\": 0, \"tokens\": [3, 4]}\n", 4).unwrap();
    assert_eq!((rows.len(), &rows[0]["text"]), (4, &json!("")));
    let error = files.run("{\"id\": 0, \"prompt\": \"x\"}\n", 1).unwrap_err().to_string();
    assert!(error.contains(":1: the model folder has no tokenizer.json"), "{error}");
}
