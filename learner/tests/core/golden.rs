//! The numbers of an independent PyTorch implementation of the documented semantics
//! (`bench/reference/golden.py` makes the folder `golden/`): gradients and updates of the PPO step for every
//! algorithm and option, and of the supervised objectives.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use learner::{Device, PpoConfig, ReplayOptions};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{GRADIENT_SCALE, logged, parameters};

/// A gradient may differ by this share of its length, and an update after several optimizer steps by that.
const GRADIENT_TOLERANCE: f64 = 1e-5;
const UPDATE_TOLERANCE: f64 = 1e-3;

#[derive(Deserialize)]
struct Case {
    name: String,
    net: String,
    batch: String,
    kind: String,
    config: Value,
    temperature: Option<f32>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn table<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    serde_json::from_slice(&std::fs::read(golden().join(name)).unwrap()).unwrap()
}

/// The expected numbers under `prefix`, by what follows it.
fn expected(prefix: &str) -> BTreeMap<String, Vec<f64>> {
    let bytes = std::fs::read(golden().join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| -> Vec<f64> {
        data.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
    };
    let found: BTreeMap<_, _> = tensors
        .tensors()
        .into_iter()
        .filter_map(|(name, view)| Some((name.strip_prefix(prefix)?.to_owned(), floats(view.data()))))
        .collect();
    assert!(!found.is_empty(), "no numbers for {prefix}");
    found
}

/// Numbers by the name of their tensor.
type Named = BTreeMap<String, Vec<f64>>;

/// How far what `after` moved away from `before`, times `scale`, is from what was expected, over the length
/// of that.
fn apart(expected: &Named, (before, after): (&Named, &Named), scale: f64) -> f64 {
    assert!(expected.keys().eq(after.keys()), "{:?} {:?}", expected.keys(), after.keys());
    let (mut difference, mut length) = (0.0, 0.0);
    for (name, wanted) in expected {
        assert_eq!(wanted.len(), after[name].len(), "{name}");
        for ((wanted, after), before) in wanted.iter().zip(&after[name]).zip(&before[name]) {
            difference += ((after - before) * scale - wanted).powi(2);
            length += wanted.powi(2);
        }
    }
    assert!(length > 0.0, "nothing was to move");
    (difference / length).sqrt()
}

#[test]
fn gradients_and_updates_are_those_of_the_reference() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    for case in table::<Case>("cases.json") {
        let net = golden().join(&case.net);
        let config: PpoConfig = serde_json::from_value(case.config).unwrap();
        let has_critic = config.needs_critic();
        let options = ReplayOptions {
            policy: net.join("policy"),
            critic: Some(net.join("critic")),
            batch: net.join(format!("{}.jsonl", case.batch)),
            config,
            output: dir.path().join(&case.name),
            ranks: 1,
            device: Device::Cpu,
            temperature: case.temperature.unwrap_or(1.0),
            max_new_tokens: None,
        };
        learner::replay(&options, &service::jsonl::WrongLines::default()).unwrap();
        let (scale, tolerance) = match case.kind.as_str() {
            "gradient" => (-1.0 / GRADIENT_SCALE, GRADIENT_TOLERANCE),
            _ => (1.0, UPDATE_TOLERANCE),
        };
        for model in ["policy", "critic"].into_iter().take(1 + usize::from(has_critic)) {
            let expected = expected(&format!("{}.{model}.", case.name));
            let before = parameters(&net.join(model));
            let after = parameters(&options.output.join(model));
            let apart = apart(&expected, (&before, &after), scale);
            println!("{} {model}: {apart:.1e}", case.name);
            assert!(apart < tolerance, "{} {model}: {apart:.2e}", case.name);
        }
    }
}

#[derive(Deserialize)]
struct Supervised {
    name: String,
    command: String,
    config: Value,
    losses: Vec<f64>,
}

#[test]
fn supervised_objectives_are_those_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let net = golden().join("tiny");
    for case in table::<Supervised>("supervised.json") {
        let start = net.join(if case.command == "train-rm" { "critic" } else { "policy" });
        let output = dir.path().join(&case.name);
        for (ranks, microbatch_tokens) in [(1, 8192), (2, 8)] {
            let output = output.with_extension(ranks.to_string());
            let mut config = case.config.clone();
            config["model"] = json!(start);
            config["data"] = json!(golden().join("examples.jsonl"));
            config["output"] = json!(output);
            config["execution"] =
                json!({"ranks": ranks, "threads": 1, "microbatch_tokens": microbatch_tokens});
            let mut losses = Vec::new();
            let mut hear = |progress: learner::Progress| {
                losses.push(progress.loss);
                ControlFlow::Continue(())
            };
            let report = match case.command.as_str() {
                "sft" => learner::sft(&serde_json::from_value(config).unwrap(), &mut hear),
                "train-rm" => learner::train_rm(&serde_json::from_value(config).unwrap(), &mut hear),
                _ => learner::dpo(&serde_json::from_value(config).unwrap(), &mut hear),
            };
            assert_eq!(report.unwrap().examples, 8);
            for (found, wanted) in losses.iter().zip(&case.losses) {
                assert!(
                    (found - wanted).abs() < 1e-4 * wanted.abs().max(0.1),
                    "{}: {found} {wanted}",
                    case.name
                );
            }
            assert_eq!(losses.len(), case.losses.len());
            let expected = expected(&format!("{}.", case.name));
            let apart = apart(&expected, (&parameters(&start), &parameters(&output)), 1.0);
            println!("{} on {ranks} ranks: {apart:.1e}", case.name);
            assert!(apart < UPDATE_TOLERANCE, "{} on {ranks} ranks: {apart:.2e}", case.name);
        }
    }
}

#[derive(Deserialize)]
struct Conversations {
    loss: f64,
    learnt_tokens: usize,
}

/// Dr. GRPO divides by the longest response that a run allows, which a file of samples does not say.
#[test]
fn a_replay_divides_by_what_the_run_allowed() {
    tch::set_num_threads(1);
    let (dir, net) = (tempfile::tempdir().unwrap(), golden().join("tiny"));
    let cases = table::<Case>("cases.json");
    let case = cases.iter().find(|case| case.net == "tiny").unwrap();
    let replay = |name: &str, norm_tokens: Option<usize>, max_new_tokens: Option<u32>| {
        let config = PpoConfig {
            algorithm: algo::Algorithm::DrGrpo,
            norm_tokens,
            ppo_epochs: 1,
            ..PpoConfig::default()
        };
        let options = ReplayOptions {
            policy: net.join("policy"),
            critic: None,
            batch: net.join(format!("{}.jsonl", case.batch)),
            config,
            output: dir.path().join(name),
            ranks: 1,
            device: Device::Cpu,
            temperature: 1.0,
            max_new_tokens,
        };
        let (metrics, said) =
            logged(|| learner::replay(&options, &service::jsonl::WrongLines::default()).unwrap());
        (metrics.policy_grad_norm.unwrap(), said.contains("divided by the longest response of the file"))
    };
    let (of_run, is_warned) = replay("run", None, Some(1000));
    assert!(!is_warned);
    assert_eq!(replay("norm", Some(1000), None), (of_run, false));
    let (of_file, is_warned) = replay("file", None, None);
    assert!(is_warned && of_file > 2.0 * of_run, "{of_file} {of_run}");
}

/// Pairs of conversations in both public shapes, to the end: each is the same pair to the reward model and to
/// DPO as the other.
#[test]
fn pairs_of_conversations_train_alike_in_both_shapes() {
    tch::set_num_threads(1);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations/model");
    let dir = tempfile::tempdir().unwrap();
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let (ask, good, bad) = (said("user", "hi"), said("assistant", "good"), said("assistant", "bad"));
    let shapes = [
        ("whole", json!({"chosen": [ask, good], "rejected": [ask, bad]})),
        ("apart", json!({"prompt": [ask], "chosen": [good], "rejected": [bad]})),
    ];
    let mut outputs = Vec::new();
    for (name, line) in shapes {
        let data = dir.path().join(format!("{name}.jsonl"));
        std::fs::write(&data, format!("{line}\n{line}\n")).unwrap();
        let of = |output: &str| {
            json!({
                "model": model, "data": data, "output": dir.path().join(format!("{name}-{output}")),
                "execution": {"threads": 1},
            })
        };
        let mut losses = Vec::new();
        let mut note = |progress: learner::Progress| {
            losses.push(progress.loss);
            ControlFlow::Continue(())
        };
        let reward_model = learner::train_rm(&serde_json::from_value(of("rm")).unwrap(), &mut note).unwrap();
        let dpo = learner::dpo(&serde_json::from_value(of("dpo")).unwrap(), &mut note).unwrap();
        assert_eq!((reward_model.examples, dpo.examples), (2, 2));
        // DPO begins at its reference: log 2, whatever the pair.
        let first_of_dpo = losses[losses.len() / 2];
        assert!((first_of_dpo - std::f64::consts::LN_2).abs() < 1e-6, "{losses:?}");
        assert!(losses.iter().all(|loss| loss.is_finite()));
        let weights = ["rm", "dpo"]
            .map(|made| std::fs::read(dir.path().join(format!("{name}-{made}/model.safetensors"))).unwrap());
        outputs.push((losses, weights));
    }
    assert!(outputs[0] == outputs[1], "the shapes differ: {:?} {:?}", outputs[0].0, outputs[1].0);
}

/// `bench/reference/conversations.py` makes the folder `conversations/`: a model with a chat template, and
/// what TRL's `assistant_only_loss` says of the first step over its rows.
#[test]
fn conversations_are_learnt_as_trl_learns_them() {
    tch::set_num_threads(1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conversations");
    let expected = std::fs::read(folder.join("expected.json")).unwrap();
    let expected: Conversations = serde_json::from_slice(&expected).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (ranks, microbatch_tokens) in [(1, 8192), (2, 100)] {
        let config = json!({
            "model": folder.join("model"),
            "data": folder.join("rows.jsonl"),
            "output": dir.path().join(ranks.to_string()),
            "execution": {"ranks": ranks, "threads": 1, "microbatch_tokens": microbatch_tokens},
        });
        let mut losses = Vec::new();
        let report = learner::sft(&serde_json::from_value(config).unwrap(), &mut |progress| {
            losses.push(progress.loss);
            ControlFlow::Continue(())
        });
        assert_eq!(report.unwrap().learnt_tokens, expected.learnt_tokens);
        let apart = (losses[0] - expected.loss).abs() / expected.loss;
        assert!(losses.len() == 1 && apart < 1e-5, "{losses:?} {}", expected.loss);
    }
}
