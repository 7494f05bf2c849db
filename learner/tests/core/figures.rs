//! Figures of a step that decide nothing and that people go by: learning rates, what was clipped or masked.

use algo::{Correction, Schedule};
use learner::{Bound, PpoConfig};
use model::Architecture;
use types::{Batch, BatchId, Rollout, RolloutParts, Sampling, ScoredRollout, Scores};

use crate::support::{Models, batch_of, config, gradient_config};

/// The policy's learning rate in the last minibatch of batches of so many samples, four a minibatch.
fn rates(ppo: &PpoConfig, sizes: &[usize], last_batch: u64) -> Vec<f64> {
    let models = Models::new(config(Architecture::Llama, false));
    let mut trainer = models.trainer(ppo, None);
    trainer.set_run(&Sampling::default(), BatchId(last_batch)).unwrap();
    let steps = (1..).zip(sizes).map(|(id, samples)| trainer.step(&models.batch(id, *samples)).unwrap());
    steps.map(|metrics| metrics.policy_lr.unwrap()).collect()
}

fn four_a_minibatch() -> PpoConfig {
    PpoConfig { ppo_epochs: 1, minibatch_size: 4, policy_lr: 1e-4, critic_lr: 1e-4, ..PpoConfig::default() }
}

/// The warm-up goes by the optimizer steps that were made, so that batches of different size neither jump in
/// it nor go back.
#[test]
fn the_warm_up_counts_steps() {
    let ppo = PpoConfig { warmup_steps: 6, ..four_a_minibatch() };
    // 1, 4, 1, 1 and 2 steps.
    let found = rates(&ppo, &[4, 16, 4, 4, 8], 40);
    let expected = [0.0, 4.0, 5.0, 6.0, 6.0].map(|made| 1e-4 * made / 6.0);
    assert!(
        found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12),
        "{found:?}"
    );
}

/// A schedule over the run goes by batches, as if each had as many steps as the one that trains.
#[test]
fn a_schedule_of_the_run_does_not_jump_with_the_size_of_batches() {
    let ppo = PpoConfig { schedule: Schedule::Cosine, warmup_share: 0.2, ..four_a_minibatch() };
    let sizes = [4, 16, 4, 16, 4, 16, 4, 16, 4, 16];
    let found = rates(&ppo, &sizes, 10);
    for ((version, size), rate) in (0i32..).zip(sizes).zip(&found) {
        let steps = size as f64 / 4.0;
        let place = f64::from(version) + (steps - 1.0) / steps;
        let expected = if place < 2.0 {
            place / 2.0
        } else {
            0.5 * (1.0 + (std::f64::consts::PI * (place - 2.0) / 8.0).cos())
        };
        assert!((rate - 1e-4 * expected).abs() < 1e-12, "{version}: {found:?}");
    }
    let rises: Vec<bool> = found.windows(2).map(|pair| pair[1] > pair[0]).collect();
    assert_eq!(rises, [true, true, false, false, false, false, false, false, false], "{found:?}");
}

#[test]
fn scores_beyond_the_clip_are_counted() {
    let models = Models::new(config(Architecture::Llama, false));
    let scores = [12.0, -12.0, 10.0, -10.0, 0.5, 10.5, 3.0, -9.0];
    let samples = models.batch(1, 8).into_samples().into_iter().zip(scores).map(|(sample, score)| {
        let weight = sample.weight();
        let (rollout, scores) = sample.into_scored().into_parts();
        (ScoredRollout::new(rollout, Scores { score, ..scores }).unwrap(), weight)
    });
    let batch = batch_of(1, samples.collect());
    let clipped = |score_clip: Bound| {
        let ppo = PpoConfig { score_clip, ..gradient_config() };
        models.trainer(&ppo, None).step(&batch).unwrap().scores_clipped
    };
    assert_eq!((clipped(Bound::At(10.0)), clipped(Bound::At(20.0)), clipped(Bound::Off)), (3, 0, 0));
}

/// The first `unlikely` tokens of the first sample were drawn at a twentieth of what the learner gives them.
fn with_unlikely_tokens(batch: Batch, unlikely: usize) -> Batch {
    let samples = batch.into_samples().into_iter().enumerate().map(|(at, sample)| {
        let weight = sample.weight();
        let (rollout, scores) = sample.into_scored().into_parts();
        let RolloutParts { mut rollout_logprobs, .. } = rollout.clone().into_parts();
        if at == 3 {
            rollout_logprobs[..unlikely].iter_mut().for_each(|logprob| *logprob -= 3.0);
        }
        let rollout = Rollout::new(RolloutParts { rollout_logprobs, ..rollout.into_parts() }).unwrap();
        (ScoredRollout::new(rollout, scores).unwrap(), weight)
    });
    batch_of(1, samples.collect())
}

#[test]
fn tokens_that_a_correction_rejects_are_counted() {
    let models = Models::new(config(Architecture::Llama, false));
    let batch = with_unlikely_tokens(models.batch(1, 8), 5);
    let masked = |correction: Correction| {
        let ppo = PpoConfig { correction: Some(correction), ..gradient_config() };
        models.trainer(&ppo, None).step(&batch).unwrap().masked_tokens
    };
    assert_eq!(masked(Correction::TokenMask { min: 0.0, max: 5.0 }), 5);
    assert_eq!(masked(Correction::TokenTruncate { max: 5.0 }), 0, "they train with less weight");
    assert_eq!(masked(Correction::None), 0);
}
