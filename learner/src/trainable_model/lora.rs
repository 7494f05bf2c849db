//! Low-rank adapters: the weights a network uses are its frozen ones plus `alpha / rank · B A` for chosen
//! projections.
//!
//! The sum is formed block by block whenever a block is used, in f32 and rounded once to the network's
//! element type. So the policy that trains is, bit for bit, the one that is published merged, and adapters
//! need nothing of the network's functions. What is trained of a group is one flat f32 buffer in which each
//! adapted projection has its `A` `[rank, in]` and its `B` `[out, rank]`, in the layout's order.

use model::{Layout, ParameterSpec};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::config::LoraConfig;

/// Adapters that are to be made.
#[derive(Debug, Clone)]
pub(crate) struct LoraInit {
    /// Which projections, and the rank.
    pub(crate) config: LoraConfig,
    /// What the random factors are drawn from.
    pub(crate) seed: u64,
}

/// The adapters of a network: where in each group they stand, and what they add.
#[derive(Debug)]
pub(crate) struct Lora {
    rank: i64,
    scale: f64,
    groups: Vec<Vec<Segment>>,
}

/// A parameter of a group, adapted or not.
#[derive(Debug)]
struct Segment {
    spec: ParameterSpec,
    /// Where the adapter's `A` begins in what is trained; its `B` follows.
    adapter: Option<i64>,
}

impl Lora {
    /// The adapters that the configuration names.
    pub(crate) fn new(layout: &Layout, config: &LoraConfig) -> Self {
        let rank = config.rank as i64;
        let groups = layout.groups.iter().map(|group| segments(&group.parameters, config)).collect();
        Self { rank, scale: config.alpha / config.rank as f64, groups }
    }

    /// New adapters by group: `A` uniform within `±1/sqrt(in)` (what `kaiming_uniform_(a=sqrt(5))` gives, as
    /// in PEFT), `B` zero, so that the network is unchanged.
    pub(crate) fn initial(&self, seed: u64) -> Vec<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let groups = self.groups.iter().map(|segments| {
            let mut values: Vec<f32> = Vec::new();
            for segment in segments.iter().filter(|segment| segment.adapter.is_some()) {
                let [rows, columns] = segment.matrix_shape();
                let bound = 1.0 / (columns as f32).sqrt();
                values.extend((0..self.rank * columns).map(|_| (2.0 * rng.random::<f32>() - 1.0) * bound));
                values.extend((0..self.rank * rows).map(|_| 0.0));
            }
            Tensor::from_slice(&values)
        });
        groups.collect()
    }

    /// The weights of a group that the network uses, `[numel]`, from its frozen weights and what is trained.
    /// Part of the graph where that requires gradients.
    pub(crate) fn merge(&self, group: usize, frozen: &Tensor, trained: &Tensor) -> Tensor {
        let segments = &self.groups[group];
        if segments.iter().all(|segment| segment.adapter.is_none()) {
            return frozen.shallow_clone();
        }
        let parts: Vec<Tensor> = segments
            .iter()
            .map(|segment| {
                let weights = frozen.narrow(0, segment.spec.offset, segment.spec.numel());
                match self.factors(segment, trained) {
                    None => weights,
                    Some((a, b)) => {
                        let update = b.matmul(&a).reshape([-1]) * self.scale;
                        (weights.to_kind(Kind::Float) + update).to_kind(frozen.kind())
                    }
                }
            })
            .collect();
        Tensor::cat(&parts, 0)
    }

    /// `A` and `B` of a segment, views of what is trained.
    fn factors(&self, segment: &Segment, trained: &Tensor) -> Option<(Tensor, Tensor)> {
        let start = segment.adapter?;
        let [rows, columns] = segment.matrix_shape();
        let a = trained.narrow(0, start, self.rank * columns).view([self.rank, columns]);
        let b = trained.narrow(0, start + self.rank * columns, rows * self.rank).view([rows, self.rank]);
        Some((a, b))
    }

    /// The adapters under their names in a PEFT folder.
    pub(crate) fn named(&self, trained: &[Tensor]) -> Vec<(String, Tensor)> {
        let mut named = Vec::new();
        for (segments, trained) in self.groups.iter().zip(trained) {
            for segment in segments {
                let Some((a, b)) = self.factors(segment, trained) else { continue };
                let stem = segment.spec.name.trim_end_matches(".weight");
                named.push((format!("base_model.model.{stem}.lora_A.weight"), a));
                named.push((format!("base_model.model.{stem}.lora_B.weight"), b));
            }
        }
        named
    }
}

impl Segment {
    /// Rows and columns of the adapted matrix, `[out, in]`.
    fn matrix_shape(&self) -> [i64; 2] {
        [self.spec.shape[0], self.spec.shape[1]]
    }
}

/// The parameters of a group, those that are adapted with the place of their adapter.
fn segments(parameters: &[ParameterSpec], config: &LoraConfig) -> Vec<Segment> {
    let rank = config.rank as i64;
    let mut end = 0;
    let mut segments = Vec::with_capacity(parameters.len());
    for spec in parameters {
        let mut segment = Segment { spec: spec.clone(), adapter: None };
        if is_adapted(spec, config) {
            let [rows, columns] = segment.matrix_shape();
            segment.adapter = Some(end);
            end += rank * (rows + columns);
        }
        segments.push(segment);
    }
    segments
}

fn is_adapted(spec: &ParameterSpec, config: &LoraConfig) -> bool {
    let is_target =
        config.targets.iter().any(|target| spec.name.ends_with(&format!("{}.weight", target.as_str())));
    spec.shape.len() == 2 && is_target
}
