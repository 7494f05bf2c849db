//! Responses of a folder to lists and streams of prompts.

use std::path::{Path, PathBuf};

use engine::generate::{DrawOptions, Generator, Response};
use engine::{Backend, EngineConfig};
use model::tokenizer::train_bpe;
use model::{SaveOptions, SpecialTokens};
use serde_json::json;
use types::{FinishReason, PromptContent, SamplingParams};

use crate::fixture::{BACKENDS, config_of, model_of, small_config};

/// A model folder, with a tokenizer and a chat template if wanted.
fn folder(parent: &Path, with_tokenizer: bool) -> PathBuf {
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
    let sampling = SamplingParams { max_new_tokens: 12, ..SamplingParams::default() };
    DrawOptions { n, seed: 5, sampling: sampling.try_into().unwrap() }
}

fn generator(config: &EngineConfig, with_tokenizer: bool) -> Generator {
    let parent = tempfile::tempdir().unwrap();
    Generator::load(&folder(parent.path(), with_tokenizer), config).unwrap()
}

/// What comes out of a stream of prompts, which it is checked to tell.
fn stream(generator: &mut Generator, prompts: &[PromptContent], n: usize) -> Vec<Vec<Response>> {
    let (mut told, mut all) = (None, Vec::new());
    let tagged = prompts.iter().enumerate().map(|(number, prompt)| Ok((number, prompt.clone())));
    let mut sink = |number: usize, responses: Result<Vec<Response>, String>| {
        assert_eq!(number, all.len(), "responses come in the order of the prompts");
        all.push(responses.map_err(anyhow::Error::msg)?);
        Ok(())
    };
    let reached =
        generator.run(tagged, &options(n), &mut sink, &mut |progress| told = Some(*progress)).unwrap();
    let tokens: usize = all.iter().flatten().map(|response| response.tokens.len()).sum();
    assert_eq!((told, reached.new_tokens), (Some(reached), tokens as u64));
    all
}

#[test]
fn responses_come_in_the_order_of_the_prompts_and_do_not_depend_on_the_batch() {
    let prompts: Vec<PromptContent> = (0..60)
        .map(|at| match at % 3 {
            0 => PromptContent::Text(format!("the fox {at}")),
            1 => PromptContent::Tokens(vec![at; 1 + at as usize % 40]),
            _ => PromptContent::Messages(
                json!([{"role": "user", "content": format!("jump {at}")}]).to_string(),
            ),
        })
        .collect();
    let responses = stream(&mut generator(&small_config(), true), &prompts, 3);
    assert!(responses.len() == 60 && responses.iter().all(|siblings| siblings.len() == 3));
    for response in responses.iter().flatten() {
        let ended = response.finish_reason == FinishReason::Stop;
        assert_eq!(ended, response.tokens.last() == Some(&256));
        assert!(!response.text.contains("<end>"));
    }
    assert!(responses[0][0].tokens != responses[0][1].tokens, "siblings are not the same");
    let narrow = EngineConfig { max_sequences: Some(2), prefill_chunk_tokens: Some(3), ..small_config() };
    assert_eq!(stream(&mut generator(&narrow, true), &prompts, 3), responses);
}

/// A tokenizer in the manner of Llama 2: pieces that carry their space, the first of which its decoder takes
/// away.
fn sentencepiece() -> serde_json::Value {
    let mut vocab = json!({ "<unk>": 0 });
    for byte in 0..256 {
        vocab[format!("<0x{byte:02X}>")] = json!(1 + byte);
    }
    for (piece, id) in (257..300).enumerate() {
        vocab[if piece == 0 { "\u{2581}".to_owned() } else { format!("\u{2581}w{piece}") }] = json!(id);
    }
    json!({
        "version": "1.0", "added_tokens": [],
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        "pre_tokenizer": null, "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": [] },
    })
}

#[test]
fn the_first_space_of_a_response_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    let folder = folder(parent.path(), false);
    std::fs::write(folder.join("tokenizer.json"), sentencepiece().to_string()).unwrap();
    let tokenizer = model::Tokenizer::load(&folder).unwrap();
    // In pieces: a run of bytes that are no text would take the prompt's with it.
    let prompts = [PromptContent::Tokens(vec![258, 259])];
    let prompt = tokenizer.decode(&[258, 259], true).unwrap();
    assert_eq!(prompt, "w1 w2");
    let mut generator = Generator::load(&folder, &small_config()).unwrap();
    let responses = generator.responses(&prompts, &options(60), &mut |_| {}).unwrap().remove(0);
    let mut indented = 0;
    for Response { prompt_tokens, tokens, text, .. } in &responses {
        let sequence = [prompt_tokens.as_ref(), tokens.as_slice()].concat();
        let whole = tokenizer.decode(&sequence, true).unwrap();
        assert_eq!(Some(text.as_str()), whole.strip_prefix(prompt.as_str()), "{tokens:?}");
        // Decoded by itself it has lost a space.
        indented += usize::from(tokens[0] >= 257 && tokenizer.decode(tokens, true).unwrap() != *text);
    }
    assert!(indented > 0, "one of 60 begins with a space");
}

#[test]
fn lists_of_prompts_get_the_same_responses_as_streams() {
    BACKENDS.into_iter().for_each(lists_as_streams);
}

fn lists_as_streams(backend: Backend) {
    let mut generator = generator(&config_of(backend), true);
    let prompts = [PromptContent::Text("the fox".to_owned()), PromptContent::Tokens(vec![3, 4])];
    let streamed = stream(&mut generator, &prompts, 2);
    let responses = generator.responses(&prompts, &options(2), &mut |_| {}).unwrap();
    assert_eq!((responses.len(), responses[1][0].prompt_tokens.as_ref()), (2, [3, 4].as_slice()));
    for (streamed, response) in streamed.iter().flatten().zip(responses.iter().flatten()) {
        assert_eq!((&streamed.tokens, &streamed.text), (&response.tokens, &response.text));
    }
    let long = [prompts[0].clone(), PromptContent::Tokens(vec![1; 300])];
    let error = generator.responses(&long, &options(2), &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("prompt 1: the prompt has 300 tokens"), "{error}");
    // What the error left behind is gone.
    assert_eq!(generator.responses(&prompts, &options(2), &mut |_| {}).unwrap(), responses);
}

#[test]
fn a_folder_without_a_tokenizer_takes_tokens() {
    let mut generator = generator(&small_config(), false);
    let responses = stream(&mut generator, &[PromptContent::Tokens(vec![3, 4])], 4);
    assert_eq!((responses[0].len(), responses[0][0].text.as_str()), (4, ""));
    let text = [PromptContent::Text("x".to_owned())];
    let error = generator.responses(&text, &options(1), &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("prompt 0: the model folder has no tokenizer.json"), "{error}");
}
