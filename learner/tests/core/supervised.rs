//! What surrounds the supervised objectives: folders, reports, determinism, bad input. Their numbers are
//! compared in `golden`.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use learner::{
    ExecutionConfig, InitConfig, LoraConfig, LoraTarget, MixedData, OptimizerConfig, Progress,
    REWARD_MEAN_KEY, REWARD_STD_KEY, RewardModelConfig, SftConfig, TrainingConfig,
};
use model::tokenizer::train_bpe;
use model::{Architecture, SpecialTokens, Tokenizer};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Models, config, parameters};

fn silent(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A folder with a tokenizer and text examples.
fn texts() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let lines: Vec<(String, String)> =
        (0..24).map(|n| (format!("def double_{n}(x):"), format!(" return x * {}", n % 3))).collect();
    let special = SpecialTokens {
        bos: Some("<|begin|>".to_owned()),
        eos: Some("<|end|>".to_owned()),
        pad: Some("<|end|>".to_owned()),
        additional: Vec::new(),
    };
    let text = lines.iter().map(|(prompt, response)| format!("{prompt}{response}")).collect::<Vec<_>>();
    let tokenizer = train_bpe(text.iter().map(String::as_str), 300, &special).unwrap();
    std::fs::create_dir(dir.path().join("tokenizer")).unwrap();
    tokenizer.save(&dir.path().join("tokenizer"), None).unwrap();
    let mut sft = String::new();
    let mut pairs = String::new();
    for (n, (prompt, response)) in lines.iter().enumerate() {
        writeln!(sft, "{}", json!({"prompt": prompt, "response": response})).unwrap();
        let rejected = format!(" raise {n}");
        writeln!(pairs, "{}", json!({"prompt": prompt, "chosen": response, "rejected": rejected})).unwrap();
    }
    std::fs::write(dir.path().join("sft.jsonl"), sft).unwrap();
    std::fs::write(dir.path().join("pairs.jsonl"), pairs).unwrap();
    dir
}

fn sft_config(dir: &Path, output: &str) -> SftConfig {
    SftConfig {
        init: Some(InitConfig {
            tokenizer: dir.join("tokenizer"),
            hidden_size: 32,
            intermediate_size: 48,
            layers: 2,
            heads: 2,
            kv_heads: 2,
            ..InitConfig::default()
        }),
        data: dir.join("sft.jsonl"),
        eval_data: Some(dir.join("sft.jsonl")),
        output: dir.join(output),
        training: TrainingConfig { epochs: 6, batch_size: 8, seed: 4, ..TrainingConfig::default() },
        optimizer: OptimizerConfig { lr: 1e-2, ..OptimizerConfig::default() },
        execution: ExecutionConfig { threads: Some(1), ..ExecutionConfig::default() },
        ..SftConfig::default()
    }
}

fn bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn from_a_tokenizer_to_a_reward_model_the_same_bits_every_time() {
    let dir = texts();
    let dir = dir.path();
    let mut steps = Vec::new();
    let report = learner::sft(&sft_config(dir, "policy"), &mut |progress| {
        steps.push(progress);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((report.steps, report.examples, report.evaluations.len()), (18, 24, 6));
    assert_eq!(steps.iter().map(|progress| progress.step).collect::<Vec<_>>(), (1..=18).collect::<Vec<_>>());
    let [first, last] = [report.evaluations[0].loss, report.evaluations[5].loss];
    assert!(last < 0.5 * first && steps[0].loss > 4.0, "{first} {last} {steps:?}");
    // The folder is one that anything loads: tokenizer and ends of sequences included.
    let loaded = model::folder::load_config(&dir.join("policy")).unwrap();
    let tokenizer = Tokenizer::load(&dir.join("policy")).unwrap();
    assert_eq!(loaded.eos_token_ids, tokenizer.eos_ids());

    learner::sft(&sft_config(dir, "again"), &mut silent).unwrap();
    assert!(bytes(&dir.join("policy")) == bytes(&dir.join("again")));
    let mut other = sft_config(dir, "other-seed");
    other.training.seed = 5;
    learner::sft(&other, &mut silent).unwrap();
    assert!(bytes(&dir.join("policy")) != bytes(&dir.join("other-seed")));

    let rm = RewardModelConfig {
        model: dir.join("policy"),
        data: dir.join("pairs.jsonl"),
        output: dir.join("rm"),
        training: TrainingConfig { epochs: 3, batch_size: 8, ..TrainingConfig::default() },
        optimizer: OptimizerConfig { lr: 3e-3, ..OptimizerConfig::default() },
        execution: ExecutionConfig { threads: Some(1), ..ExecutionConfig::default() },
        ..RewardModelConfig::default()
    };
    let report = learner::train_rm(&rm, &mut silent).unwrap();
    let evaluation = report.evaluations.last().unwrap();
    assert!(!evaluation.held_out && evaluation.accuracy.unwrap() > 0.9, "{report}");
    let stored: Value = serde_json::from_slice(&std::fs::read(dir.join("rm/config.json")).unwrap()).unwrap();
    let scores = report.scores.unwrap();
    assert_eq!(stored[REWARD_MEAN_KEY], json!(scores.mean));
    assert_eq!(stored[REWARD_STD_KEY], json!(scores.std));
    assert_eq!(stored["architectures"], json!(["LlamaForSequenceClassification"]));
    assert!(scores.std > 0.0);
    // A reward model may go on from a reward model: the head and the shape stay.
    let next = RewardModelConfig { model: dir.join("rm"), output: dir.join("rm-2"), ..rm };
    let report = learner::train_rm(&next, &mut silent).unwrap();
    assert!(report.evaluations[0].accuracy.unwrap() > 0.9, "{report}");
}

#[test]
fn several_files_are_one_where_each_is_taken_once() {
    let dir = texts();
    let dir = dir.path();
    let lines = std::fs::read_to_string(dir.join("sft.jsonl")).unwrap();
    let (first, second) = lines.split_at(lines.match_indices('\n').nth(9).unwrap().0 + 1);
    std::fs::write(dir.join("first.jsonl"), first).unwrap();
    std::fs::write(dir.join("second.jsonl"), second).unwrap();
    let mixed = |output: &str, times: [f64; 2]| {
        let paths = ["first.jsonl", "second.jsonl"].map(|name| dir.join(name));
        let mixture = paths.into_iter().zip(times).map(|(path, times)| MixedData { path, times }).collect();
        SftConfig { data: PathBuf::new(), mixture, ..sft_config(dir, output) }
    };
    learner::sft(&sft_config(dir, "one"), &mut silent).unwrap();
    let report = learner::sft(&mixed("both", [1.0, 1.0]), &mut silent).unwrap();
    assert_eq!((report.steps, report.examples), (18, 24));
    assert!(bytes(&dir.join("one")) == bytes(&dir.join("both")));
    // 5 of the first ten and 28 of the others, in steps of eight.
    let report = learner::sft(&mixed("weighted", [0.5, 2.0]), &mut silent).unwrap();
    assert_eq!((report.steps, report.examples), (6 * 5, 24));
    assert!(bytes(&dir.join("one")) != bytes(&dir.join("weighted")));
    let both = SftConfig { data: dir.join("sft.jsonl"), ..mixed("none", [1.0, 0.0]) };
    let error = learner::sft(&both, &mut silent).unwrap_err().to_string();
    assert!(error.contains("data and mixture") && error.contains("mixture[1].times is 0"), "{error}");
}

#[test]
fn an_adapter_is_a_folder_that_peft_loads_and_the_policy_is_merged() {
    let models = Models::new(config(Architecture::Llama, false));
    let dir = models.dir.path();
    let lines: String = (1..9)
        .map(|n| format!("{{\"prompt_tokens\": [{n}, 3], \"response_tokens\": [{n}, 5, 6]}}\n"))
        .collect();
    std::fs::write(dir.join("sft.jsonl"), lines).unwrap();
    let lora = LoraConfig {
        rank: 2,
        alpha: 8.0,
        targets: vec![LoraTarget::QProj, LoraTarget::DownProj],
        start: None,
    };
    let config = SftConfig {
        model: Some(models.policy()),
        init: None,
        data: dir.join("sft.jsonl"),
        output: dir.join("out"),
        optimizer: OptimizerConfig { lr: 1e-2, ..OptimizerConfig::default() },
        training: TrainingConfig { epochs: 3, batch_size: 4, ..TrainingConfig::default() },
        execution: ExecutionConfig { lora: Some(lora), threads: Some(1), ..ExecutionConfig::default() },
        ..SftConfig::default()
    };
    learner::sft(&config, &mut silent).unwrap();
    let out = dir.join("out");
    let adapter: Value =
        serde_json::from_slice(&std::fs::read(out.join("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(adapter["peft_type"], "LORA");
    assert_eq!((&adapter["r"], &adapter["lora_alpha"]), (&json!(2), &json!(8.0)));
    assert_eq!(adapter["target_modules"], json!(["q_proj", "down_proj"]));
    let content = std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&content).unwrap();
    assert_eq!(tensors.len(), 2 * 2 * 3);
    let matrix = |name: &str| -> (Vec<usize>, Vec<f64>) {
        let view = tensors.tensor(name).unwrap();
        let floats = view.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
        (view.shape().to_vec(), floats.map(f64::from).collect())
    };
    let (before, after) = (parameters(&models.policy()), parameters(&out));
    for (name, after) in &after {
        let before = &before[name];
        if !(name.contains("q_proj") || name.contains("down_proj")) {
            assert_eq!(before, after, "{name}");
            continue;
        }
        let stem = format!("base_model.model.{}", name.trim_end_matches(".weight"));
        let (a_shape, a) = matrix(&format!("{stem}.lora_A.weight"));
        let (b_shape, b) = matrix(&format!("{stem}.lora_B.weight"));
        let (columns, rows) = (a_shape[1], b_shape[0]);
        assert_eq!((a_shape[0], b_shape[1], rows * columns), (2, 2, after.len()));
        let mut moved = 0.0f64;
        for (place, (before, after)) in before.iter().zip(after).enumerate() {
            let (row, column) = (place / columns, place % columns);
            let update: f64 = (0..2).map(|k| b[2 * row + k] * a[columns * k + column]).sum();
            assert!((before + 4.0 * update - after).abs() < 1e-6, "{name} {place}");
            moved += (after - before).abs();
        }
        assert!(moved > 0.0, "{name}");
    }
}

/// Training that goes on with adapters, and a reward model that is one.
#[test]
fn adapters_go_on_where_they_were_and_a_reward_model_has_them_too() {
    let dir = texts();
    let dir = dir.path();
    let lora = LoraConfig { rank: 2, alpha: 8.0, ..LoraConfig::default() };
    let execution = |lora: &LoraConfig| ExecutionConfig {
        lora: Some(lora.clone()),
        threads: Some(1),
        ..ExecutionConfig::default()
    };
    learner::sft(&sft_config(dir, "base"), &mut silent).unwrap();
    let adapted = SftConfig {
        model: Some(dir.join("base")),
        init: None,
        execution: execution(&lora),
        ..sft_config(dir, "adapted")
    };
    learner::sft(&adapted, &mut silent).unwrap();
    let start = LoraConfig { start: Some(dir.join("adapted/adapter")), ..lora.clone() };
    let mut again = SftConfig { output: dir.join("again"), execution: execution(&start), ..adapted };
    again.optimizer.lr = 0.0;
    learner::sft(&again, &mut silent).unwrap();
    assert!(bytes(&dir.join("adapted")) == bytes(&dir.join("again")), "nothing is learnt at 0");
    let wrong = LoraConfig { rank: 3, ..start.clone() };
    let refused = SftConfig { output: dir.join("wrong"), execution: execution(&wrong), ..again };
    let message = learner::sft(&refused, &mut silent).unwrap_err().to_string();
    assert!(message.contains("has rank 2, lora.rank is 3"), "{message}");

    let rm = RewardModelConfig {
        model: dir.join("base"),
        data: dir.join("pairs.jsonl"),
        output: dir.join("rm"),
        training: TrainingConfig { epochs: 6, batch_size: 8, ..TrainingConfig::default() },
        optimizer: OptimizerConfig { lr: 1e-2, ..OptimizerConfig::default() },
        execution: execution(&lora),
        ..RewardModelConfig::default()
    };
    let report = learner::train_rm(&rm, &mut silent).unwrap();
    assert!(report.evaluations.last().unwrap().accuracy.unwrap() > 0.9, "{report}");
    let adapter: Value =
        serde_json::from_slice(&std::fs::read(dir.join("rm/adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&adapter["task_type"], &adapter["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["score"])));
    let (base, trained) = (parameters(&dir.join("base")), parameters(&dir.join("rm")));
    assert_eq!(base["model.norm.weight"], trained["model.norm.weight"]);
    assert_ne!(base["model.layers.0.mlp.up_proj.weight"], trained["model.layers.0.mlp.up_proj.weight"]);
    let start = LoraConfig { start: Some(dir.join("rm/adapter")), ..lora };
    let mut again = RewardModelConfig { output: dir.join("rm-again"), execution: execution(&start), ..rm };
    again.optimizer.lr = 0.0;
    learner::train_rm(&again, &mut silent).unwrap();
    assert!(bytes(&dir.join("rm")) == bytes(&dir.join("rm-again")));
}

#[test]
fn bad_input_names_its_place_and_leaves_nothing_behind() {
    let dir = texts();
    let dir = dir.path();
    let fails = |config: &SftConfig| {
        let message = learner::sft(config, &mut silent).unwrap_err().to_string();
        assert!(!dir.join("out").exists());
        message
    };
    let good = sft_config(dir, "out");
    let with_data = |content: &str| {
        std::fs::write(dir.join("bad.jsonl"), content).unwrap();
        SftConfig { data: dir.join("bad.jsonl"), ..good.clone() }
    };
    let line = "{\"prompt\": \"a\", \"response\": \"b\"}\n";
    let message = fails(&with_data(&format!("{line}{line}{{\"prompt\": \"a\"}}\n")));
    assert!(message.contains("bad.jsonl:3: is none of {\"messages\""), "{message}");
    let message = fails(&with_data(&format!("{line}{{oops\n")));
    assert!(message.contains("bad.jsonl:2: "), "{message}");
    let message = fails(&with_data("{\"prompt_tokens\": [1], \"response_tokens\": [9999]}\n"));
    assert!(message.contains("token 9999 is outside the vocabulary"), "{message}");
    let message = fails(&with_data(""));
    assert!(message.contains("no example"), "{message}");
    let message = fails(&SftConfig { data: PathBuf::from("/no/such.jsonl"), ..good.clone() });
    assert!(message.contains("open /no/such.jsonl"), "{message}");
    let message = fails(&SftConfig { model: Some("/no/model".into()), init: None, ..good.clone() });
    assert!(message.contains("/no/model"), "{message}");
    let message = fails(&SftConfig { init: None, ..good.clone() });
    assert!(message.contains("give exactly one"), "{message}");
    let taken = SftConfig { output: dir.join("tokenizer"), ..good };
    let message = learner::sft(&taken, &mut silent).unwrap_err().to_string();
    assert!(message.contains("is there already"), "{message}");
}

#[test]
fn long_examples_are_left_out_and_counted() {
    let dir = texts();
    let mut config = sft_config(dir.path(), "out");
    let long = json!({"prompt_tokens": vec![1; 40], "response_tokens": [2]});
    let short = json!({"prompt_tokens": [1, 2], "response_tokens": [2]});
    std::fs::write(dir.path().join("mixed.jsonl"), format!("{long}\n{short}\n")).unwrap();
    config.data = dir.path().join("mixed.jsonl");
    config.training.max_length = 40;
    let report = learner::sft(&config, &mut silent).unwrap();
    assert_eq!((report.examples, report.too_long), (1, 1));
}

#[test]
fn a_file_without_an_example_is_told_from_one_whose_examples_are_too_long() {
    let dir = texts();
    let mut config = sft_config(dir.path(), "out");
    config.training.max_length = 3;
    let error = learner::sft(&config, &mut silent).unwrap_err();
    assert!(error.is_bad_input(), "{error}");
    let expected = "each of its 24 examples has more than training.max_length = 3 tokens";
    assert!(error.to_string().contains(expected), "{error}");
    std::fs::write(&config.data, "").unwrap();
    let error = learner::sft(&config, &mut silent).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("the file has no example"), "{error}");
}
