//! A network's weights: one flat buffer a group, as [`Layout`] says, and views of it under the Hugging Face
//! names.
//!
//! Invariants: every buffer has its group's number of elements, all have one element type and one device, and
//! none shares storage with another network's. Buffers are written in place, so that views taken once
//! ([`Weights::network`]) stay valid across weight updates.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::init::{fill_constant, fill_normal};
use crate::layout::{GroupKind, GroupLayout, Layout};
use crate::network::{BlockWeights, Network, OutputWeights};

/// Why weights do not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Another number of groups.
    #[error("{found} groups of weights, the network has {expected}")]
    Groups {
        /// How many were given.
        found: usize,
        /// How many the network has.
        expected: usize,
    },
    /// A buffer of another shape.
    #[error("the buffer of group {group:?} has shape {found:?}, expected [{expected}]")]
    Buffer {
        /// The group whose buffer it is.
        group: GroupKind,
        /// The shape that was given.
        found: Vec<i64>,
        /// How many elements the group has.
        expected: i64,
    },
    /// Buffers that differ in element type or device.
    #[error("the buffer of group {group:?} is {found}, the first buffer is {expected}")]
    Mixed {
        /// The group whose buffer it is.
        group: GroupKind,
        /// Its element type and device.
        found: String,
        /// Those of the first buffer.
        expected: String,
    },
    /// Weights of a network of another shape.
    #[error("the weights are of a network of another shape: {0}")]
    Layout(String),
}

/// One parameter under its Hugging Face name.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// The name that transformers gives it.
    pub name: &'a str,
    /// A view of it: writing to it writes the weights.
    pub tensor: Tensor,
}

/// How a new scalar head begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalarInit {
    /// All zeros: a critic that starts by predicting nothing.
    Zero,
    /// Normal numbers of the configuration's `initializer_range`, as transformers makes a new `score`.
    Normal {
        /// Equal seeds give equal numbers.
        seed: u64,
    },
}

/// The weights of one network.
#[derive(Debug)]
pub struct Weights {
    layout: Arc<Layout>,
    flats: Vec<Tensor>,
}

impl Weights {
    /// Weights of zeros.
    pub fn zeros(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        let layout = Layout::new(config);
        let flats = layout.groups.iter().map(|group| Tensor::zeros([group.numel], (kind, device))).collect();
        Self { layout: Arc::new(layout), flats }
    }

    /// Random weights as transformers initialises them: matrices normal with deviation `initializer_range`,
    /// biases zero, norms one. The same seed gives the same weights.
    pub fn random(config: &ModelConfig, seed: u64, kind: Kind, device: Device) -> Self {
        let weights = Self::zeros(config, kind, device);
        for parameter in weights.parameters() {
            if parameter.tensor.dim() > 1 {
                fill_normal(&parameter.tensor, parameter.name, seed, config.initializer_range);
            } else if parameter.name.ends_with("norm.weight") {
                fill_constant(&parameter.tensor, 1.0);
            }
        }
        weights
    }

    /// Weights in the given buffers, one a group in the layout's order. The buffers are taken, not copied.
    ///
    /// # Errors
    /// When a buffer is missing, or of another shape, element type or device.
    pub fn from_flats(config: &ModelConfig, flats: Vec<Tensor>) -> Result<Self, Error> {
        let layout = Layout::new(config);
        if flats.len() != layout.groups.len() {
            return Err(Error::Groups { found: flats.len(), expected: layout.groups.len() });
        }
        for (flat, group) in flats.iter().zip(&layout.groups) {
            if flat.size() != [group.numel] || !flat.is_contiguous() {
                let (found, expected) = (flat.size(), group.numel);
                return Err(Error::Buffer { group: group.kind, found, expected });
            }
            if (flat.kind(), flat.device()) != (flats[0].kind(), flats[0].device()) {
                let [found, expected] =
                    [flat, &flats[0]].map(|flat| format!("{:?} on {:?}", flat.kind(), flat.device()));
                return Err(Error::Mixed { group: group.kind, found, expected });
            }
        }
        Ok(Self { layout: Arc::new(layout), flats })
    }

    /// Which parameters there are, and where.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The buffers in the layout's order, `[numel]` each.
    pub fn flats(&self) -> &[Tensor] {
        &self.flats
    }

    /// The named parameters in manifest order, as views of the buffers.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter<'_>> {
        let flats: Vec<Tensor> = self.flats.iter().map(Tensor::detach).collect();
        self.layout.groups.iter().zip(flats).flat_map(|(group, flat)| {
            group.parameters.iter().map(move |spec| Parameter {
                name: &spec.name,
                tensor: flat.narrow(0, spec.offset, spec.numel()).view(spec.shape.as_slice()),
            })
        })
    }

    /// The parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<Tensor> {
        self.parameters().find(|parameter| parameter.name == name).map(|parameter| parameter.tensor)
    }

    /// How many numbers the weights are.
    pub fn numel(&self) -> i64 {
        self.layout.numel()
    }

    /// How many bytes they take.
    pub fn bytes(&self) -> u64 {
        let elements = u64::try_from(self.numel()).unwrap_or(0);
        elements * self.kind().elt_size_in_bytes() as u64
    }

    /// The element type of all buffers.
    pub fn kind(&self) -> Kind {
        self.flats[0].kind()
    }

    /// The device of all buffers.
    pub fn device(&self) -> Device {
        self.flats[0].device()
    }

    /// Copies the values of `other` into these buffers, converting element type and device. Views stay valid.
    ///
    /// # Errors
    /// When `other` is of a network of another shape.
    pub fn copy_from(&mut self, other: &Self) -> Result<(), Error> {
        if self.layout != other.layout {
            return Err(Error::Layout(difference(&self.layout, &other.layout)));
        }
        let _guard = tch::no_grad_guard();
        for (mine, theirs) in self.flats.iter_mut().zip(&other.flats) {
            mine.copy_(theirs);
        }
        Ok(())
    }

    /// A copy in storage of its own, of the given element type on the given device.
    pub fn to(&self, kind: Kind, device: Device) -> Self {
        let _guard = tch::no_grad_guard();
        let mut flats = Vec::with_capacity(self.flats.len());
        for flat in &self.flats {
            let mut copy = Tensor::empty(flat.size(), (kind, device));
            copy.copy_(flat);
            flats.push(copy);
        }
        Self { layout: Arc::clone(&self.layout), flats }
    }

    /// The weights as the network's functions take them: views of the buffers. Where a buffer requires
    /// gradients and gradients are enabled, the views are part of the graph; then take new ones for each
    /// forward pass.
    ///
    /// # Panics
    /// When `config` is another network's.
    pub fn network(&self, config: &ModelConfig) -> Network {
        let last = self.flats.len() - 1;
        let embedding = self.flats[0].view([config.vocab_size, config.hidden_size]);
        Network {
            blocks: self.flats[1..last].iter().map(|flat| BlockWeights::view(config, flat)).collect(),
            output: OutputWeights::view(config, &self.flats[last], &embedding),
            embedding,
        }
    }

    /// A copy of the trunk, sharing nothing, with a scalar head; `config` is this network's. A network that
    /// has a scalar head already keeps it. Returns the new network's configuration and weights.
    pub fn with_scalar_head(&self, config: &ModelConfig, init: ScalarInit) -> (ModelConfig, Self) {
        let _guard = tch::no_grad_guard();
        let scalar_config = config.clone().with_scalar_head();
        let (output, trunk) = self.flats.split_last().expect("a network has groups");
        let mut flats: Vec<Tensor> = trunk.iter().map(Tensor::copy).collect();
        flats.push(scalar_output(config, output, init));
        let layout = Arc::new(Layout::new(&scalar_config));
        (scalar_config, Self { layout, flats })
    }
}

/// The output group of a network with a scalar head instead of its own: `output` is its group as it is, and
/// shares nothing with the new one, `[numel]`. A scalar head that is there already stays.
pub fn scalar_output(config: &ModelConfig, output: &Tensor, init: ScalarInit) -> Tensor {
    let _guard = tch::no_grad_guard();
    let scalar_config = config.clone().with_scalar_head();
    let [own, scalar] = [config, &scalar_config].map(output_layout);
    let flat = Tensor::zeros([scalar.numel], (output.kind(), output.device()));
    for spec in &scalar.parameters {
        let mut target = flat.narrow(0, spec.offset, spec.numel());
        match (own.parameters.iter().find(|found| found.name == spec.name), init) {
            (Some(found), _) => target.copy_(&output.narrow(0, found.offset, found.numel())),
            (None, ScalarInit::Zero) => {}
            (None, ScalarInit::Normal { seed }) => {
                let target = target.view(spec.shape.as_slice());
                fill_normal(&target, &spec.name, seed, scalar_config.initializer_range);
            }
        }
    }
    flat
}

fn output_layout(config: &ModelConfig) -> GroupLayout {
    Layout::new(config).groups.pop().expect("the output group is the last")
}

/// The first parameter in which two layouts differ.
fn difference(mine: &Layout, theirs: &Layout) -> String {
    let differing = mine.parameters().zip(theirs.parameters()).find(|(mine, theirs)| mine != theirs);
    match differing {
        Some((mine, theirs)) => {
            format!("{} {:?} against {} {:?}", mine.name, mine.shape, theirs.name, theirs.shape)
        }
        None => {
            format!("{} parameters against {}", mine.parameters().count(), theirs.parameters().count())
        }
    }
}
