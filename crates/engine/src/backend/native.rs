//! The network on the CPU in the engine's own code, for steps of few rows.
//!
//! Torch's operators cost more in starting than a small model's step takes, and its products are made for
//! many rows. Here a step is about eight operations a layer, each split over the threads of a
//! [`machine::Team`]; weights lie in the order in which they are read, and nothing is allocated once the
//! largest step was seen.
//!
//! Invariant: a row's numbers are a function of its sequence's tokens and the weights alone, to the bit. They
//! do not depend on the other rows, on how a prompt was cut into steps, on a preemption, or on the number of
//! threads. They may differ between processors: each has one set of vector instructions (`machine::Level`),
//! which decides how often a sum is rounded, and for bf16 whether a pair of products is one instruction.

mod attention;
mod cache;
mod experts;
mod machine;
mod math;
mod matrix;
mod memory;
mod norm;
mod number;
mod panels;
mod product;
mod rotation;
mod sampling;
mod weights;

use std::io;

use half::{bf16, f16};
use model::ModelConfig;
use types::DType;

use crate::Error;
use crate::backend::ReadGroup;
use crate::batch::{Batch, Draw, Drawn};
use crate::config::{EngineConfig, TILE_TOKENS};
use attention::Attention;
use cache::{Cache, Shape, WritePlan, Writing};
use experts::ExpertSpace;
use machine::{DistinctUnits, Level, Team};
use matrix::Matrix;
use norm::Norm;
use number::Number;
use product::{Product, Store, multiply};
use rotation::{HeadTransform, Rotations};
use weights::{FeedForward, Layer, Projection, size};

/// Elements of the largest matrix of logits: 64 MiB.
const LOGIT_ELEMENTS: usize = 1 << 24;

/// A policy's weights, packed.
#[derive(Debug)]
pub(crate) enum NativeWeights {
    F32(weights::NativeWeights<f32>),
    Bf16(weights::NativeWeights<bf16>),
    F16(weights::NativeWeights<f16>),
}

impl NativeWeights {
    /// Packs the weights of a network as `dtype`.
    ///
    /// # Errors
    /// When they cannot be read, or the system has no room for them.
    pub(crate) fn pack(config: &ModelConfig, read: ReadGroup<'_>, dtype: DType) -> Result<Self, Error> {
        Ok(match dtype {
            DType::F32 => Self::F32(weights::NativeWeights::pack(config, read)?),
            DType::Bf16 => Self::Bf16(weights::NativeWeights::pack(config, read)?),
            DType::F16 => Self::F16(weights::NativeWeights::pack(config, read)?),
        })
    }
}

/// Whether this backend can run the network.
pub(crate) fn supports(config: &ModelConfig) -> bool {
    size(config.head_dim) <= cache::MAX_HEAD_DIM
}

/// Bytes of one block of the cache.
pub(crate) fn block_bytes(model: &ModelConfig, engine: &EngineConfig) -> u64 {
    shape(model, engine, 1).block() as u64 * engine.dtype().size()
}

fn shape(model: &ModelConfig, engine: &EngineConfig, blocks: usize) -> Shape {
    Shape {
        layers: model.layers,
        heads: size(model.heads),
        kv_heads: size(model.kv_heads),
        head_dim: size(model.head_dim),
        block_tiles: engine.block_tokens / TILE_TOKENS,
        blocks,
    }
}

/// The backend for one of the element types.
#[derive(Debug)]
pub(crate) enum Native {
    F32(Box<Runner<f32>>),
    Bf16(Box<Runner<bf16>>),
    F16(Box<Runner<f16>>),
}

impl Native {
    /// A backend with an empty cache of `blocks` blocks.
    ///
    /// # Errors
    /// When the system has no room or no threads for it.
    pub(crate) fn new(
        model: &ModelConfig,
        weights: NativeWeights,
        engine: &EngineConfig,
        blocks: usize,
    ) -> io::Result<Self> {
        Ok(match weights {
            NativeWeights::F32(weights) => Self::F32(Box::new(Runner::new(model, weights, engine, blocks)?)),
            NativeWeights::Bf16(weights) => {
                Self::Bf16(Box::new(Runner::new(model, weights, engine, blocks)?))
            }
            NativeWeights::F16(weights) => Self::F16(Box::new(Runner::new(model, weights, engine, blocks)?)),
        })
    }

    /// Computes a step; the drawn tokens in the order of `batch.draws`.
    pub(crate) fn step(&mut self, batch: &Batch) -> &[Drawn] {
        match self {
            Self::F32(runner) => runner.step(batch),
            Self::Bf16(runner) => runner.step(batch),
            Self::F16(runner) => runner.step(batch),
        }
    }

    /// Takes other weights; gives the old ones back, or the new ones if they are of another element type.
    pub(crate) fn swap(&mut self, weights: NativeWeights) -> Result<NativeWeights, NativeWeights> {
        use std::mem::replace;
        Ok(match (self, weights) {
            (Self::F32(runner), NativeWeights::F32(new)) => {
                NativeWeights::F32(replace(&mut runner.weights, new))
            }
            (Self::Bf16(runner), NativeWeights::Bf16(new)) => {
                NativeWeights::Bf16(replace(&mut runner.weights, new))
            }
            (Self::F16(runner), NativeWeights::F16(new)) => {
                NativeWeights::F16(replace(&mut runner.weights, new))
            }
            (_, other) => return Err(other),
        })
    }
}

/// Runs the network with elements of type `N`.
#[derive(Debug)]
pub(crate) struct Runner<N: Number> {
    team: Team,
    level: Level,
    weights: weights::NativeWeights<N>,
    cache: Cache<N>,
    rotations: Rotations,
    eps: f32,
    windows: Vec<Option<usize>>,
    write_plan: WritePlan,
    /// The segment of each row of the step.
    segments: Vec<u32>,
    space: Space<N>,
    targets: DistinctUnits,
    drawn: Vec<Drawn>,
}

/// The activations of a step, one row for each token.
#[derive(Debug)]
struct Space<N: Number> {
    /// The residual stream.
    stream: Matrix,
    normed: Matrix<N::Input>,
    qkv: Matrix,
    attended: Matrix<N::Input>,
    gated: Matrix<N::Input>,
    experts: Option<ExpertSpace<N>>,
    /// Final states of the rows that draw.
    last: Matrix<N::Input>,
    logits: Matrix,
}

impl<N: Number> Space<N> {
    fn new(model: &ModelConfig, engine: &EngineConfig) -> io::Result<Self> {
        let rows = engine.max_sequences() + engine.prefill_chunk_tokens();
        let (heads, kv_heads, head_dim) = (size(model.heads), size(model.kv_heads), size(model.head_dim));
        let (hidden, vocab) = (size(model.hidden_size), size(model.vocab_size));
        let logit_rows = (LOGIT_ELEMENTS / vocab).clamp(1, engine.max_sequences());
        Ok(Self {
            stream: Matrix::zeros(rows, hidden)?,
            normed: Matrix::zeros(rows, hidden)?,
            qkv: Matrix::zeros(rows, (heads + 2 * kv_heads) * head_dim)?,
            attended: Matrix::zeros(rows, heads * head_dim)?,
            gated: Matrix::zeros(rows, size(model.feed_forward_width()))?,
            experts: ExpertSpace::new(model, rows)?,
            last: Matrix::zeros(logit_rows, hidden)?,
            logits: Matrix::zeros(logit_rows, vocab)?,
        })
    }
}

impl<N: Number> Runner<N> {
    fn new(
        model: &ModelConfig,
        weights: weights::NativeWeights<N>,
        engine: &EngineConfig,
        blocks: usize,
    ) -> io::Result<Self> {
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if engine.threads == 0 { available } else { engine.threads };
        Ok(Self {
            team: Team::new(threads)?,
            level: Level::best(),
            weights,
            cache: Cache::new(shape(model, engine, blocks))?,
            rotations: Rotations::new(model),
            eps: model.rms_norm_eps as f32,
            windows: (0..model.layers).map(|layer| model.window(layer).map(size)).collect(),
            write_plan: WritePlan::default(),
            segments: Vec::new(),
            space: Space::new(model, engine)?,
            targets: DistinctUnits::default(),
            drawn: Vec::new(),
        })
    }

    fn step(&mut self, batch: &Batch) -> &[Drawn] {
        self.cache.copy(&batch.copies);
        self.rotations.prepare(batch);
        self.write_plan.set(batch, &self.cache.shape);
        self.segments.clear();
        for (number, segment) in batch.segments.iter().enumerate() {
            self.segments.extend(segment.rows.clone().map(|_| number as u32));
        }
        let rows = batch.tokens.len();
        let machine = (&mut self.team, self.level);
        norm::embed(machine, self.weights.embedding(), &batch.tokens, self.space.stream.first_rows(rows));
        for layer in 0..self.weights.layers.len() {
            self.attention(layer, batch);
            self.feed_forward(layer, rows);
        }
        self.drawn.clear();
        self.drawn.resize(batch.draws.len(), Drawn::default());
        let most = self.space.logits.rows();
        for first in (0..batch.draws.len()).step_by(most) {
            let draws = first..batch.draws.len().min(first + most);
            self.draw(batch, draws);
        }
        &self.drawn
    }

    fn attention(&mut self, number: usize, batch: &Batch) {
        let Self { team, space, cache, rotations, level, eps, .. } = self;
        let (rows, level, eps) = (batch.tokens.len(), *level, *eps);
        let rotations = rotations.rows();
        let Layer { attention_norm, qkv, head_norms, output, .. } = &self.weights.layers[number];
        let norm = Norm { weight: attention_norm, eps };
        norm::normalize((team, level), norm, &space.stream, |row| row, space.normed.first_rows(rows));
        multiply(team, level, product(&space.normed, qkv, Store::Assign), space.qkv.first_rows(rows));
        let (query_norm, key_norm) = match head_norms {
            Some((query, key)) => (Some(query.as_slice()), Some(key.as_slice())),
            None => (None, None),
        };
        let keys = HeadTransform { norm: key_norm, eps, scale: 1.0 };
        let writing = Writing { plan: &self.write_plan, projections: &space.qkv, rotations, transform: keys };
        cache.write((team, level), number, &writing);
        let scale = 1.0 / (cache.shape.head_dim as f32).sqrt();
        let attention = Attention {
            cache,
            layer: number,
            batch,
            segments: &self.segments,
            projections: &space.qkv,
            rotations,
            transform: HeadTransform { norm: query_norm, eps, scale },
            window: self.windows[number],
        };
        attention::attend((team, level), attention, space.attended.first_rows(rows));
        multiply(team, level, product(&space.attended, output, Store::Add), space.stream.first_rows(rows));
    }

    fn feed_forward(&mut self, number: usize, rows: usize) {
        let Self { team, space, level, eps, .. } = self;
        let (level, eps) = (*level, *eps);
        let Layer { mlp_norm, feed_forward, .. } = &self.weights.layers[number];
        let norm = Norm { weight: mlp_norm, eps };
        norm::normalize((team, level), norm, &space.stream, |row| row, space.normed.first_rows(rows));
        let Space { stream, normed, gated, experts, .. } = space;
        match (feed_forward, experts) {
            (FeedForward::Dense(layer), _) => {
                multiply(team, level, product(normed, &layer.gate_up, Store::Gate), gated.first_rows(rows));
                multiply(team, level, product(gated, &layer.down, Store::Add), stream.first_rows(rows));
            }
            (FeedForward::Experts(layer), Some(experts)) => {
                experts.run((team, level), layer, (rows, normed), (gated, stream));
            }
            (FeedForward::Experts(_), None) => unreachable!("a network of experts has space for them"),
        }
    }

    /// Draws the tokens of some draws, as many as there is room for logits.
    fn draw(&mut self, batch: &Batch, range: std::ops::Range<usize>) {
        let Self { team, space, level, eps, .. } = self;
        let (level, eps) = (*level, *eps);
        let draws: &[Draw] = &batch.draws[range.clone()];
        let norm = Norm { weight: &self.weights.final_norm, eps };
        let last = space.last.first_rows(draws.len());
        norm::normalize((team, level), norm, &space.stream, |row| draws[row].row, last);
        let head =
            Product { input: &space.last, weights: &self.weights.head, bias: None, store: Store::Assign };
        multiply(team, level, head, space.logits.first_rows(draws.len()));
        let drawn = &mut self.drawn[range];
        sampling::draw((team, level), batch, draws, &space.logits, (&mut self.targets, drawn));
    }
}

fn product<'a, N: Number>(
    input: &'a Matrix<N::Input>,
    projection: &'a Projection<N>,
    store: Store,
) -> Product<'a, N> {
    Product { input, weights: &projection.weights, bias: projection.bias.as_deref(), store }
}
