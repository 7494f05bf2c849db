//! What becomes of responses that were cut off by the length limit.

use algo::Algorithm;
use learner::{PpoConfig, Truncated};
use model::Architecture;
use types::{Batch, FinishReason, Sample, ScoredRollout, Scores};

use crate::support::{Models, batch_of, config, difference, flat, gradient, gradient_config, measured};

fn is_cut_off(sample: &Sample) -> bool {
    sample.rollout().finish_reason() == FinishReason::Length
}

/// The policy's gradient, and what was measured.
fn trained(models: &Models, ppo: &PpoConfig, batch: &Batch) -> (Vec<f64>, types::link::learner::StepMetrics) {
    let mut trainer = models.trainer(ppo, None);
    let before = flat(&trainer.policy_flats().unwrap());
    let metrics = trainer.step(batch).unwrap();
    (gradient(&before, &flat(&trainer.policy_flats().unwrap())), metrics)
}

#[test]
fn what_was_cut_off_can_be_left_out_and_still_counts_for_its_siblings() {
    let models = Models::new(config(Architecture::Llama, false));
    let batch = models.batch(1, 12);
    let cut_off = batch.samples().iter().filter(|sample| is_cut_off(sample)).count() as u64;
    let cut_off_tokens: usize = batch
        .samples()
        .iter()
        .filter(|sample| is_cut_off(sample))
        .map(|sample| sample.rollout().response_tokens().len())
        .sum();
    assert!(cut_off > 0 && cut_off < 12);
    for algorithm in [Algorithm::Grpo, Algorithm::Ppo] {
        let all = PpoConfig { algorithm, ..gradient_config() };
        let masked = PpoConfig { truncated: Truncated::Mask, ..all.clone() };
        let (found, metrics) = trained(&models, &masked, &batch);
        assert_eq!((metrics.truncated, metrics.samples), (cut_off, 12 - cut_off));
        assert_eq!(metrics.masked_tokens, cut_off_tokens as u64);
        // The same samples by themselves, with the groups that they were drawn in.
        let kept = batch.samples().iter().filter(|sample| !is_cut_off(sample)).cloned().collect();
        let (alone, _) = trained(&models, &all, &Batch::new(batch.id(), kept).unwrap());
        assert!(difference(&found, &alone) < 1e-6);
        let (everything, metrics) = trained(&models, &all, &batch);
        assert_eq!((metrics.truncated, metrics.masked_tokens), (cut_off, 0));
        assert!(difference(&found, &everything) > 1e-3);
    }
}

#[test]
fn a_batch_of_nothing_but_what_was_cut_off_changes_nothing() {
    let models = Models::new(config(Architecture::Llama, false));
    let cut_off = models.batch(1, 12).samples().iter().filter(|sample| is_cut_off(sample)).cloned().collect();
    let batch = Batch::new(types::BatchId(1), cut_off).unwrap();
    let masked = PpoConfig { truncated: Truncated::Mask, ..gradient_config() };
    let (found, metrics) = trained(&models, &masked, &batch);
    assert!(found.iter().all(|x| *x == 0.0));
    assert_eq!((metrics.samples, metrics.skipped_steps), (0, 0));
    assert_eq!(metrics.not_finite(), None);
    assert_eq!((measured(&metrics), metrics.score_mean), ([None; 8], None), "nothing is drawn as 0");
}

#[test]
fn a_penalty_for_no_end_is_part_of_the_score() {
    let models = Models::new(config(Architecture::Llama, false));
    let batch = models.batch(1, 12);
    let ppo = PpoConfig { algorithm: Algorithm::Rloo, missing_eos_penalty: 0.75, ..gradient_config() };
    let lowered = batch.samples().iter().map(|sample| {
        let (rollout, scores) = sample.clone().into_scored().into_parts();
        let score = scores.score - if is_cut_off(sample) { 0.75 } else { 0.0 };
        (ScoredRollout::new(rollout, Scores { score, ..scores }).unwrap(), sample.weight())
    });
    let expected = trained(
        &models,
        &PpoConfig { missing_eos_penalty: 0.0, ..ppo.clone() },
        &batch_of(1, lowered.collect()),
    );
    let found = trained(&models, &ppo, &batch);
    assert!(difference(&found.0, &expected.0) < 1e-6);
    assert!((found.1.score_mean.unwrap() - expected.1.score_mean.unwrap()).abs() < 1e-6);
}
