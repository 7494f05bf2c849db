//! A network whose greedy response is a script: behind each token comes the one that the script says.

use std::path::{Path, PathBuf};

use model::tokenizer::train_bpe;
use model::{Architecture, Dimensions, ModelConfig, SaveOptions, SpecialTokens, Tokenizer, Weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Tokens of the network, which a tokenizer may leave unused.
const VOCABULARY: i64 = 320;

/// A folder whose model writes each of the scripts once it has read the script's first token. No token has
/// two successors. Attention and MLP write nothing, each token has a dimension of its own, and so the head
/// reads off what comes next.
pub(crate) fn scripted(parent: &Path, tokenizer: Maker, scripts: &[&[u32]], eos: u32) -> PathBuf {
    let dimensions = Dimensions {
        vocab_size: VOCABULARY,
        hidden_size: VOCABULARY,
        intermediate_size: 8,
        layers: 1,
        heads: 4,
        kv_heads: 4,
        max_positions: 256,
    };
    let mut model = ModelConfig::new(Architecture::Llama, dimensions).unwrap();
    model.eos_token_ids = vec![eos];
    let weights = Weights::zeros(&model, Kind::Float, Device::Cpu);
    for mut parameter in weights.parameters() {
        if parameter.name.ends_with("norm.weight") {
            let _ = parameter.tensor.fill_(1.0);
        } else if parameter.name.contains("embed_tokens") {
            parameter.tensor.copy_(&Tensor::eye(VOCABULARY, (Kind::Float, Device::Cpu)));
        }
    }
    let head = weights.parameter("lm_head.weight").unwrap();
    for (before, after) in scripts.iter().flat_map(|script| script.windows(2)).map(|pair| (pair[0], pair[1]))
    {
        let mut place = head.get(i64::from(after)).get(i64::from(before));
        let _ = place.fill_(1.0);
    }
    let path = parent.join("model");
    model::folder::save(&path, &model, &weights, &SaveOptions::default()).unwrap();
    tokenizer(&path);
    path
}

/// Writes a tokenizer into the folder of a model.
pub(crate) type Maker = fn(&Path);

/// Bytes and `<end>`, `<turn>`, with a template that shows what a message holds.
pub(crate) fn bytes(folder: &Path) {
    let template = "{% for m in messages %}{{ m.role[:1] }}{{ m.content + '.' }}\
        {% for t in m.tool_calls or [] %}{{ t.function.arguments|tojson }}{% endfor %}{% endfor %}\
        {% for t in tools or [] %}{{ t.function.name }}{% endfor %}\
        {% if enable_thinking is defined and not enable_thinking %}no-thoughts{% endif %}\
        {% if add_generation_prompt %}g{% endif %}";
    let special = SpecialTokens {
        eos: Some("<end>".to_owned()),
        additional: vec!["<turn>".to_owned()],
        ..SpecialTokens::default()
    };
    train_bpe(std::iter::empty::<&str>(), 258, &special).unwrap().save(folder, Some(template)).unwrap();
}

/// The tokenizer of [`bytes`] with three tokens more, which are a call in the format of Hermes, and a
/// template that teaches it.
pub(crate) fn calls(folder: &Path) {
    bytes(folder);
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}\
        {% if tools %}<tool_call>{% endif %}{% if add_generation_prompt %}g{% endif %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let file = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let call = r#"{"name": "f", "arguments": {"b": "é", "a": 1}}"#;
    for (content, id) in ["So. ", "<tool_call>", &format!("{call}</tool_call>")].into_iter().zip(258..) {
        let mut token = added(content, id);
        token["special"] = json!(false);
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    }
    std::fs::write(&file, tokenizer.to_string()).unwrap();
}

/// In the manner of Llama 2: letters, a marked space that the decoder takes from the first word, and bytes.
pub(crate) fn pieces(folder: &Path) {
    let mut vocab = json!({ "<unk>": 0, "<s>": 1, "<end>": 2 });
    for byte in 0..256 {
        vocab[format!("<0x{byte:02X}>")] = json!(3 + byte);
    }
    for (piece, id) in ["▁", "▁return", "▁1", ":"].iter().zip(259..) {
        vocab[*piece] = json!(id);
    }
    let added: Vec<Value> =
        ["<unk>", "<s>", "<end>"].iter().zip(0..).map(|(token, id)| added(token, id)).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [] },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn added(content: &str, id: u32) -> Value {
    json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false })
}

/// The tokens of a text by the tokenizer of [`bytes`].
pub(crate) fn spelled(text: &str) -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    bytes(folder.path());
    Tokenizer::load(folder.path()).unwrap().encode(text, false).unwrap()
}
