//! AdamW (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2), the arithmetic of `torch.optim.AdamW`, on
//! flat shards.

use tch::{Device, Kind, Tensor};

use super::shard::Shard;
use crate::config::{DecayOn, OptimizerConfig};
use crate::host;

/// Elements that a step takes at a time on the CPU: a chunk of all buffers stays in the cache from operation
/// to operation.
const CHUNK_ELEMENTS: i64 = 1 << 17;

/// What one optimizer step is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OptimizerStep<'a> {
    /// β₁, β₂, ε and weight decay.
    pub(crate) config: &'a OptimizerConfig,
    /// The learning rate now.
    pub(crate) lr: f64,
    /// What gradients are multiplied by: below 1 where they are clipped.
    pub(crate) gradient_scale: f64,
}

/// The state of one group's shard: all `[shard]`, f32.
#[derive(Debug)]
pub(crate) struct Moments {
    /// The weights in f32, where the network's are not.
    pub(crate) master: Option<Tensor>,
    /// Exponential mean of gradients.
    pub(crate) first: Tensor,
    /// Exponential mean of squared gradients.
    pub(crate) second: Tensor,
}

/// Optimizer state of this rank's shard of a network.
#[derive(Debug)]
pub(crate) struct AdamW {
    /// Optimizer steps done; `t` of the bias corrections.
    pub(crate) steps: u64,
    /// The state of each group's shard.
    pub(crate) moments: Vec<Moments>,
    /// How many elements of each shard, from its beginning, are matrices.
    decayed: Vec<i64>,
}

impl AdamW {
    /// The state before the first step. `weights` are this rank's shards, `[shard]` by group; `decayed` says
    /// how many leading elements of each group are matrices. The state lies on `device`.
    pub(crate) fn new(weights: &[Tensor], shards: &[Shard], decayed: &[i64], device: Device) -> Self {
        let _guard = tch::no_grad_guard();
        let moments = weights.iter().map(|weights| Moments::zeros(weights, device)).collect();
        let decayed =
            shards.iter().zip(decayed).map(|(shard, count)| (count - shard.start).clamp(0, shard.length));
        Self { steps: 0, moments, decayed: decayed.collect() }
    }

    /// One step: the shards of the weights move along their gradients, both `[shard]` by group.
    pub(crate) fn step(&mut self, weights: &[Tensor], gradients: &[Tensor], step: &OptimizerStep<'_>) {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let rule = UpdateRule::new(step, self.steps);
        for (group, (weights, gradient)) in weights.iter().zip(gradients).enumerate() {
            let Moments { master, first, second } = &self.moments[group];
            let exact = master.as_ref().unwrap_or(weights);
            let device = exact.device();
            let gradient = host::moved(gradient, device);
            let matrices = match step.config.weight_decay_on {
                DecayOn::All => exact.numel() as i64,
                DecayOn::Matrices => self.decayed[group],
            };
            rule.decay(&exact.narrow(0, 0, matrices));
            let chunk = if device == Device::Cpu { CHUNK_ELEMENTS } else { i64::MAX };
            let total = exact.numel() as i64;
            let mut start = 0;
            while start < total {
                let count = chunk.min(total - start);
                rule.apply(
                    &gradient.narrow(0, start, count),
                    first.narrow(0, start, count),
                    second.narrow(0, start, count),
                    exact.narrow(0, start, count),
                );
                start += count;
            }
            if let Some(master) = master {
                weights.shallow_clone().copy_(master);
            }
        }
    }
}

impl Moments {
    /// Before the first step, for these weights; the state lies on `device`.
    fn zeros(weights: &Tensor, device: Device) -> Self {
        let is_exact = weights.kind() == Kind::Float && weights.device() == device;
        let master = (!is_exact).then(|| host::moved(weights, device).to_kind(Kind::Float).copy());
        Self {
            master,
            first: Tensor::zeros(weights.size(), (Kind::Float, device)),
            second: Tensor::zeros(weights.size(), (Kind::Float, device)),
        }
    }
}

/// The numbers of one step.
struct UpdateRule {
    /// `1 − lr · weight_decay`.
    decay: f64,
    /// `1 − β₁`.
    first_pace: f64,
    /// `1 − β₂`.
    second_pace: f64,
    /// `lr / (1 − β₁^t)`.
    rate: f64,
    /// `sqrt(1 − β₂^t)`.
    correction: f64,
    /// ε, added to the root of the second moment.
    eps: f64,
    gradient_scale: f64,
}

impl UpdateRule {
    fn new(step: &OptimizerStep<'_>, steps: u64) -> Self {
        let [beta1, beta2] = step.config.betas;
        let steps = steps as f64;
        Self {
            decay: 1.0 - step.lr * step.config.weight_decay,
            first_pace: 1.0 - beta1,
            second_pace: 1.0 - beta2,
            rate: step.lr / (1.0 - beta1.powf(steps)),
            correction: (1.0 - beta2.powf(steps)).sqrt(),
            eps: step.config.adam_eps,
            gradient_scale: step.gradient_scale,
        }
    }

    /// Decoupled weight decay: `w ← (1 − lr · weight_decay) w`.
    fn decay(&self, weights: &Tensor) {
        if self.decay != 1.0 {
            let _ = weights.shallow_clone().g_mul_scalar_(self.decay);
        }
    }

    /// `m ← m + (1 − β₁)(g − m)`, `v ← v + (1 − β₂)(g² − v)`,
    /// `w ← w − rate · m / (sqrt(v) / correction + ε)`.
    fn apply(&self, gradient: &Tensor, mut first: Tensor, mut second: Tensor, mut weights: Tensor) {
        let scaled = (self.gradient_scale != 1.0).then(|| gradient * self.gradient_scale);
        let gradient = scaled.as_ref().unwrap_or(gradient);
        let _ = first.lerp_(gradient, self.first_pace);
        let _ = second.lerp_(&gradient.square(), self.second_pace);
        if self.rate == 0.0 {
            return;
        }
        // w += m / d with d = −(sqrt(v) / correction + ε) / rate.
        let mut divisor = second.sqrt();
        let _ = divisor.g_mul_scalar_(-1.0 / (self.correction * self.rate));
        let _ = divisor.g_add_scalar_(-self.eps / self.rate);
        let _ = weights.addcdiv_(&first, &divisor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `torch.optim.AdamW` gives in f64 for the gradients (0.1, −2.0, 0.0) and three times (0.5, 0.25,
    /// 1e-6), with lr 0.01, betas (0.9, 0.99), eps 1e-3, weight decay 0.1.
    const EXPECTED: [[f64; 3]; 4] = [
        [0.989_099_009_901, -0.489_504_997_501, 0.249_75],
        [0.979_541_076_754, -0.483_281_577_506, 0.249_494_990_570],
        [0.969_378_368_736, -0.479_180_845_795, 0.249_238_490_244],
        [0.958_927_685_216, -0.476_469_862_814, 0.248_981_378_392],
    ];

    fn config() -> OptimizerConfig {
        OptimizerConfig {
            betas: [0.9, 0.99],
            adam_eps: 1e-3,
            weight_decay: 0.1,
            ..OptimizerConfig::default()
        }
    }

    fn run(kind: Kind) -> Vec<Vec<f64>> {
        let weights = Tensor::from_slice(&[1.0f32, -0.5, 0.25]).to_kind(kind);
        let shards = [Shard::new(3, 0, 1)];
        let mut optimizer = AdamW::new(&[weights.shallow_clone()], &shards, &[3], Device::Cpu);
        let config = config();
        let mut path = Vec::new();
        for gradient in [[0.1f32, -2.0, 0.0], [0.5, 0.25, 1e-6], [0.5, 0.25, 1e-6], [0.5, 0.25, 1e-6]] {
            let step = OptimizerStep { config: &config, lr: 0.01, gradient_scale: 1.0 };
            optimizer.step(&[weights.shallow_clone()], &[Tensor::from_slice(&gradient)], &step);
            let exact = optimizer.moments[0].master.as_ref().unwrap_or(&weights);
            path.push(Vec::<f64>::try_from(exact.to_kind(Kind::Double)).unwrap());
        }
        path
    }

    #[test]
    fn the_numbers_are_those_of_torch() {
        for (found, expected) in run(Kind::Float).iter().zip(EXPECTED) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-7, "{found} {expected}");
            }
        }
    }

    #[test]
    fn half_precision_weights_have_exact_masters() {
        assert_eq!(run(Kind::BFloat16), run(Kind::Float));
    }

    #[test]
    fn norms_and_biases_decay_only_where_asked() {
        for (on, expected) in [(DecayOn::All, 0.9), (DecayOn::Matrices, 1.0)] {
            let weights = Tensor::ones([4], (Kind::Float, Device::Cpu));
            let shards = [Shard::new(4, 0, 1)];
            let mut optimizer = AdamW::new(&[weights.shallow_clone()], &shards, &[2], Device::Cpu);
            let config = OptimizerConfig { weight_decay: 1.0, weight_decay_on: on, ..config() };
            let zeros = Tensor::zeros([4], (Kind::Float, Device::Cpu));
            let step = OptimizerStep { config: &config, lr: 0.1, gradient_scale: 1.0 };
            optimizer.step(&[weights.shallow_clone()], &[zeros], &step);
            assert!((weights.double_value(&[0]) - 0.9).abs() < 1e-7);
            assert!((weights.double_value(&[3]) - expected).abs() < 1e-7, "{on:?}");
        }
    }

    #[test]
    fn a_learning_rate_of_zero_moves_only_the_moments() {
        let weights = Tensor::from_slice(&[1.0f32]);
        let mut optimizer = AdamW::new(&[weights.shallow_clone()], &[Shard::new(1, 0, 1)], &[1], Device::Cpu);
        let config = config();
        let step = OptimizerStep { config: &config, lr: 0.0, gradient_scale: 0.5 };
        optimizer.step(&[weights.shallow_clone()], &[Tensor::from_slice(&[2.0f32])], &step);
        assert_eq!(weights, Tensor::from_slice(&[1.0f32]));
        assert!((optimizer.moments[0].first.double_value(&[0]) - 0.1).abs() < 1e-7);
        assert_eq!(optimizer.steps, 1);
    }
}
