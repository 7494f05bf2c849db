//! Tokens that only `tokenizer_config.json` declares, and which tokens end a response.

use std::fs;

use model::Tokenizer;
use serde_json::json;

use crate::fixture::{sentencepiece, trained};

#[test]
fn tokens_that_only_the_configuration_declares_are_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let size = u32::try_from(sentencepiece(dir.path()).vocab_size()).unwrap();
    let config = json!({
        "added_tokens_decoder": {
            (size + 1).to_string(): { "content": "<|im_end|>", "special": true },
            size.to_string(): { "content": "<|im_start|>", "special": true, "normalized": false },
            (size + 2).to_string(): { "content": "<tool>", "special": false, "normalized": false },
            "1": { "content": "<s>", "special": true },
        },
        "additional_special_tokens": ["<|im_end|>", { "content": "<extra>" }],
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
    });
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let names = ["<s>", "<|im_start|>", "<|im_end|>", "<tool>", "<pad>", "<extra>"];
    let ids = names.map(|name| tokenizer.token_id(name).unwrap());
    assert_eq!(ids, [1, size, size + 1, size + 2, size + 3, size + 4]);
    assert_eq!(tokenizer.eos_ids(), [size + 1]);
    let tokens = tokenizer.encode("<|im_start|>ab<tool><|im_end|>", false).unwrap();
    assert_eq!((tokens[0], tokens.len(), tokens[tokens.len() - 1]), (size, 4, size + 1));
    assert_eq!(tokenizer.decode(&tokens, true).unwrap(), "ab<tool>");
    // Saved and read again it is the same.
    let saved = tempfile::tempdir().unwrap();
    tokenizer.save(saved.path(), None).unwrap();
    let again = Tokenizer::load(saved.path()).unwrap();
    assert_eq!(again.encode("<|im_start|>ab<tool><|im_end|>", false).unwrap(), tokens);
}

/// What transformers 5.24 makes of the same folder (`AutoTokenizer.from_pretrained`), by class, family,
/// `legacy` and `add_prefix_space`: whether a special token is followed by a space, and whether the text
/// begins with one.
#[test]
fn spaces_of_a_llama_folder_are_where_transformers_puts_them() {
    let rows = [
        ("LlamaTokenizer", "llama", json!({}), [false, true]),
        ("LlamaTokenizerFast", "llama", json!({ "legacy": false }), [false, true]),
        ("LlamaTokenizer", "llama", json!({ "legacy": true }), [true, true]),
        ("LlamaTokenizer", "llama", json!({ "legacy": true, "add_prefix_space": false }), [false, false]),
        ("CodeLlamaTokenizer", "llama", json!({ "legacy": true }), [false, true]),
        ("LlamaTokenizer", "mistral", json!({}), [true, true]),
        ("PreTrainedTokenizerFast", "llama", json!({}), [true, true]),
    ];
    for (class, family, mut config, [after_special, at_first]) in rows {
        let dir = tempfile::tempdir().unwrap();
        let pieces = sentencepiece(dir.path());
        let [space_a, a] = ["▁a", "a"].map(|piece| pieces.token_id(piece).unwrap());
        config["tokenizer_class"] = json!(class);
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        fs::write(dir.path().join("config.json"), json!({ "model_type": family }).to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let first = |is_after: bool| if is_after { space_a } else { a };
        assert_eq!(
            tokenizer.encode("</s>a", true).unwrap(),
            [1, 2, first(after_special)],
            "{class} {config}"
        );
        assert_eq!(tokenizer.encode("a a", true).unwrap(), [1, first(at_first), space_a], "{class} {config}");
        let saved = tempfile::tempdir().unwrap();
        tokenizer.save(saved.path(), None).unwrap();
        let again = Tokenizer::load(saved.path()).unwrap();
        assert_eq!(again.encode("</s>a a", true).unwrap(), tokenizer.encode("</s>a a", true).unwrap());
    }
}

#[test]
fn strange_ends_are_told() {
    let dir = tempfile::tempdir().unwrap();
    trained().save(dir.path(), None).unwrap();
    let problem = || Tokenizer::load(dir.path()).unwrap().ending_problem();
    assert_eq!(problem(), None);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [7]}"#).unwrap();
    let other = problem().unwrap();
    assert!(other.contains("<|end|>") && other.contains("[7]"), "{other}");
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [7, 1]}"#).unwrap();
    assert_eq!(problem(), None);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": []}"#).unwrap();
    assert!(problem().unwrap().contains("no token ends a response"));
}
