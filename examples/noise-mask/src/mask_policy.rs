//! The policy: a network with two heads that gives each cell of a grid a Beta distribution, and the running
//! bases that it is mixed with.

use tch::nn::{self, ModuleT as _};
use tch::{Device, Kind, Tensor};

use crate::beta::Beta;
use crate::classifier::normalisation;

/// The heads' share in the parameters of a mask; the rest is the running bases'.
const HEAD_SHARE: f64 = 0.1;
/// The heads' share in the running bases, each batch.
const BASE_RATE: f64 = 0.01;
/// Features of an image.
const FEATURES: i64 = 64;
/// The paper blurs masks of 64 cells over 224 pixels with a kernel of 13 pixels and σ 6.
const KERNEL_PER_CELL: f64 = 13.0 / 3.5;
const SIGMA_PER_KERNEL: f64 = 6.0 / 13.0;

/// The grid that masks are drawn on, and how it becomes an image.
#[derive(Debug)]
pub struct Grid {
    /// Cells a side.
    side: i64,
    /// Pixels a side of the image.
    pixels: i64,
    /// The weights of the blur, [1, 1, kernel, kernel].
    blur: Tensor,
}

impl Grid {
    /// `side` cells over `pixels` pixels, blurred by the paper's kernel in units of a cell.
    ///
    /// # Errors
    /// When the grid has less than two cells a side, or more than the image has pixels.
    pub fn new(side: i64, pixels: i64) -> anyhow::Result<Self> {
        anyhow::ensure!(
            (2..=pixels).contains(&side),
            "a grid of {side} cells a side over {pixels} pixels: --grid takes 2 to {pixels}"
        );
        let cell = pixels as f64 / side as f64;
        // Odd, and no wider than what the image can be mirrored to.
        let radius = ((KERNEL_PER_CELL * cell / 2.0).floor() as i64).min(pixels - 1);
        let sigma = SIGMA_PER_KERNEL * (2 * radius + 1) as f64;
        let distances = Tensor::arange_start(-radius, radius + 1, (Kind::Float, Device::Cpu)) / sigma;
        let weights = (distances.square() * -0.5).exp();
        let weights = &weights / weights.sum(Kind::Float);
        let blur = weights.outer(&weights).unsqueeze(0).unsqueeze(0);
        Ok(Self { side, pixels, blur })
    }

    /// The number of cells.
    pub fn cells(&self) -> i64 {
        self.side * self.side
    }

    /// Masks [images, 1, pixels, pixels] of cells [images, cells]: the nearest cell for each pixel, then
    /// blurred with mirrored borders.
    pub fn masks(&self, cells: &Tensor) -> Tensor {
        let cells = cells.to_kind(Kind::Float).view([-1, 1, self.side, self.side]);
        let masks = cells.upsample_nearest2d([self.pixels; 2], None, None);
        let radius = self.blur.size()[2] / 2;
        let padded = masks.reflection_pad2d([radius; 4]);
        padded.conv2d::<Tensor>(&self.blur, None, [1], [0], [1], 1)
    }
}

/// The running means of what the heads say: A and B of the paper, [1, cells].
#[derive(Debug)]
pub struct Bases {
    log_alpha: Tensor,
    log_beta: Tensor,
}

impl Bases {
    /// U(0, 1), by the seed.
    pub(crate) fn new(cells: i64, seed: i64) -> Self {
        tch::manual_seed(seed);
        let options = (Kind::Float, Device::Cpu);
        Self { log_alpha: Tensor::rand([1, cells], options), log_beta: Tensor::rand([1, cells], options) }
    }

    /// The distributions of the bases alone, for as many images.
    pub fn distributions(&self, images: i64) -> Beta {
        Beta::new(&self.log_alpha.repeat([images, 1]), &self.log_beta.repeat([images, 1]))
    }

    /// Mixed with what the heads say of a batch: a = 0.9 A + 0.1 head_a(x).
    fn mixed(&self, heads: &Heads) -> Beta {
        let mix = 1.0 - HEAD_SHARE;
        Beta::new(
            &(&self.log_alpha * mix + &heads.log_alpha * HEAD_SHARE),
            &(&self.log_beta * mix + &heads.log_beta * HEAD_SHARE),
        )
    }

    /// A ← 0.99 A + 0.01 mean(head_a(x)), without gradient.
    fn update(&mut self, heads: &Heads) {
        self.log_alpha = running(&self.log_alpha, &heads.log_alpha);
        self.log_beta = running(&self.log_beta, &heads.log_beta);
    }
}

fn running(base: &Tensor, head: &Tensor) -> Tensor {
    let _guard = tch::no_grad_guard();
    base * (1.0 - BASE_RATE) + head.mean_dim([0i64].as_slice(), true, Kind::Float) * BASE_RATE
}

/// What the two heads say of a batch, [images, cells].
#[derive(Debug)]
struct Heads {
    log_alpha: Tensor,
    log_beta: Tensor,
}

/// The policy network and its bases.
#[derive(Debug)]
pub struct MaskPolicy {
    variables: nn::VarStore,
    trunk: nn::SequentialT,
    alpha: nn::SequentialT,
    beta: nn::SequentialT,
    bases: Bases,
}

impl MaskPolicy {
    /// A new one, by the seed.
    pub fn new(cells: i64, seed: i64) -> Self {
        let bases = Bases::new(cells, seed);
        let variables = nn::VarStore::new(Device::Cpu);
        let root = variables.root();
        let mut trunk = nn::seq_t();
        for (layer, (from, to, stride)) in
            [(1, 16, 1), (16, 32, 2), (32, FEATURES, 2)].into_iter().enumerate()
        {
            let path = &root / format!("trunk_{layer}");
            let config = nn::ConvConfig { padding: 1, stride, bias: false, ..Default::default() };
            trunk = trunk
                .add(nn::conv2d(&path / "convolution", from, to, 3, config))
                .add(nn::batch_norm2d(&path / "norm", to, normalisation()))
                .add_fn(Tensor::relu);
        }
        let trunk = trunk.add_fn(|x| x.mean_dim([2i64, 3].as_slice(), false, Kind::Float));
        let (alpha, beta) = (head(&root / "alpha", cells), head(&root / "beta", cells));
        Self { variables, trunk, alpha, beta, bases }
    }

    /// Its weights, for an optimizer.
    pub(crate) fn variables(&self) -> &nn::VarStore {
        &self.variables
    }

    /// The running bases.
    pub fn bases(&self) -> &Bases {
        &self.bases
    }

    /// The distributions of a training batch's masks, [images, cells]; the bases take up what the heads say.
    pub fn distributions(&mut self, images: &Tensor) -> Beta {
        let heads = self.heads(images, true);
        let distributions = self.bases.mixed(&heads);
        self.bases.update(&heads);
        distributions
    }

    /// The distributions that it would draw masks of these images from; changes nothing.
    pub(crate) fn distributions_now(&self, images: &Tensor) -> Beta {
        let _guard = tch::no_grad_guard();
        self.bases.mixed(&self.heads(images, false))
    }

    fn heads(&self, images: &Tensor, train: bool) -> Heads {
        let features = self.trunk.forward_t(images, train);
        Heads {
            log_alpha: self.alpha.forward_t(&features, train),
            log_beta: self.beta.forward_t(&features, train),
        }
    }
}

/// Twice linear, batch normalisation, ReLU; then linear to the cells.
fn head(path: nn::Path<'_>, cells: i64) -> nn::SequentialT {
    let mut head = nn::seq_t();
    for layer in 0..2 {
        head = head
            .add(nn::linear(&path / format!("linear_{layer}"), FEATURES, FEATURES, Default::default()))
            .add(nn::batch_norm1d(&path / format!("norm_{layer}"), FEATURES, normalisation()))
            .add_fn(Tensor::relu);
    }
    head.add(nn::linear(&path / "cells", FEATURES, cells, Default::default()))
}
