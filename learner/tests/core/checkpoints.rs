//! Checkpoints: resumed training is the uninterrupted one, and damage of any kind is noticed.

use std::fs;
use std::path::{Path, PathBuf};

use learner::{
    Bound, Checkpoints, Device, LoraConfig, PpoConfig, Precision, Trainer, Writer, ZeroStage, on_ranks,
};
use model::Architecture;
use proptest::prelude::*;
use types::{BatchId, Incarnation, LearnerTerm, RunId, Timestamp};

use crate::support::{Models, config, difference, flat};

fn run() -> RunId {
    "run-1".parse().unwrap()
}

fn ppo() -> PpoConfig {
    PpoConfig { minibatch_size: 4, ppo_epochs: 2, policy_lr: 1e-2, critic_lr: 1e-2, ..PpoConfig::default() }
}

fn weights(trainer: &Trainer) -> Vec<f64> {
    let mut all = flat(&trainer.policy_flats().unwrap());
    all.extend(trainer.critic_flats().unwrap().map(|flats| flat(&flats)).unwrap_or_default());
    all
}

/// The weights after batches 1 to 3 on `ranks` ranks, saved after batch 2; and the same resumed by
/// `resumed_on` ranks.
fn interrupted(models: &Models, ppo: &PpoConfig, ranks: usize, resumed_on: usize) -> (Vec<f64>, Vec<f64>) {
    let folder = models.dir.path().join(format!("checkpoints-{ranks}-{resumed_on}"));
    drop(fs::remove_dir_all(&folder));
    let whole = on_ranks(ranks, Device::Cpu, |group| {
        let mut trainer = models.trainer(ppo, group);
        trainer.step(&models.batch(1, 9))?;
        trainer.step(&models.batch(2, 9))?;
        Checkpoints::new(&folder, 2).save(&trainer, &run(), BatchId(2))?;
        trainer.step(&models.batch(3, 9))?;
        Ok(weights(&trainer))
    });
    let resumed = on_ranks(resumed_on, Device::Cpu, |group| {
        let mut trainer = models.trainer(ppo, group);
        let resumed = Checkpoints::new(&folder, 2).restore_newest(&mut trainer)?.unwrap();
        assert_eq!((resumed.run, resumed.batch, resumed.config_changed), (run(), BatchId(2), false));
        trainer.step(&models.batch(3, 9))?;
        Ok(weights(&trainer))
    });
    (whole.unwrap().remove(0), resumed.unwrap().remove(0))
}

#[test]
fn resumed_training_is_bit_for_bit_the_uninterrupted_one() {
    let models = Models::new(config(Architecture::Qwen2, true));
    let lora = Some(LoraConfig { rank: 2, ..LoraConfig::default() });
    for ppo in [
        ppo(),
        PpoConfig { dtype: Some(Precision::Bf16), ..ppo() },
        PpoConfig { lora: lora.clone(), critic_lora: lora, ..ppo() },
        PpoConfig {
            kl_target: Some(0.05),
            kl_horizon: 20.0,
            entropy_target: Some(9.0),
            positive_weight: 0.8,
            kl_coefficient: Some(0.2),
            ..ppo()
        },
        PpoConfig { algorithm: algo::Algorithm::Grpo, ..ppo() },
    ] {
        let (whole, resumed) = interrupted(&models, &ppo, 1, 1);
        assert!(whole == resumed, "{ppo:?}");
    }
    for zero_stage in [ZeroStage::Off, ZeroStage::Optimizer, ZeroStage::Weights] {
        let (whole, resumed) = interrupted(&models, &PpoConfig { zero_stage, ..ppo() }, 2, 2);
        assert!(whole == resumed, "{zero_stage:?}");
    }
}

#[test]
fn another_number_of_ranks_goes_on_where_the_first_stopped() {
    let models = Models::new(config(Architecture::Llama, false));
    let start = flat(&models.trainer(&ppo(), None).policy_flats().unwrap());
    for (before, after) in [(3, 1), (1, 2), (2, 3)] {
        let ppo = PpoConfig { zero_stage: ZeroStage::Gradients, ..ppo() };
        let (whole, resumed) = interrupted(&models, &ppo, before, after);
        let policy = start.len();
        let moved =
            |weights: &[f64]| weights[..policy].iter().zip(&start).map(|(w, s)| w - s).collect::<Vec<_>>();
        // Adam turns the sign of tiny gradients into whole steps, so this is no place for a tight bound.
        let apart = difference(&moved(&resumed), &moved(&whole));
        assert!(apart < 1e-2, "{before} to {after} ranks: {apart:.2e}");
    }
}

/// Checkpoints of batches 1 and 2 in a folder.
fn two_checkpoints(models: &Models, folder: &Path) {
    let mut trainer = models.trainer(&ppo(), None);
    for batch in 1..=2 {
        trainer.step(&models.batch(batch, 5)).unwrap();
        let path = Checkpoints::new(folder, 2).save(&trainer, &run(), BatchId(batch)).unwrap();
        assert!(path.ends_with(format!("step-0000000{batch}")));
    }
}

fn resume(models: &Models, folder: &Path) -> learner::Result<Option<BatchId>> {
    let mut trainer = models.trainer(&ppo(), None);
    Ok(Checkpoints::new(folder, 2).restore_newest(&mut trainer)?.map(|resumed| resumed.batch))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn a_flipped_byte_in_any_file_leads_back_to_the_one_before() {
    let models = Models::new(config(Architecture::Llama, false));
    let folder = models.dir.path().join("checkpoints");
    two_checkpoints(&models, &folder);
    let newest = folder.join("step-00000002");
    let found = files(&newest);
    assert!(found.len() >= 7, "{found:?}");
    for file in &found {
        let content = fs::read(file).unwrap();
        for place in [0, content.len() / 3, content.len() / 2, content.len() - 1] {
            let mut flipped = content.clone();
            flipped[place] ^= 0x04;
            fs::write(file, &flipped).unwrap();
            assert_eq!(resume(&models, &folder).unwrap(), Some(BatchId(1)), "{} {place}", file.display());
        }
        fs::write(file, &content[..content.len() - 1]).unwrap();
        assert_eq!(resume(&models, &folder).unwrap(), Some(BatchId(1)), "{} cut short", file.display());
        fs::remove_file(file).unwrap();
        assert_eq!(resume(&models, &folder).unwrap(), Some(BatchId(1)), "{} gone", file.display());
        fs::write(file, &content).unwrap();
    }
    assert_eq!(resume(&models, &folder).unwrap(), Some(BatchId(2)));
    // The cursor is part of what is hashed: another number there would lose or repeat samples.
    let manifest = newest.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"batch\": 2", "\"batch\": 3")).unwrap();
    assert_eq!(resume(&models, &folder).unwrap(), Some(BatchId(1)));
}

#[test]
fn when_none_is_whole_nothing_is_trained_anew_silently() {
    let models = Models::new(config(Architecture::Llama, false));
    let folder = models.dir.path().join("checkpoints");
    assert_eq!(resume(&models, &folder).unwrap(), None);
    two_checkpoints(&models, &folder);
    for number in [1, 2] {
        fs::write(folder.join(format!("step-0000000{number}/manifest.json")), "{").unwrap();
    }
    let message = resume(&models, &folder).unwrap_err().to_string();
    assert!(message.contains("is whole; move them away to start anew"), "{message}");
    assert!(message.contains("step-00000001/manifest.json"), "{message}");
}

#[test]
fn an_unfinished_or_failed_checkpoint_is_none() {
    let models = Models::new(config(Architecture::Llama, false));
    let folder = models.dir.path().join("checkpoints");
    two_checkpoints(&models, &folder);
    let mut trainer = models.trainer(&ppo(), None);
    let checkpoints = Checkpoints::new(&folder, 2);
    checkpoints.restore_newest(&mut trainer).unwrap();
    trainer.step(&models.batch(3, 5)).unwrap();
    let pending = checkpoints.start(&trainer, &run(), BatchId(3)).unwrap();
    drop(pending);
    assert_eq!(resume(&models, &folder).unwrap(), Some(BatchId(2)));
    // The next one clears away what was left, and the oldest whole one goes.
    checkpoints.save(&trainer, &run(), BatchId(3)).unwrap();
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["step-00000002", "step-00000003"]);
    // A file where the folder should be: an error, and training may go on.
    let blocked = models.dir.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    let message = Checkpoints::new(&blocked, 2).save(&trainer, &run(), BatchId(3)).unwrap_err().to_string();
    assert!(message.contains("checkpoint: create") && message.contains("blocked"), "{message}");
    trainer.step(&models.batch(4, 5)).unwrap();
}

fn writer(term: u64, incarnation: u64) -> Writer {
    Writer { term: LearnerTerm(term), incarnation: Incarnation(incarnation), run_began: Timestamp(50) }
}

#[test]
fn a_learner_that_wakes_after_another_took_its_place_writes_nothing() {
    let models = Models::new(config(Architecture::Llama, false));
    let folder = models.dir.path().join("checkpoints");
    let mut trainer = models.trainer(&ppo(), None);
    trainer.step(&models.batch(1, 5)).unwrap();
    let [mut old, mut new] = [(); 2].map(|()| Checkpoints::new(&folder, 2));
    old.claim(writer(1, 100), true).unwrap();
    old.save(&trainer, &run(), BatchId(1)).unwrap();
    let pending = old.start(&trainer, &run(), BatchId(2)).unwrap();
    // It is stopped in the middle of a checkpoint.
    new.claim(writer(2, 200), true).unwrap();
    let said = old.finish(&trainer, pending).unwrap_err().to_string();
    assert!(said.contains("learner t2 writes checkpoints in"), "{said}");
    let said = old.save(&trainer, &run(), BatchId(3)).unwrap_err().to_string();
    assert!(said.contains("this process is learner t1"), "{said}");
    // Also where the welcome lay in its socket meanwhile.
    assert!(old.claim(writer(1, 100), true).is_err());
    new.save(&trainer, &run(), BatchId(1)).unwrap();
    assert_eq!(new.newest().unwrap().unwrap().1, BatchId(1));
    // A run that begins anew in the folder is not of the past, though it counts from 1 again.
    let mut anew = Checkpoints::new(&folder, 2);
    anew.claim(Writer { run_began: Timestamp(250), ..writer(1, 300) }, true).unwrap();
    anew.save(&trainer, &run(), BatchId(1)).unwrap();
}

#[test]
fn a_checkpoint_names_the_responses_that_are_part_of_its_weights() {
    let models = Models::new(config(Architecture::Llama, false));
    let folder = models.dir.path().join("checkpoints");
    let mut trainer = models.trainer(&ppo(), None);
    let batches = [models.batch(1, 5), models.batch(2, 7)];
    for batch in &batches {
        trainer.step(batch).unwrap();
    }
    Checkpoints::new(&folder, 2).save(&trainer, &run(), BatchId(2)).unwrap();
    let mut resumed = models.trainer(&ppo(), None);
    Checkpoints::new(&folder, 2).restore_newest(&mut resumed).unwrap().unwrap();
    assert_eq!(resumed.consumed(), trainer.consumed());
    let named = resumed.consumed().batches();
    for ((batch, responses), trained) in named.zip(&batches) {
        assert_eq!(batch, trained.id());
        let ids = trained.samples().iter().filter(|sample| sample.weight() > 0.0);
        assert!(ids.map(|sample| sample.scored().rollout().id()).eq(responses.iter().copied()));
    }
    assert_eq!(resumed.consumed().batches().count(), 2);
}

#[test]
fn a_checkpoint_of_another_network_or_algorithm_is_refused() {
    let models = Models::new(config(Architecture::Llama, false));
    let folder = models.dir.path().join("checkpoints");
    two_checkpoints(&models, &folder);
    let others = Models::new(config(Architecture::Qwen2, true));
    let message = resume(&others, &folder).unwrap_err().to_string();
    assert!(message.contains("another shape than the policy"), "{message}");
    let ppo = PpoConfig { algorithm: algo::Algorithm::Grpo, ..ppo() };
    let mut trainer = models.trainer(&ppo, None);
    let message = Checkpoints::new(&folder, 2).restore_newest(&mut trainer).unwrap_err().to_string();
    assert!(message.contains("has a critic, the other has none"), "{message}");
    // Another learning rate is another configuration, which is said, not refused.
    let ppo = PpoConfig { policy_lr: 1e-4, max_grad_norm: Bound::Off, ..self::ppo() };
    let mut trainer = models.trainer(&ppo, None);
    let resumed = Checkpoints::new(&folder, 2).restore_newest(&mut trainer).unwrap().unwrap();
    assert!(resumed.config_changed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever bytes change, a changed checkpoint is passed over.
    #[test]
    fn any_damage_is_noticed(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..=255), 1..4),
    ) {
        let models = Models::new(config(Architecture::Llama, false));
        let folder = models.dir.path().join("checkpoints");
        two_checkpoints(&models, &folder);
        let newest = folder.join("step-00000002");
        let found = files(&newest);
        let before: Vec<_> = found.iter().map(|file| fs::read(file).unwrap()).collect();
        for (file, place, mask) in edits {
            let file = file.get(&found);
            let mut content = fs::read(file).unwrap();
            let place = place.index(content.len());
            content[place] ^= mask;
            fs::write(file, content).unwrap();
        }
        let after: Vec<_> = found.iter().map(|file| fs::read(file).unwrap()).collect();
        let expected = if before == after { BatchId(2) } else { BatchId(1) };
        prop_assert_eq!(resume(&models, &folder).unwrap(), Some(expected));
    }
}
