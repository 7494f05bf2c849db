//! Small models and random batches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use collective::ProcessGroup;
use learner::{Bound, CriticSource, PpoConfig, Trainer, TrainerConfig};
use model::{
    Architecture, Dimensions, LogprobOptions, ModelConfig, Packed, SaveOptions, ScalarInit, Weights,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use types::link::learner::StepMetrics;
use types::{
    Batch, BatchId, FinishReason, GroupScore, PolicyVersion, PromptId, Rollout, RolloutId, RolloutParts,
    Sample, ScoredRollout, Scores, Span,
};

pub(crate) const VOCAB: i64 = 61;

pub(crate) fn config(architecture: Architecture, tied: bool) -> ModelConfig {
    let dimensions = Dimensions {
        vocab_size: VOCAB,
        hidden_size: 32,
        intermediate_size: 48,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        max_positions: 64,
    };
    let mut config = ModelConfig::new(architecture, dimensions).unwrap();
    config.tie_word_embeddings = tied;
    // Wide enough that every part of the network matters.
    config.initializer_range = 0.15;
    config
}

/// Folders of a policy and a critic, and what else a test writes.
pub(crate) struct Models {
    pub(crate) dir: TempDir,
    config: ModelConfig,
}

impl Models {
    pub(crate) fn new(config: ModelConfig) -> Self {
        tch::set_num_threads(1);
        let dir = tempfile::tempdir().unwrap();
        let weights = Weights::random(&config, 1, Kind::Float, Device::Cpu);
        model::folder::save(&dir.path().join("policy"), &config, &weights, &SaveOptions::default()).unwrap();
        let other = Weights::random(&config, 2, Kind::Float, Device::Cpu);
        let (scalar, critic) = other.with_scalar_head(&config, ScalarInit::Normal { seed: 3 });
        model::folder::save(&dir.path().join("critic"), &scalar, &critic, &SaveOptions::default()).unwrap();
        Self { dir, config }
    }

    pub(crate) fn policy(&self) -> PathBuf {
        self.dir.path().join("policy")
    }

    pub(crate) fn critic(&self) -> PathBuf {
        self.dir.path().join("critic")
    }

    pub(crate) fn trainer(&self, ppo: &PpoConfig, group: Option<ProcessGroup>) -> Trainer {
        self.try_trainer(ppo, group).unwrap()
    }

    pub(crate) fn try_trainer(
        &self,
        ppo: &PpoConfig,
        group: Option<ProcessGroup>,
    ) -> learner::Result<Trainer> {
        let config = TrainerConfig {
            ppo: ppo.clone(),
            policy: self.policy(),
            critic: CriticSource::Folder(self.critic()),
            device: Device::Cpu,
        };
        Trainer::new(config, group)
    }

    /// A ragged batch whose log-probs are those of the policy in the folder.
    pub(crate) fn batch(&self, id: u64, samples: usize) -> Batch {
        let weights = load(&self.policy());
        let mut rng = ChaCha8Rng::seed_from_u64(id);
        let samples = (0..samples).map(|at| {
            let length = [1, 3, 9, 17][at % 4] + rng.random_range(0..3usize);
            let place = RolloutId {
                prompt: PromptId { epoch: 0, ordinal: (at / 4) as u64 },
                sibling: u16::try_from(at % 4).unwrap(),
                attempt: 0,
            };
            let (mut parts, score) = random_parts(&mut rng, place, 2 + at % 5, length);
            parts.rollout_logprobs = self.logprobs(&weights, &parts);
            parts.spans[0].version = PolicyVersion(id - 1);
            let ref_logprobs = parts
                .rollout_logprobs
                .iter()
                .map(|l| (l + 0.4 * (rng.random::<f32>() - 0.5)).min(0.0))
                .collect();
            let scores = Scores { score, ref_logprobs, outcome: None, turn_weight: 0.0 };
            let scored = ScoredRollout::new(Rollout::new(parts).unwrap(), scores).unwrap();
            (scored, [1.0, 0.5, 2.0][at % 3])
        });
        batch_of(id, samples.collect())
    }

    /// Log-probs of a response, its sequence alone in the network, as an actor would have them.
    pub(crate) fn logprobs(&self, weights: &Weights, rollout: &RolloutParts) -> Vec<f32> {
        let _guard = tch::no_grad_guard();
        let tokens = [&*rollout.prompt_tokens, &rollout.response_tokens].concat();
        let packed = Packed::new(&[tokens], VOCAB, Device::Cpu).unwrap();
        let network = weights.network(&self.config);
        let hidden = model::forward(&self.config, &network, &packed);
        let next = packed.next_tokens();
        let hidden = hidden.index_select(0, &next.rows);
        let found = model::logprobs(&hidden, &network.output.head, &next.targets, LogprobOptions::default());
        let all = Vec::<f32>::try_from(found.logprobs).unwrap();
        all[rollout.prompt_tokens.len() - 1..].to_vec()
    }
}

/// A batch of samples that have nobody in their groups but each other.
pub(crate) fn batch_of(id: u64, samples: Vec<(ScoredRollout, f32)>) -> Batch {
    let mut groups: BTreeMap<PromptId, Vec<GroupScore>> = BTreeMap::new();
    for (scored, _) in &samples {
        groups.entry(scored.rollout().id().prompt).or_default().push(GroupScore::of(scored));
    }
    let samples = samples.into_iter().map(|(scored, weight)| {
        let group = groups[&scored.rollout().id().prompt].clone();
        Sample::new(scored, weight, group).unwrap()
    });
    Batch::new(BatchId(id), samples.collect()).unwrap()
}

pub(crate) fn load(folder: &Path) -> Weights {
    model::folder::load(folder, &model::LoadOptions::default()).unwrap().weights
}

/// The parameters of a folder by name.
pub(crate) fn parameters(folder: &Path) -> BTreeMap<String, Vec<f64>> {
    let weights = load(folder);
    let named = weights.parameters().map(|parameter| {
        let values = parameter.tensor.reshape([-1]).to_kind(Kind::Double);
        (parameter.name.to_owned(), Vec::try_from(values).unwrap())
    });
    named.collect()
}

/// A rollout's parts, its log-probs not yet those of a policy, and a score for it.
fn random_parts(
    rng: &mut ChaCha8Rng,
    id: RolloutId,
    prompt_len: usize,
    length: usize,
) -> (RolloutParts, f32) {
    let token = |rng: &mut ChaCha8Rng| rng.random_range(0..VOCAB as u32);
    let parts = RolloutParts {
        id,
        prompt_tokens: (0..prompt_len).map(|_| token(rng)).collect(),
        response_tokens: (0..length).map(|_| token(rng)).collect(),
        observations: Vec::new(),
        reward: None,
        rollout_logprobs: vec![0.0; length],
        surviving_mass: None,
        spans: vec![Span {
            version: PolicyVersion(0),
            tokens: u32::try_from(length).unwrap().try_into().unwrap(),
        }],
        finish_reason: if length > 17 { FinishReason::Length } else { FinishReason::Stop },
        fields: "{}".into(),
    };
    let score = 2.0 * rng.random::<f32>() - 1.0;
    (parts, score)
}

/// A configuration whose one optimizer step moves the weights by [`GRADIENT_SCALE`] times the gradient: AdamW
/// with an ε that outweighs everything.
pub(crate) fn gradient_config() -> PpoConfig {
    PpoConfig {
        ppo_epochs: 1,
        minibatch_size: 1000,
        shuffle: false,
        policy_lr: 1e8 * GRADIENT_SCALE,
        critic_lr: 1e8 * GRADIENT_SCALE,
        adam_eps: 1e8,
        max_grad_norm: Bound::Off,
        ..PpoConfig::default()
    }
}

/// See [`gradient_config`]; `bench/reference/cases.py` has the same.
pub(crate) const GRADIENT_SCALE: f64 = 1e3;

/// What only optimizer steps and samples that train have.
pub(crate) fn measured(metrics: &StepMetrics) -> [Option<f64>; 8] {
    let StepMetrics { policy_loss, entropy, approx_kl, clip_fraction, .. } = *metrics;
    let StepMetrics { rollout_approx_kl, rollout_logprob_diff, policy_grad_norm, policy_lr, .. } = *metrics;
    [
        policy_loss,
        entropy,
        approx_kl,
        clip_fraction,
        rollout_approx_kl,
        rollout_logprob_diff,
        policy_grad_norm,
        policy_lr,
    ]
}

/// What `work` returns, and what it says on this thread.
pub(crate) fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&lines);
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || LineWriter(Arc::clone(&writer)))
        .finish();
    let done = tracing::subscriber::with_default(subscriber, work);
    let said = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    (done, said)
}

struct LineWriter(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The weights, one after the other.
pub(crate) fn flat(flats: &[Tensor]) -> Vec<f64> {
    flats.iter().flat_map(|flat| Vec::<f64>::try_from(flat.to_kind(Kind::Double)).unwrap()).collect()
}

/// The gradient that [`gradient_config`] turned into a step.
pub(crate) fn gradient(before: &[f64], after: &[f64]) -> Vec<f64> {
    before.iter().zip(after).map(|(before, after)| (before - after) / GRADIENT_SCALE).collect()
}

/// The length of the difference over the length of the second.
pub(crate) fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    apart / norm(&mut expected.iter().copied())
}
