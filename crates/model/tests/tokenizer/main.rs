//! Tokenizers: training, special tokens, and text that arrives token by token.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helper functions too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use model::tokenizer::{Error, Files, train_bpe};
use model::{ChatRequest, ChatTemplate, Tokenizer};

mod declared;
mod fixture;
mod response;

use fixture::{TEXTS, sentencepiece, special, trained};

#[test]
fn training_is_deterministic_and_covers_every_byte() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    trained().save(first.path(), None).unwrap();
    trained().save(second.path(), None).unwrap();
    let read = |dir: &Path| fs::read(dir.join("tokenizer.json")).unwrap();
    assert_eq!(read(first.path()), read(second.path()));
    let tokenizer = Tokenizer::load(first.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 300);
    assert_eq!(
        ["<|begin|>", "<|end|>", "<|user|>"].map(|token| tokenizer.token_id(token)),
        [Some(0), Some(1), Some(2)]
    );
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()),
        (Some(0), [1].as_slice(), Some(1))
    );
    assert_eq!(tokenizer.token(2).as_deref(), Some("<|user|>"));
    let common = tokenizer.encode("    return a", true).unwrap();
    assert!(common.len() < 8, "{common:?}");
    let strange = "\u{0}\u{7f}žŽ𝄞";
    assert_eq!(tokenizer.decode(&tokenizer.encode(strange, true).unwrap(), false).unwrap(), strange);
    let too_small = train_bpe(TEXTS.iter().copied(), 200, &special());
    assert!(matches!(too_small, Err(Error::Train(_))));
}

#[test]
fn special_tokens_in_the_text_are_one_token() {
    let tokenizer = trained();
    let tokens = tokenizer.encode("<|user|>hi<|end|>", false).unwrap();
    assert_eq!((tokens[0], *tokens.last().unwrap()), (2, 1));
    assert_eq!(tokenizer.decode(&tokens, true).unwrap(), "hi");
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), "<|user|>hi<|end|>");
    assert_eq!(tokenizer.decode(&[9_999_999], false).unwrap(), "");
}

#[test]
fn ends_come_from_the_generation_config_first() {
    let dir = tempfile::tempdir().unwrap();
    trained().save(dir.path(), Some("{{ messages }}")).unwrap();
    let ends = || Tokenizer::load(dir.path()).unwrap().eos_ids().to_vec();
    assert_eq!(ends(), [1]);
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 5}"#).unwrap();
    assert_eq!(ends(), [5]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 7]}"#).unwrap();
    assert_eq!(ends(), [1, 7]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
    assert!(matches!(Tokenizer::load(dir.path()), Err(Error::Invalid { .. })));
    fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    assert!(matches!(Tokenizer::load(dir.path()), Err(Error::Invalid { .. })));
}

#[test]
fn special_tokens_have_two_spellings() {
    let dir = tempfile::tempdir().unwrap();
    trained().save(dir.path(), None).unwrap();
    let config = r#"{"bos_token": {"content": "<|user|>", "lstrip": false}, "eos_token": null, "add_bos_token": true}"#;
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    fs::write(dir.path().join("special_tokens_map.json"), r#"{"eos_token": "<|end|>", "unk_token": "?"}"#)
        .unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids()), (Some(2), [1].as_slice()));
    let roles: Vec<&str> = tokenizer.special().keys().map(String::as_str).collect();
    assert_eq!(roles, ["bos_token", "eos_token", "unk_token"]);
}

#[test]
fn files_in_memory_are_as_good_as_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    trained().save(dir.path(), Some("{{ bos_token }}{{ messages[0].content }}")).unwrap();
    let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let files: BTreeMap<String, Vec<u8>> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    let (folder, memory) =
        (Tokenizer::load(dir.path()).unwrap(), Tokenizer::read(Files::Memory(&files)).unwrap());
    let text = "<|user|>    return a";
    assert_eq!(memory.encode(text, true).unwrap(), folder.encode(text, true).unwrap());
    assert_eq!((memory.special(), memory.eos_ids()), (folder.special(), folder.eos_ids()));
    let template = ChatTemplate::read(Files::Memory(&files), memory.special().clone()).unwrap().unwrap();
    let messages = [serde_json::json!({ "role": "user", "content": "hi" })];
    let request = ChatRequest { messages: &messages, ..ChatRequest::default() };
    assert_eq!(template.render(&request).unwrap(), "<|begin|>hi");
    let error = Tokenizer::read(Files::Memory(&BTreeMap::new())).unwrap_err().to_string();
    assert!(error.contains("read tokenizer.json"), "{error}");
}

#[test]
fn junk_is_no_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::load(dir.path()), Err(Error::Io { .. })));
    for junk in ["", "{}", "[1]", r#"{"model": {"type": "BPE"}}"#] {
        fs::write(dir.path().join("tokenizer.json"), junk).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn a_begin_token_is_added_where_the_tokenizer_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = sentencepiece(dir.path());
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [1, 264]);
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [264]);
}
