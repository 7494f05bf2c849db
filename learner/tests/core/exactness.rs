//! What a gradient does not depend on, and what the first step on fresh rollouts shows.

use learner::{Device, PpoConfig, ZeroStage, on_ranks};
use model::Architecture;

use crate::support::{Models, config, difference, flat, gradient, gradient_config};

/// Policy and critic gradients of a batch, as one vector.
fn gradients(models: &Models, ppo: &PpoConfig, ranks: usize) -> Vec<f64> {
    let batch = models.batch(1, 14);
    let of_rank = on_ranks(ranks, Device::Cpu, |group| {
        let mut trainer = models.trainer(ppo, group);
        let before = weights(&trainer);
        trainer.step(&batch)?;
        Ok(gradient(&before, &weights(&trainer)))
    });
    let of_rank = of_rank.unwrap();
    for other in &of_rank {
        assert!(*other == of_rank[0], "ranks ended with different weights");
    }
    of_rank.into_iter().next().unwrap()
}

fn weights(trainer: &learner::Trainer) -> Vec<f64> {
    let mut all = flat(&trainer.policy_flats().unwrap());
    all.extend(flat(&trainer.critic_flats().unwrap().unwrap()));
    all
}

#[test]
fn gradients_do_not_depend_on_micro_batches_recomputation_stage_or_ranks() {
    for (architecture, tied) in [(Architecture::Llama, false), (Architecture::Qwen2, true)] {
        let models = Models::new(config(architecture, tied));
        let expected = gradients(&models, &gradient_config(), 1);
        let check = |ppo: PpoConfig, ranks: usize| {
            let found = gradients(&models, &ppo, ranks);
            let apart = difference(&found, &expected);
            let PpoConfig { microbatch_tokens, recompute, zero_stage, .. } = ppo;
            println!(
                "{architecture:?} {ranks} ranks, {microbatch_tokens}, {recompute}, {zero_stage:?}: {apart:.2e}"
            );
            assert!(apart < 1e-5, "{ranks} ranks, {zero_stage:?}, {microbatch_tokens}, {recompute}: {apart}");
        };
        check(PpoConfig { microbatch_tokens: 1, ..gradient_config() }, 1);
        check(PpoConfig { microbatch_tokens: 40, recompute: true, ..gradient_config() }, 1);
        for ranks in [2, 4] {
            for zero_stage in [ZeroStage::Off, ZeroStage::Optimizer, ZeroStage::Gradients, ZeroStage::Weights]
            {
                check(PpoConfig { microbatch_tokens: 40, zero_stage, ..gradient_config() }, ranks);
            }
        }
        check(PpoConfig { microbatch_tokens: 40, recompute: true, ..gradient_config() }, 2);
    }
}
