//! Steps whose loss or gradient is no finite number are skipped on all ranks alike, and too many end
//! training.

use algo::{Aggregation, Algorithm};
use learner::{Bound, Device, Error, PpoConfig, Whiten, ZeroStage, on_ranks};
use model::Architecture;
use types::{Batch, ScoredRollout, Scores};

use crate::support::{Models, batch_of, config, flat, logged, measured};

/// A gradient that does not fit f32: a score near f32's end, summed over tokens, with nothing that bounds it.
fn unbounded() -> PpoConfig {
    PpoConfig {
        score_clip: Bound::Off,
        whiten: Some(Whiten::Off),
        loss_aggregation: Some(Aggregation::TokenSum),
        ppo_epochs: 1,
        minibatch_size: 4,
        shuffle: false,
        microbatch_tokens: 24,
        policy_lr: 1e-3,
        critic_lr: 1e-3,
        // Rounding must not decide the direction of a step.
        adam_eps: 1e-3,
        ..PpoConfig::default()
    }
}

/// The batch with a score for its first sample that no gradient survives.
fn poisoned(batch: Batch) -> Batch {
    let id = batch.id().0;
    let samples = batch.into_samples().into_iter().enumerate().map(|(at, sample)| {
        let weight = sample.weight();
        let (rollout, scores) = sample.into_scored().into_parts();
        let score = if at == 0 { 3e38 } else { scores.score };
        (ScoredRollout::new(rollout, Scores { score, ..scores }).unwrap(), weight)
    });
    batch_of(id, samples.collect())
}

fn weights(trainer: &learner::Trainer) -> Vec<f64> {
    let mut all = flat(&trainer.policy_flats().unwrap());
    all.extend(flat(&trainer.critic_flats().unwrap().unwrap()));
    all
}

#[test]
fn what_a_skipped_step_was_to_learn_from_is_named() {
    let models = Models::new(config(Architecture::Llama, false));
    let batch = poisoned(models.batch(1, 8));
    let ids: Vec<String> = batch.samples().iter().map(|sample| sample.rollout().id().to_string()).collect();
    let mut trainer = models.trainer(&unbounded(), None);
    let (metrics, said) = logged(|| trainer.step(&batch).unwrap());
    assert_eq!(metrics.skipped_steps, 2);
    for model in ["policy", "critic"] {
        let of_model =
            said.lines().find(|line| line.contains("step skipped") && line.contains(model)).unwrap();
        assert!(of_model.contains("WARN") && of_model.contains(&ids[..4].join(", ")), "{of_model}");
        assert!(
            ids[4..].iter().all(|id| !of_model.contains(id)),
            "the second minibatch was sound: {of_model}"
        );
    }
}

#[test]
fn a_step_without_a_gradient_is_skipped_on_all_ranks_alike() {
    let models = Models::new(config(Architecture::Llama, false));
    let first = poisoned(models.batch(1, 8));
    let second = models.batch(2, 8);
    for (ranks, zero_stage) in [
        (1, ZeroStage::Off),
        (2, ZeroStage::Off),
        (2, ZeroStage::Optimizer),
        (2, ZeroStage::Gradients),
        (2, ZeroStage::Weights),
    ] {
        let ppo = PpoConfig { zero_stage, ..unbounded() };
        let of_rank = on_ranks(ranks, Device::Cpu, |group| {
            let mut trainer = models.trainer(&ppo, group);
            let mut sound = models.batch(1, 8).into_samples();
            let before = weights(&trainer);
            // The second minibatch of the batch holds the samples that are sound.
            let metrics = trainer.step(&first)?;
            assert_eq!(metrics.skipped_steps, 2, "policy and critic of the first of two minibatches");
            assert_eq!(metrics.not_finite(), None);
            let after = weights(&trainer);
            assert_ne!(before, after, "the other minibatch trains");
            assert_eq!(trainer.step(&second)?.skipped_steps, 0);
            // What was skipped left nothing behind: the second minibatch alone comes to the same.
            let mut alone = models.trainer(&PpoConfig { zero_stage: ZeroStage::Off, ..ppo.clone() }, None);
            let rest = sound.split_off(4).into_iter().map(|sample| {
                let weight = sample.weight();
                (sample.into_scored(), weight)
            });
            alone.step(&batch_of(1, rest.collect()))?;
            let apart = crate::support::difference(&after, &weights(&alone));
            assert!(apart < 1e-5, "{apart}");
            Ok(after)
        });
        let of_rank = of_rank.unwrap();
        assert!(of_rank.iter().all(|weights| *weights == of_rank[0]), "{ranks} ranks, {zero_stage:?}");
    }
}

#[test]
fn a_network_that_says_nothing_ends_training_after_so_many_steps() {
    let models = Models::new(config(Architecture::Llama, false));
    let broken = PpoConfig {
        algorithm: Algorithm::DrGrpo,
        policy_lr: 1e30,
        ppo_epochs: 2,
        minibatch_size: 4,
        microbatch_tokens: 24,
        ..PpoConfig::default()
    };
    for ranks in [1, 2] {
        let metrics = on_ranks(ranks, Device::Cpu, |group| {
            let mut trainer = models.trainer(&PpoConfig { max_skipped: 4, ..broken.clone() }, group);
            let first = trainer.step(&models.batch(1, 8))?;
            assert!(first.policy_loss.is_some() && first.policy_grad_norm.is_some(), "one step was made");
            // Nothing can be computed before the update: the whole batch is skipped, which counts once.
            let second = trainer.step(&models.batch(2, 8))?;
            assert_eq!(trainer.version().0, 2);
            assert_eq!(measured(&second), [None; 8], "nothing is drawn as 0");
            assert!(second.score_mean.is_some());
            Ok((first.skipped_steps, second.skipped_steps))
        });
        assert!(metrics.unwrap().into_iter().all(|skipped| skipped == (3, 4)));

        let ended = on_ranks(ranks, Device::Cpu, |group| {
            models.trainer(&PpoConfig { max_skipped: 2, ..broken.clone() }, group).step(&models.batch(1, 8))
        });
        let error = ended.unwrap_err();
        assert!(matches!(error, Error::Diverged { steps: 1, skipped: 3, .. }), "{error}");
    }
}
