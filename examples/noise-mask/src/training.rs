//! Pre-training with or without masks, and fine-tuning without.

use anyhow::ensure;
use rand::Rng;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::Serialize;
use tch::nn::{self, OptimizerConfig as _};
use tch::{Kind, Tensor};

use crate::beta::Beta;
use crate::classifier::Classifier;
use crate::images::{DataSet, Images};
use crate::losses::{log_density_factor, paper_loss, reinforce_loss};
use crate::mask_policy::{Bases, Grid, MaskPolicy};
use crate::method::Method;
use crate::scores::Scores;

/// Momentum and weight decay of both networks, as in the paper's code.
const MOMENTUM: f64 = 0.9;
const WEIGHT_DECAY: f64 = 1e-4;
/// The part of the fine-tuning in which its learning rate grows.
const WARM_UP: f64 = 0.7;
/// What the policy's seed is above the classifier's.
const POLICY_SEED: i64 = 1 << 32;
/// Streams of a seed's random numbers.
const PRETRAINING_STREAM: u64 = 1;
const FINE_TUNING_STREAM: u64 = 2;

/// How long and how fast is trained.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Recipe {
    /// Passes over the images with masks.
    pub epochs: u32,
    /// Passes over the images without, after that.
    pub fine_tuning_epochs: u32,
    /// Images of a step.
    pub batch: usize,
    /// Of the policy, falling to nothing along a cosine.
    pub policy_learning_rate: f64,
    /// Of the classifier without masks, growing over the first 7 of 10 epochs.
    pub fine_tuning_learning_rate: f64,
}

/// One seed's task.
#[derive(Debug)]
pub(crate) struct Task<'a> {
    /// Images to learn from, to choose by and to judge by.
    pub(crate) data: &'a DataSet,
    /// What masks are drawn on.
    pub(crate) grid: &'a Grid,
    /// How to train.
    pub(crate) recipe: Recipe,
    /// The classifier's; a tenth of it after a third of the epochs, a hundredth after two.
    pub(crate) learning_rate: f64,
    /// Of all that is random.
    pub(crate) seed: u64,
}

/// What the masks are like at the end of pre-training, over the images to judge by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MaskFigures {
    /// The mean of the distributions of each cell, row by row.
    pub(crate) cells: Vec<f64>,
    /// The mean entropy of a cell, in nats: 0 for uniform masks.
    pub(crate) entropy: f64,
    /// The deviation of a cell's mean between images, averaged over cells: 0 for a policy that is blind.
    pub(crate) spread: f64,
    /// mean_i( ln Σ_j p(m_ij) ), what the paper's loss multiplies the classifier's by.
    pub(crate) log_density_factor: f64,
}

/// What became of one classifier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Outcome {
    /// After pre-training, with masks from the running bases if there were masks, as the paper evaluates.
    pub(crate) pretrained: Scores,
    /// After pre-training, without masks.
    pub(crate) pretrained_unmasked: Scores,
    /// After fine-tuning, on the images to choose by.
    pub(crate) validation: Scores,
    /// After fine-tuning.
    pub(crate) fine_tuned: Scores,
    /// The masks, if there were any.
    pub(crate) masks: Option<MaskFigures>,
    /// The epoch of pre-training that ended it, because its loss was no finite number.
    pub(crate) diverged_in_epoch: Option<u32>,
}

/// Where masks come from.
enum Masks {
    None,
    Fixed(Bases),
    Learned(Box<MaskPolicy>, nn::Optimizer),
}

/// Pre-trains and fine-tunes one classifier.
///
/// # Errors
/// When there are fewer images than a batch has. A loss that is no finite number ends the training, and what
/// it has made is judged.
pub(crate) fn train(task: &Task<'_>, method: Method) -> anyhow::Result<Outcome> {
    let (train, recipe) = (&task.data.train, &task.recipe);
    ensure!(
        (2..=train.len()).contains(&recipe.batch),
        "batches of {} from {} images: --batch takes 2 to {}",
        recipe.batch,
        train.len(),
        train.len()
    );
    let seed = i64::try_from(task.seed)?;
    let classifier = Classifier::new(task.data.side, task.data.classes, seed);
    let (masks, diverged_in_epoch) = pretrain(task, method, &classifier)?;

    let test = &task.data.test;
    let pretrained_unmasked = classifier.evaluate(test, |_| None)?;
    let bases = match &masks {
        Masks::None => None,
        Masks::Fixed(bases) => Some(bases),
        Masks::Learned(policy, _) => Some(policy.bases()),
    };
    let pretrained = match bases {
        None => pretrained_unmasked,
        Some(bases) => {
            let draw = |images| Some(task.grid.masks(&bases.distributions(images).sample()));
            classifier.evaluate(test, draw)?
        }
    };
    let figures = match &masks {
        Masks::None => None,
        Masks::Fixed(bases) => Some(mask_figures(&bases.distributions(test.len() as i64))?),
        Masks::Learned(policy, _) => Some(mask_figures(&policy.distributions_now(test.pixels()))?),
    };
    if diverged_in_epoch.is_none() {
        fine_tune(task, &classifier)?;
    }
    let [validation, fine_tuned] =
        [classifier.evaluate(&task.data.validation, |_| None)?, classifier.evaluate(test, |_| None)?];
    Ok(Outcome { pretrained, pretrained_unmasked, validation, fine_tuned, masks: figures, diverged_in_epoch })
}

/// Where masks come from at the end, and the epoch that ended it too early.
fn pretrain(
    task: &Task<'_>,
    method: Method,
    classifier: &Classifier,
) -> anyhow::Result<(Masks, Option<u32>)> {
    let recipe = &task.recipe;
    let mut optimizer = sgd(classifier.variables(), task.learning_rate)?;
    let policy_seed = i64::try_from(task.seed)? + POLICY_SEED;
    let mut masks = if method.learns() {
        let policy = MaskPolicy::new(task.grid.cells(), policy_seed);
        let optimizer = sgd(policy.variables(), recipe.policy_learning_rate)?;
        Masks::Learned(Box::new(policy), optimizer)
    } else if method.masks() {
        Masks::Fixed(Bases::new(task.grid.cells(), policy_seed))
    } else {
        Masks::None
    };
    let mut rng = stream(task.seed, PRETRAINING_STREAM);
    for epoch in 0..recipe.epochs {
        optimizer.set_lr(task.learning_rate * stepped(epoch, recipe.epochs));
        if let Masks::Learned(_, optimizer) = &mut masks {
            optimizer.set_lr(recipe.policy_learning_rate * cosine(epoch, recipe.epochs));
        }
        for numbers in batches(&task.data.train, recipe.batch, &mut rng) {
            let (pixels, labels) = task.data.train.shifted(&numbers, &mut rng);
            let (masked, distributions) = mask(&mut masks, task.grid, pixels);
            let cross_entropies = classifier.cross_entropies(&masked, &labels);
            let loss = loss(method, task.grid.cells(), &cross_entropies, distributions.as_ref());
            if !loss.double_value(&[]).is_finite() {
                return Ok((masks, Some(epoch)));
            }
            optimizer.zero_grad();
            if let Masks::Learned(_, optimizer) = &mut masks {
                optimizer.zero_grad();
            }
            loss.backward();
            optimizer.step();
            if let Masks::Learned(_, optimizer) = &mut masks {
                optimizer.step();
            }
        }
    }
    Ok((masks, None))
}

/// Images times masks, and the log-densities of these, [images, cells], where there are masks.
fn mask(masks: &mut Masks, grid: &Grid, pixels: Tensor) -> (Tensor, Option<Tensor>) {
    let distributions = match masks {
        Masks::None => return (pixels, None),
        Masks::Fixed(bases) => bases.distributions(pixels.size()[0]),
        Masks::Learned(policy, _) => policy.distributions(&pixels),
    };
    let cells = distributions.sample();
    (pixels * grid.masks(&cells), Some(distributions.log_density(&cells)))
}

fn loss(method: Method, cells: i64, cross_entropies: &Tensor, log_densities: Option<&Tensor>) -> Tensor {
    let plain = cross_entropies.mean(Kind::Double);
    match (method, log_densities) {
        (Method::Paper, Some(log_densities)) => paper_loss(log_densities, cross_entropies),
        (Method::Reinforce, Some(log_densities)) => plain + reinforce_loss(log_densities, cross_entropies),
        _ if method.scales() => plain * (cells as f64).ln(),
        _ => plain,
    }
}

fn fine_tune(task: &Task<'_>, classifier: &Classifier) -> anyhow::Result<()> {
    let recipe = &task.recipe;
    let mut optimizer = sgd(classifier.variables(), recipe.fine_tuning_learning_rate)?;
    let mut rng = stream(task.seed, FINE_TUNING_STREAM);
    let warm_up = (f64::from(recipe.fine_tuning_epochs) * WARM_UP).max(1.0);
    for epoch in 0..recipe.fine_tuning_epochs {
        optimizer.set_lr(recipe.fine_tuning_learning_rate * (f64::from(epoch + 1) / warm_up).min(1.0));
        for numbers in batches(&task.data.train, recipe.batch, &mut rng) {
            let (pixels, labels) = task.data.train.shifted(&numbers, &mut rng);
            let loss = classifier.cross_entropies(&pixels, &labels).mean(Kind::Double);
            optimizer.backward_step(&loss);
        }
    }
    Ok(())
}

fn mask_figures(distributions: &Beta) -> anyhow::Result<MaskFigures> {
    let _guard = tch::no_grad_guard();
    let means = distributions.mean();
    let log_densities = distributions.log_density(&distributions.sample());
    Ok(MaskFigures {
        cells: Vec::<f64>::try_from(means.mean_dim([0i64].as_slice(), false, Kind::Double))?,
        entropy: distributions.entropy().mean(Kind::Double).double_value(&[]),
        spread: means.std_dim([0i64].as_slice(), false, false).mean(Kind::Double).double_value(&[]),
        log_density_factor: log_density_factor(&log_densities).double_value(&[]),
    })
}

pub(crate) fn sgd(variables: &nn::VarStore, learning_rate: f64) -> anyhow::Result<nn::Optimizer> {
    Ok(nn::sgd(MOMENTUM, 0.0, WEIGHT_DECAY, false).build(variables, learning_rate)?)
}

/// One of the independent streams of random numbers of a seed.
pub(crate) fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// All images in a new order, in batches; what is left over is not trained on.
pub(crate) fn batches(images: &Images, batch: usize, rng: &mut impl Rng) -> Vec<Vec<i64>> {
    let mut order: Vec<i64> = (0..images.len() as i64).collect();
    order.shuffle(rng);
    order.chunks_exact(batch).map(<[i64]>::to_vec).collect()
}

/// The paper's schedule of the classifier: a tenth after each third.
fn stepped(epoch: u32, epochs: u32) -> f64 {
    0.1f64.powi((3 * u64::from(epoch) / u64::from(epochs)) as i32)
}

/// The paper's schedule of the policy: from 1 to 0 along a cosine.
fn cosine(epoch: u32, epochs: u32) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * f64::from(epoch) / f64::from(epochs)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_the_papers() {
        let steps = [0, 29, 30, 59, 60, 89].map(|epoch| stepped(epoch, 90));
        for (step, expected) in steps.iter().zip([1.0, 1.0, 0.1, 0.1, 0.01, 0.01]) {
            assert!((step - expected).abs() < 1e-12, "{steps:?}");
        }
        assert_eq!(cosine(0, 90), 1.0);
        assert!((cosine(45, 90) - 0.5).abs() < 1e-12);
        assert!((cosine(89, 90) - 3.046e-4).abs() < 1e-6);
    }
}
