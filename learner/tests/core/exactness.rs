//! What a gradient does not depend on, and what the first step on fresh rollouts shows.

use learner::{Device, LoraConfig, PpoConfig, Precision, ZeroStage, on_ranks};
use model::Architecture;

use crate::support::{Models, config, difference, flat, gradient, gradient_config, logged};

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
    for (architecture, tied) in
        [(Architecture::Llama, false), (Architecture::Qwen2, true), (Architecture::Qwen3Moe, false)]
    {
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

/// No rank but the first holds what is published, and that is the same bytes however the weights are divided.
#[test]
fn only_the_first_rank_packs_what_is_published() {
    let models = Models::new(config(Architecture::Qwen2, true));
    let lora = Some(LoraConfig { rank: 2, ..LoraConfig::default() });
    for lora in [None, lora] {
        let published = |zero_stage: ZeroStage| -> Vec<Vec<u8>> {
            let ppo = PpoConfig { zero_stage, lora: lora.clone(), ..PpoConfig::default() };
            let of_rank = on_ranks(2, Device::Cpu, |group| {
                let mut trainer = models.trainer(&ppo, group);
                trainer.step(&models.batch(1, 8))?;
                let published = trainer.published(tch::Kind::BFloat16)?;
                let whole = model::buffer::pack(&trainer.policy_flats()?, tch::Kind::BFloat16);
                assert!(published == whole || (trainer.ranks().rank() == 1 && published.is_empty()));
                Ok(published)
            });
            of_rank.unwrap()
        };
        let [whole, sharded] = [ZeroStage::Off, ZeroStage::Weights].map(published);
        assert!(!whole[0].is_empty() && whole[1].is_empty());
        assert_eq!(sharded[1], Vec::<u8>::new());
        assert_eq!(whole[0].len(), sharded[0].len());
    }
}

#[test]
fn a_forward_pass_that_is_kept_for_the_first_minibatch_changes_no_bit() {
    let models = Models::new(config(Architecture::Llama, false));
    let weights = |ppo: PpoConfig| gradients(&models, &ppo, 1);
    let ppo = PpoConfig { ppo_epochs: 2, minibatch_size: 9, policy_lr: 1e-3, ..PpoConfig::default() };
    // Nothing is kept of networks that are computed again; of the others the policy's passes, or both
    // models', as they fit.
    let never = weights(PpoConfig { recompute: true, microbatch_tokens: 8192, ..ppo.clone() });
    assert!(never == weights(PpoConfig { microbatch_tokens: 8192, ..ppo.clone() }), "both are kept");
    let batch = models.batch(1, 14);
    let rollouts = batch.samples().iter().map(|sample| sample.rollout());
    let tokens =
        rollouts.map(|rollout| rollout.prompt_tokens().len() + rollout.response_tokens().len()).sum();
    assert!(never == weights(PpoConfig { microbatch_tokens: tokens, ..ppo }), "one is kept");
}

#[test]
fn adapters_have_the_same_gradient_on_any_number_of_ranks() {
    let models = Models::new(config(Architecture::Llama, false));
    let lora = Some(LoraConfig { rank: 2, ..LoraConfig::default() });
    let ppo = PpoConfig { lora: lora.clone(), critic_lora: lora, policy_lr: 1e-2, ..PpoConfig::default() };
    let ppo = PpoConfig { critic_lr: 1e-2, ..ppo };
    let batch = models.batch(1, 12);
    let moved = |ppo: &PpoConfig, ranks: usize| -> Vec<f64> {
        let of_rank = on_ranks(ranks, Device::Cpu, |group| {
            let mut trainer = models.trainer(ppo, group);
            let before = weights(&trainer);
            trainer.step(&batch)?;
            let after = weights(&trainer);
            Ok(after.iter().zip(before).map(|(after, before)| after - before).collect::<Vec<f64>>())
        });
        of_rank.unwrap().remove(0)
    };
    // An ε that keeps Adam from making whole steps of rounding.
    let ppo = PpoConfig { adam_eps: 1e-3, minibatch_size: 5, ..ppo };
    let expected = moved(&ppo, 1);
    assert!(expected.iter().any(|x| *x != 0.0));
    for (ranks, zero_stage) in [(1, ZeroStage::Off), (2, ZeroStage::Optimizer), (2, ZeroStage::Weights)] {
        let found = moved(&PpoConfig { zero_stage, microbatch_tokens: 30, ..ppo.clone() }, ranks);
        let apart = difference(&found, &expected);
        assert!(apart < 1e-4, "{ranks} ranks, {zero_stage:?}: {apart:.2e}");
    }
}

#[test]
fn on_fresh_rollouts_the_ratio_is_one_and_the_actors_log_probs_are_ours() {
    for architecture in [Architecture::Qwen2, Architecture::Qwen3Moe] {
        let models = Models::new(config(architecture, true));
        for (ranks, recompute, microbatch_tokens) in [(1, false, 8192), (1, true, 30), (2, false, 30)] {
            let ppo = PpoConfig {
                ppo_epochs: 1,
                minibatch_size: 1000,
                recompute,
                microbatch_tokens,
                ..PpoConfig::default()
            };
            let batch = models.batch(1, 12);
            let metrics =
                on_ranks(ranks, Device::Cpu, |group| models.trainer(&ppo, group).step(&batch)).unwrap();
            for metrics in metrics {
                assert_eq!((metrics.approx_kl, metrics.clip_fraction), (Some(0.0), Some(0.0)));
                assert!(metrics.rollout_approx_kl.unwrap().abs() < 1e-8, "{metrics:?}");
                assert!(metrics.rollout_logprob_diff.unwrap() < 1e-5, "{metrics:?}");
                assert_eq!((metrics.staleness, metrics.samples), (0.0, 12));
            }
        }
    }
}

#[test]
fn half_precision_follows_single_precision() {
    let models = Models::new(config(Architecture::Llama, false));
    let batch = models.batch(1, 12);
    let ppo = PpoConfig { policy_lr: 1e-2, adam_eps: 1e-3, ..PpoConfig::default() };
    let before = flat(&models.trainer(&ppo, None).policy_flats().unwrap());
    let moved = |dtype: Precision| -> Vec<f64> {
        let mut trainer = models.trainer(&PpoConfig { dtype: Some(dtype), ..ppo.clone() }, None);
        let (metrics, said) = logged(|| trainer.step(&batch).unwrap());
        // Fresh rollouts of f32: bf16 rounds them by more than f32's alarm, and by less than its own.
        let apart = metrics.rollout_logprob_diff.unwrap();
        let (least, most) = if dtype == Precision::Bf16 { (2e-3, 5e-2) } else { (0.0, 1e-5) };
        assert!((least..most).contains(&apart), "{dtype:?}: {apart}");
        assert!(!said.contains("disagree"), "{said}");
        let after = flat(&trainer.policy_flats().unwrap());
        after.iter().zip(&before).map(|(after, before)| after - before).collect()
    };
    let apart = difference(&moved(Precision::Bf16), &moved(Precision::F32));
    assert!(apart > 0.0 && apart < 0.2, "{apart}");
    let strict = PpoConfig { dtype: Some(Precision::Bf16), logprob_alarm: Some(2e-3), ..ppo.clone() };
    let (_, said) = logged(|| models.trainer(&strict, None).step(&batch).unwrap());
    assert!(said.contains("learner and actors disagree on the log-probs of fresh rollouts"), "{said}");
}

#[test]
fn memory_stays_flat_over_many_steps() {
    let models = Models::new(config(Architecture::Llama, false));
    let ppo = PpoConfig { ppo_epochs: 1, microbatch_tokens: 64, policy_lr: 1e-5, ..PpoConfig::default() };
    let mut trainer = models.trainer(&ppo, None);
    let batches: Vec<_> = (1..=500)
        .map(|id| types::Batch::new(types::BatchId(id), models.batch(1, 3).into_samples()).unwrap())
        .collect();
    let mut after_warm_up = 0;
    for (step, batch) in batches.iter().enumerate() {
        trainer.step(batch).unwrap();
        if step == 100 {
            after_warm_up = resident_bytes();
        }
    }
    let grown = resident_bytes().saturating_sub(after_warm_up);
    // A leak of one gradient (60 kB) a step would be 24 MB.
    assert!(grown < 8 << 20, "{grown} bytes in 400 steps");
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Each reading of the device costs a GPU its queue of work; the norm used to make one for every 65,536
/// parameters of each model. Where ranks share a network, the host also waits once for each operation of
/// theirs on a group, and so the more often the more blocks there are, but not for larger ones.
#[test]
fn a_larger_network_is_read_from_no_more_often() {
    let counted = |(ranks, zero_stage): (usize, ZeroStage), hidden: i64, layers: usize| {
        let mut network = config(Architecture::Llama, false);
        (network.hidden_size, network.intermediate_size, network.layers) = (hidden, 2 * hidden, layers);
        network.head_dim = hidden / network.heads;
        let models = Models::new(network);
        let batch = models.batch(1, 8);
        let ppo = PpoConfig { ppo_epochs: 2, minibatch_size: 4, zero_stage, ..PpoConfig::default() };
        let of_rank = on_ranks(ranks, Device::Cpu, |group| {
            let mut trainer = models.trainer(&ppo, group);
            let before = (learner::host_readings(), learner::host_waits());
            trainer.step(&batch)?;
            Ok((learner::host_readings() - before.0, learner::host_waits() - before.1))
        });
        of_rank.unwrap().remove(0)
    };
    let alone = (1, ZeroStage::Off);
    let (readings, waits) = counted(alone, 32, 2);
    // Two models' norms and outputs in each of four minibatches, and the passes before the update.
    assert!((1..=24).contains(&readings) && waits == 0, "{readings} {waits}");
    assert_eq!(counted(alone, 256, 6), (readings, 0));
    for (zero_stage, in_block) in [
        (ZeroStage::Off, 8),
        (ZeroStage::Optimizer, 16),
        (ZeroStage::Gradients, 16),
        (ZeroStage::Weights, 28),
    ] {
        let two = (2, zero_stage);
        let (readings, waits) = counted(two, 32, 2);
        println!("{zero_stage:?}: {readings} readings, {waits} waits");
        assert!((1..=40).contains(&readings), "{zero_stage:?}: {readings}");
        assert_eq!(counted(two, 128, 2), (readings, waits), "{zero_stage:?}: wider");
        assert_eq!(
            counted(two, 32, 5),
            (readings, waits + 3 * in_block),
            "{zero_stage:?}: three more blocks"
        );
    }
}

/// Without a critic and without a KL in the rewards no advantage needs the policy before the update: the
/// first minibatch finds out its old log-probs itself. A KL of no weight in the rewards asks for them
/// beforehand.
#[test]
fn old_log_probs_that_the_first_minibatch_finds_out_change_no_bit() {
    let models = Models::new(config(Architecture::Llama, false));
    let batch = models.batch(1, 14);
    let grpo = PpoConfig {
        algorithm: algo::Algorithm::Grpo,
        ppo_epochs: 2,
        microbatch_tokens: 30,
        policy_lr: 1e-3,
        kl_in: Some(learner::KlIn::Off),
        ..PpoConfig::default()
    };
    let corrected = algo::Correction::TokenTruncate { max: 2.0 };
    let masked = algo::Correction::SequenceMask { min: 0.999, max: 1.001 };
    for (ranks, minibatch_size, correction, entropy_coefficient) in [
        (1, 1000, None, 0.0),
        (1, 5, Some(corrected), 0.01),
        (2, 5, Some(masked), 0.0),
        (2, 1000, Some(corrected), 0.0),
    ] {
        let ppo = PpoConfig { minibatch_size, correction, entropy_coefficient, ..grpo.clone() };
        let asked =
            PpoConfig { kl_in: Some(learner::KlIn::Reward), kl_coefficient: Some(1e-300), ..ppo.clone() };
        let run = |ppo: &PpoConfig| {
            let of_rank = on_ranks(ranks, Device::Cpu, |group| {
                let mut trainer = models.trainer(ppo, group);
                let before = learner::host_readings();
                let metrics = trainer.step(&batch)?;
                let readings = learner::host_readings() - before;
                Ok((flat(&trainer.policy_flats()?), metrics, readings))
            });
            of_rank.unwrap().remove(0)
        };
        let (weights, metrics, readings) = run(&ppo);
        let (expected, mut asked_metrics, more_readings) = run(&asked);
        assert!(weights == expected, "{ranks} ranks, {minibatch_size}: other bits");
        // A first minibatch of few tokens is passed forward once in either case.
        let saves = ranks == 1 || minibatch_size > 14;
        assert_eq!(readings < more_readings, saves, "{ranks} ranks: {readings} {more_readings}");
        asked_metrics.kl_coefficient = metrics.kl_coefficient;
        asked_metrics.step_seconds = metrics.step_seconds;
        asked_metrics.prepare_seconds = metrics.prepare_seconds;
        asked_metrics.update_seconds = metrics.update_seconds;
        assert_eq!(metrics, asked_metrics);
    }
}
