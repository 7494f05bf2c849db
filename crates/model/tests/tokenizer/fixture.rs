//! Small tokenizers of the kinds that models have.

use std::fs;
use std::path::Path;

use model::tokenizer::train_bpe;
use model::{SpecialTokens, Tokenizer};
use serde_json::{Value, json};

pub(crate) const TEXTS: [&str; 4] = [
    "def add(a, b):\n    return a + b\n",
    "def mul(a, b):\n    return a * b\n",
    "naïve café — 你好, 世界 🙂🙃 and more and more",
    "    for i in range(10):\n        print(i)\n",
];

pub(crate) fn special() -> SpecialTokens {
    SpecialTokens {
        bos: Some("<|begin|>".to_owned()),
        eos: Some("<|end|>".to_owned()),
        pad: Some("<|end|>".to_owned()),
        additional: vec!["<|user|>".to_owned()],
    }
}

pub(crate) fn trained() -> Tokenizer {
    train_bpe(TEXTS.iter().copied(), 300, &special()).unwrap()
}

/// A tokenizer in the manner of Llama 2: pieces that carry their space, and bytes for everything else.
pub(crate) fn sentencepiece(dir: &Path) -> Tokenizer {
    let mut vocab = json!({ "<unk>": 0, "<s>": 1, "</s>": 2 });
    for byte in 0..256 {
        vocab[format!("<0x{byte:02X}>")] = json!(3 + byte);
    }
    for (piece, id) in ["▁", "a", "b", "▁a", "ab", "▁ab"].iter().zip(259..) {
        vocab[*piece] = json!(id);
    }
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "pre_tokenizer": null,
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ a", "a b", "▁a b"] },
    });
    written(dir, &tokenizer)
}

fn added(id: u32, content: &str) -> Value {
    json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false })
}

fn written(dir: &Path, tokenizer: &Value) -> Tokenizer {
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::load(dir).unwrap()
}

/// A tokenizer in the manner of T5 and of newer Mistrals: a space belongs to the word behind it, and the
/// decoder takes it from the first.
pub(crate) fn metaspace(dir: &Path) -> Tokenizer {
    let pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "▁a", "▁b", "é", "你", "🙂", "\n", "▁▁", "▁ab"];
    let vocab: Vec<Value> = pieces.iter().map(|piece| json!([piece, -1.0])).collect();
    let metaspace =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": metaspace,
        "post_processor": null,
        "decoder": metaspace,
        "model": { "type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false },
    });
    written(dir, &tokenizer)
}

/// Every kind of tokenizer, with its name and the number of its tokens.
pub(crate) fn all(dir: &Path) -> [(&'static str, Tokenizer, u32); 3] {
    [("bytes", trained(), 300), ("sentencepiece", sentencepiece(dir), 265), ("metaspace", metaspace(dir), 15)]
}
