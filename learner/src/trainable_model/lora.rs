//! Low-rank adapters: the weights a network uses are its frozen ones plus `alpha / rank · B A` for chosen
//! projections, and a scalar head, where it has one, trains whole.
//!
//! The sum is formed once after each optimizer step, in f32 and rounded once to the network's element type.
//! So the policy that trains is, bit for bit, the one that is published merged, and no pass pays for
//! adapters.
//! What is trained of a group is one flat f32 buffer in which each adapted projection has its `A`
//! `[rank, in]` and its `B` `[out, rank]`, in the layout's order.
//!
//! The gradients need no matrix of a projection's size. With the inputs `X` `[rows, in]` of a projection and
//! the gradient `G` `[rows, out]` in its outputs, the gradient in its matrix would be `Gᵀ X`, and those in
//! the factors are `s (G B)ᵀ X` and `s Gᵀ (X Aᵀ)`, with the scale `s`.

use model::{BlockPasses, Layout, ParameterSpec};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::adapter::Adapter;
use crate::config::LoraConfig;
use crate::error::Result;

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

/// A parameter of a group.
#[derive(Debug)]
struct Segment {
    spec: ParameterSpec,
    trains: Trains,
}

/// What of a parameter trains; the number is where it begins in what is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trains {
    /// Nothing.
    Nothing,
    /// Its adapter: `A`, behind it `B`.
    Adapter(i64),
    /// All of it.
    Whole(i64),
}

impl Lora {
    /// The adapters that the configuration names.
    pub(crate) fn new(layout: &Layout, config: &LoraConfig) -> Self {
        let rank = config.rank as i64;
        let groups = layout.groups.iter().map(|group| segments(&group.parameters, config)).collect();
        Self { rank, scale: config.alpha / config.rank as f64, groups }
    }

    /// New adapters by group: those of the folder that the configuration starts from or, without one, `A`
    /// uniform within `±1/sqrt(in)` (what `kaiming_uniform_(a=sqrt(5))` gives, as in PEFT) and `B` zero, so
    /// that the network is unchanged. `weights` reads the network's of a group.
    ///
    /// # Errors
    /// A folder that cannot be read, or is of other adapters; weights that cannot be read.
    pub(crate) fn initial(
        &self,
        init: &LoraInit,
        weights: &dyn Fn(usize) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut rng = ChaCha8Rng::seed_from_u64(init.seed);
        let start =
            init.config.start.as_deref().map(|folder| Adapter::read(folder, &init.config)).transpose()?;
        let mut groups = Vec::with_capacity(self.groups.len());
        for (group, segments) in self.groups.iter().enumerate() {
            let mut parts = vec![Tensor::zeros([0], (Kind::Float, tch::Device::Cpu))];
            for segment in segments {
                let (stem, spec) = (segment.stem(), &segment.spec);
                match (segment.trains, &start) {
                    (Trains::Nothing, _) => {}
                    (Trains::Adapter(_), None) => {
                        let [rows, columns] = segment.matrix_shape();
                        let bound = 1.0 / (columns as f32).sqrt();
                        let drawn =
                            (0..self.rank * columns).map(|_| (2.0 * rng.random::<f32>() - 1.0) * bound);
                        parts.push(Tensor::from_slice(&drawn.collect::<Vec<f32>>()));
                        parts.push(Tensor::zeros([self.rank * rows], (Kind::Float, tch::Device::Cpu)));
                    }
                    (Trains::Adapter(_), Some(start)) => {
                        let [rows, columns] = segment.matrix_shape();
                        parts.push(start.tensor(&format!("{stem}.lora_A.weight"), &[self.rank, columns])?);
                        parts.push(start.tensor(&format!("{stem}.lora_B.weight"), &[rows, self.rank])?);
                    }
                    (Trains::Whole(_), Some(start)) if start.has(&format!("{stem}.weight")) => {
                        parts.push(start.tensor(&format!("{stem}.weight"), &spec.shape)?);
                    }
                    (Trains::Whole(_), _) => {
                        let own = weights(group)?.narrow(0, spec.offset, spec.numel());
                        parts.push(own.to_kind(Kind::Float));
                    }
                }
            }
            let parts: Vec<Tensor> = parts.iter().map(|part| part.reshape([-1])).collect();
            groups.push(Tensor::cat(&parts, 0));
        }
        Ok(groups)
    }

    /// Whether something of a group trains.
    pub(crate) fn trains(&self, group: usize) -> bool {
        self.groups[group].iter().any(|segment| segment.trains != Trains::Nothing)
    }

    /// The weights of a group that the network uses, `[numel]`, from its frozen weights and what is trained.
    pub(crate) fn merge(&self, group: usize, frozen: &Tensor, trained: &Tensor) -> Tensor {
        if !self.trains(group) {
            return frozen.shallow_clone();
        }
        let merged = frozen.copy();
        self.merge_into(group, &merged, frozen, trained);
        merged
    }

    /// [`merge`](Self::merge) into a buffer that holds the frozen weights wherever nothing trains.
    pub(crate) fn merge_into(&self, group: usize, merged: &Tensor, frozen: &Tensor, trained: &Tensor) {
        for segment in &self.groups[group] {
            let (mut merged, frozen) = (segment.of(merged), segment.of(frozen));
            match segment.trains {
                Trains::Nothing => {}
                Trains::Whole(start) => merged.copy_(&trained.narrow(0, start, segment.spec.numel())),
                Trains::Adapter(start) => {
                    let (a, b) = self.factors(segment, start, trained);
                    let update = b.matmul(&a).reshape([-1]) * self.scale;
                    merged.copy_(&(frozen.to_kind(Kind::Float) + update));
                }
            }
        }
    }

    /// `A` and `B` of a segment, views of what is trained.
    fn factors(&self, segment: &Segment, start: i64, trained: &Tensor) -> (Tensor, Tensor) {
        let [rows, columns] = segment.matrix_shape();
        let a = trained.narrow(0, start, self.rank * columns).view([self.rank, columns]);
        let b = trained.narrow(0, start + self.rank * columns, rows * self.rank).view([rows, self.rank]);
        (a, b)
    }

    /// Adds the gradient in a block's adapters to `sum`, both as `trained`; `grad_outputs` are those in the
    /// outputs of its projections, as [`outputs`] names them.
    pub(crate) fn add_gradients(
        &self,
        group: usize,
        trained: &Tensor,
        (passes, grad_outputs): (&BlockPasses, &[Tensor; 4]),
        sum: &Tensor,
    ) {
        let inputs = [&passes.qkv, &passes.output, &passes.gate_up, &passes.down].map(|pass| &pass.input);
        for segment in &self.groups[group] {
            let Trains::Adapter(start) = segment.trains else { continue };
            let Some(Projection { matrix, row }) = self.projection(group, segment) else { continue };
            let [rows, columns] = segment.matrix_shape();
            let (a, b) = self.factors(segment, start, trained);
            let input = inputs[matrix].detach();
            let grad_output = grad_outputs[matrix].narrow(1, row, rows);
            let kind = input.kind();
            let grad_inner = grad_output.matmul(&b.to_kind(kind));
            let grad_a = grad_inner.tr().matmul(&input).to_kind(Kind::Float) * self.scale;
            let inner = input.matmul(&a.to_kind(kind).tr());
            let grad_b = grad_output.tr().matmul(&inner).to_kind(Kind::Float) * self.scale;
            let _ = sum.narrow(0, start, self.rank * columns).g_add_(&grad_a.reshape([-1]));
            let behind = start + self.rank * columns;
            let _ = sum.narrow(0, behind, self.rank * rows).g_add_(&grad_b.reshape([-1]));
        }
    }

    /// Which of a block's matrices a segment is rows of.
    fn projection(&self, group: usize, segment: &Segment) -> Option<Projection> {
        let matrix = matrix_of(&segment.spec)?;
        let before = self.groups[group].iter().take_while(|other| other.spec.offset < segment.spec.offset);
        let rows =
            before.filter(|other| matrix_of(&other.spec) == Some(matrix)).map(|other| other.spec.shape[0]);
        Some(Projection { matrix, row: rows.sum() })
    }

    /// What is trained under its names in a PEFT folder.
    pub(crate) fn named(&self, trained: &[Tensor]) -> Vec<(String, Tensor)> {
        let mut named = Vec::new();
        for (segments, trained) in self.groups.iter().zip(trained) {
            for segment in segments {
                let stem = segment.stem();
                match segment.trains {
                    Trains::Nothing => {}
                    Trains::Adapter(start) => {
                        let (a, b) = self.factors(segment, start, trained);
                        named.push((format!("{stem}.lora_A.weight"), a));
                        named.push((format!("{stem}.lora_B.weight"), b));
                    }
                    Trains::Whole(start) => {
                        let whole = trained.narrow(0, start, segment.spec.numel());
                        named.push((format!("{stem}.weight"), whole.view(segment.spec.shape.as_slice())));
                    }
                }
            }
        }
        named
    }
}

/// A part of one of a block's matrices.
struct Projection {
    /// Its place among the block's passes.
    matrix: usize,
    /// Its first row.
    row: i64,
}

/// The outputs of a block's projections, in the order of [`Lora::add_gradients`].
pub(crate) fn outputs(passes: &BlockPasses) -> [&Tensor; 4] {
    [&passes.qkv.output, &passes.output.output, &passes.gate_up.output, &passes.down.output]
}

/// Which of a block's four matrices holds this one, in the order of [`BlockPasses`].
fn matrix_of(spec: &ParameterSpec) -> Option<usize> {
    let name = spec.name.strip_suffix("_proj.weight")?;
    match name.rsplit('.').next()? {
        "q" | "k" | "v" => Some(0),
        "o" => Some(1),
        "gate" | "up" => Some(2),
        "down" => Some(3),
        _ => None,
    }
}

impl Segment {
    /// Rows and columns of the adapted matrix, `[out, in]`.
    fn matrix_shape(&self) -> [i64; 2] {
        [self.spec.shape[0], self.spec.shape[1]]
    }

    /// Its part of a group's buffer: a view, `[numel]`.
    fn of(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.spec.offset, self.spec.numel())
    }

    /// The name of its module in a PEFT folder.
    fn stem(&self) -> String {
        format!("base_model.model.{}", self.spec.name.trim_end_matches(".weight"))
    }
}

/// The parameters of a group, those that train with their place in what is trained.
fn segments(parameters: &[ParameterSpec], config: &LoraConfig) -> Vec<Segment> {
    let rank = config.rank as i64;
    let mut end = 0;
    let mut segments = Vec::with_capacity(parameters.len());
    for spec in parameters {
        let mut segment = Segment { spec: spec.clone(), trains: Trains::Nothing };
        if is_adapted(spec, config) {
            let [rows, columns] = segment.matrix_shape();
            segment.trains = Trains::Adapter(end);
            end += rank * (rows + columns);
        } else if spec.name == "score.weight" {
            segment.trains = Trains::Whole(end);
            end += spec.numel();
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

#[cfg(test)]
mod tests {
    use model::{Architecture, BlockWeights, Dimensions, ModelConfig, Packed, Weights};
    use tch::Device;

    use super::super::blocks::backpropagate;
    use super::*;

    fn network(architecture: Architecture) -> (ModelConfig, Weights) {
        let dimensions = Dimensions {
            vocab_size: 20,
            hidden_size: 16,
            intermediate_size: 24,
            layers: 1,
            heads: 4,
            kv_heads: 2,
            max_positions: 32,
        };
        let mut config = ModelConfig::new(architecture, dimensions).unwrap();
        config.initializer_range = 0.2;
        let weights = Weights::random(&config, 3, Kind::Float, Device::Cpu);
        (config, weights)
    }

    /// The gradient in the factors, from that in the whole buffer as autograd has it: with the gradient `M`
    /// in a matrix `s Bᵀ M` and `s M Aᵀ`.
    #[test]
    fn the_gradient_is_that_through_the_merged_matrix() {
        for architecture in [Architecture::Llama, Architecture::Qwen3] {
            let (config, weights) = network(architecture);
            let lora_config = LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() };
            let lora = Lora::new(weights.layout(), &lora_config);
            let frozen = &weights.flats()[1];
            let init = LoraInit { config: lora_config, seed: 1 };
            let read = |group: usize| Ok(weights.flats()[group].shallow_clone());
            let size = lora.initial(&init, &read).unwrap()[1].size();
            let trained = Tensor::randn(size, (Kind::Float, Device::Cpu)) * 0.3;
            let merged = lora.merge(1, frozen, &trained);

            let packed = Packed::new(&[(0..7).collect::<Vec<u32>>()], 20, Device::Cpu).unwrap();
            let rope = packed.rope(&config, Kind::Float);
            let x = Tensor::randn([7, 16], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let grad_output = Tensor::randn([7, 16], (Kind::Float, Device::Cpu));
            // Each of the three has a say.
            let attend = |queries: &Tensor, keys: &Tensor, values: &Tensor| {
                queries.tanh() * (keys.sin() + values.cos()).mean(Kind::Float)
            };

            let leaf = merged.detach().set_requires_grad(true);
            let output = model::block(&config, &BlockWeights::view(&config, &leaf), &x, &rope, attend);
            let [expected_x, dense] = backpropagate(&output, &grad_output, [&x, &leaf]).unwrap();

            let merged_weights = BlockWeights::view(&config, &merged);
            let passes = model::block_passes(&config, &merged_weights, &x, &rope, attend);
            assert_eq!(passes.down.output, output, "the same bits");
            let [qkv, attention, gate_up, down] = outputs(&passes);
            let wanted = [&x, qkv, attention, gate_up];
            let [grad_x, qkv, attention, gate_up] = backpropagate(down, &grad_output, wanted).unwrap();
            let sum = Tensor::zeros_like(&trained);
            let grad_outputs = [qkv, attention, gate_up, grad_output.shallow_clone()];
            lora.add_gradients(1, &trained, (&passes, &grad_outputs), &sum);

            let apart = |one: &Tensor, other: &Tensor| (one - other).norm().double_value(&[]);
            assert!(apart(&grad_x, &expected_x) < 1e-5);
            for segment in &lora.groups[1] {
                let Trains::Adapter(start) = segment.trains else { continue };
                let (a, b) = lora.factors(segment, start, &trained);
                let [grad_a, grad_b] = <[Tensor; 2]>::from(lora.factors(segment, start, &sum));
                let matrix = dense.narrow(0, segment.spec.offset, segment.spec.numel());
                let matrix = matrix.view(segment.matrix_shape().as_slice());
                let (expected_a, expected_b) = (b.tr().matmul(&matrix) * 2.0, matrix.matmul(&a.tr()) * 2.0);
                let apart = apart(&grad_a, &expected_a) + apart(&grad_b, &expected_b);
                let length = expected_a.norm().double_value(&[]) + expected_b.norm().double_value(&[]);
                assert!(length > 0.0 && apart < 1e-5 * length, "{}: {apart} {length}", segment.spec.name);
            }
        }
    }
}
