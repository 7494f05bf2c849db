//! Training on examples that is followed, interrupted, gone on with, and ended by its evaluations.

use std::ops::ControlFlow;
use std::path::Path;

use learner::{
    Error, ExecutionConfig, OptimizerConfig, PreferenceConfig, Progress, RewardModelConfig, SftConfig,
    TrainingConfig, TrainingReport, ZeroStage,
};
use model::Architecture;
use serde_json::{Value, json};

use crate::support::{Models, config, parameters};

fn going_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Twenty short examples, learnt in two passes of five steps.
fn sft(models: &Models, output: &str, execution: ExecutionConfig) -> SftConfig {
    let dir = models.dir.path();
    let lines: String = (1..21)
        .map(|n| format!("{}\n", json!({"prompt_tokens": [n, 3, n], "response_tokens": [n + 1, 5, 6]})))
        .collect();
    std::fs::write(dir.join("data.jsonl"), lines).unwrap();
    SftConfig {
        model: Some(models.policy()),
        data: dir.join("data.jsonl"),
        output: dir.join(output),
        optimizer: OptimizerConfig { lr: 1e-2, ..OptimizerConfig::default() },
        training: TrainingConfig { epochs: 2, batch_size: 4, seed: 3, ..TrainingConfig::default() },
        execution: ExecutionConfig { threads: Some(1), ..execution },
        ..SftConfig::default()
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_bits() {
    let models = Models::new(config(Architecture::Llama, false));
    let several = ExecutionConfig { ranks: 2, zero_stage: ZeroStage::Weights, ..ExecutionConfig::default() };
    for (name, execution) in [("one", ExecutionConfig::default()), ("two", several)] {
        let whole = sft(&models, &format!("{name}-whole"), execution.clone());
        learner::sft(&whole, &mut going_on).unwrap();

        let parts = sft(&models, &format!("{name}-parts"), execution);
        let told_to_stop = |progress: Progress| match progress.step {
            3.. => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let error = learner::sft(&parts, &mut { told_to_stop }).unwrap_err();
        let Error::Interrupted { step, folder } = error else { panic!("{error}") };
        assert!((3..10).contains(&step) && !parts.output.exists(), "{step}");
        assert!(folder.join(format!("step-{step:08}/state.json")).is_file());
        let mut steps = Vec::new();
        let report = learner::sft(&parts, &mut |progress: Progress| {
            steps.push(progress.step);
            ControlFlow::Continue(())
        });
        assert_eq!(steps, (step + 1..=10).collect::<Vec<_>>());
        assert_eq!(report.unwrap().steps, 10);
        assert!(parameters(&whole.output) == parameters(&parts.output), "{name}: other bits");
        // Every step has one line, whoever made it, and the folder of the training is gone.
        for output in [&whole.output, &parts.output] {
            let found: Vec<_> = lines(&output.join("steps.jsonl"))
                .iter()
                .map(|line| line["step"].as_u64().unwrap())
                .collect();
            assert_eq!(found, (1..=10).collect::<Vec<_>>());
        }
        assert!(!folder.exists());
    }
}

/// Trains whole, and in two parts; both leave the same parameters and a line for each step.
fn in_parts(
    outputs: [&Path; 2],
    train: impl Fn(&Path, &mut dyn FnMut(Progress) -> ControlFlow<()>) -> learner::Result<TrainingReport>,
) {
    let [whole, parts] = outputs;
    train(whole, &mut going_on).unwrap();
    let error = train(parts, &mut |progress: Progress| match progress.step {
        2.. => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let Error::Interrupted { step, .. } = error.unwrap_err() else { panic!("not interrupted") };
    assert!((2..5).contains(&step) && !parts.exists(), "{step}");
    assert_eq!(train(parts, &mut going_on).unwrap().steps, 5);
    assert!(parameters(whole) == parameters(parts), "other bits");
    for output in outputs {
        let mut lines = lines(&output.join("steps.jsonl"));
        // A pass ends with an evaluation.
        lines.retain(|line| !line["evaluation"].is_object());
        let steps: Vec<_> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, (1..=5).collect::<Vec<_>>());
        assert!(
            lines.iter().all(|line| line["accuracy"].is_number() && line["margin"].is_number()),
            "{lines:?}"
        );
        // The curves of both sides, whose distance the margin is.
        for line in &lines {
            let number = |key: &str| line[key].as_f64().unwrap();
            let distance = number("reward_chosen") - number("reward_rejected");
            assert!((distance - number("margin")).abs() < 1e-9, "{line}");
        }
    }
}

#[test]
fn reward_models_and_dpo_go_on_to_the_same_bits() {
    let models = Models::new(config(Architecture::Llama, false));
    let dir = models.dir.path();
    let pairs: String = (1..21)
        .map(|n| json!({"prompt_tokens": [n, 3], "chosen_tokens": [n + 1, 5], "rejected_tokens": [7, n]}))
        .map(|pair| format!("{pair}\n"))
        .collect();
    let data = dir.join("pairs.jsonl");
    std::fs::write(&data, pairs).unwrap();
    let training = TrainingConfig { epochs: 1, batch_size: 4, seed: 3, ..TrainingConfig::default() };
    let execution = ExecutionConfig { threads: Some(1), ..ExecutionConfig::default() };
    in_parts([&dir.join("rm-whole"), &dir.join("rm-parts")], |output, progress| {
        let config = RewardModelConfig {
            model: models.policy(),
            data: data.clone(),
            output: output.to_owned(),
            training: training.clone(),
            execution: execution.clone(),
            ..RewardModelConfig::default()
        };
        learner::train_rm(&config, progress)
    });
    in_parts([&dir.join("dpo-whole"), &dir.join("dpo-parts")], |output, progress| {
        let config = PreferenceConfig {
            model: models.policy(),
            data: data.clone(),
            output: output.to_owned(),
            training: training.clone(),
            execution: execution.clone(),
            ..PreferenceConfig::default()
        };
        learner::dpo(&config, progress)
    });
}

#[test]
fn another_configuration_does_not_go_on_with_a_training() {
    let models = Models::new(config(Architecture::Llama, false));
    let begun = sft(&models, "out", ExecutionConfig::default());
    learner::sft(&begun, &mut |_: Progress| ControlFlow::Break(())).unwrap_err();
    let other = SftConfig { optimizer: OptimizerConfig { lr: 1e-3, ..begun.optimizer.clone() }, ..begun };
    let error = learner::sft(&other, &mut going_on).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("another configuration"), "{error}");
}

#[test]
fn checkpoints_are_written_as_often_as_asked_and_two_are_kept() {
    let models = Models::new(config(Architecture::Llama, false));
    let mut every = sft(&models, "out", ExecutionConfig::default());
    every.training.save_every = 2;
    let mut last = 0;
    let error = learner::sft(&every, &mut |progress: Progress| {
        last = progress.step;
        if progress.step >= 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let Error::Interrupted { step, folder } = error.unwrap_err() else { panic!("not interrupted") };
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| name.starts_with("step-"));
    names.sort();
    let before = if step % 2 == 0 { step - 2 } else { step - 1 };
    assert_eq!(names, [format!("step-{before:08}"), format!("step-{step:08}")]);
}

#[test]
fn evaluations_end_a_training_and_keep_its_best_network() {
    let models = Models::new(config(Architecture::Llama, false));
    let mut ended = sft(&models, "out", ExecutionConfig::default());
    // What is held out contradicts what is learnt: the loss on it rises sooner or later.
    let held_out: String = (1..21)
        .map(|n| format!("{}\n", json!({"prompt_tokens": [n, 3, n], "response_tokens": [40, 41, n]})))
        .collect();
    let path = models.dir.path().join("held-out.jsonl");
    std::fs::write(&path, held_out).unwrap();
    ended.eval_data = Some(path);
    ended.training = TrainingConfig { epochs: 40, eval_every: 2, stop_after_evals: 3, ..ended.training };
    let report = learner::sft(&ended, &mut going_on).unwrap();
    assert!(report.steps < 200, "{report}");
    let losses: Vec<f64> = report.evaluations.iter().map(|evaluation| evaluation.loss).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(losses[losses.len() - 3..].iter().all(|loss| *loss >= best));
    assert_eq!(losses[losses.len() - 4], best, "it ends at the third evaluation without a gain");
    let (kept, last) = (parameters(&ended.output.join("best")), parameters(&ended.output));
    assert!(kept.keys().eq(last.keys()) && kept != last);
    let lines = lines(&ended.output.join("steps.jsonl"));
    let evaluations = lines.iter().filter(|line| line["evaluation"].is_object()).count();
    assert_eq!(evaluations, losses.len());

    ended.eval_data = None;
    ended.output = models.dir.path().join("other");
    assert!(learner::sft(&ended, &mut going_on).unwrap_err().to_string().contains("stop_after_evals"));
}
