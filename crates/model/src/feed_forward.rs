//! What follows attention in a block: a gated layer, or a mixture of experts in its place.
//!
//! Of a mixture, as Qwen 3's (Yang et al., arXiv 2505.09388), a router gives each token a probability for
//! each expert, the token runs through the likeliest, and their outputs are summed by these probabilities.
//! Rows are brought into the order of their experts, each expert computes what lies together, and the inverse
//! order brings its outputs back. Both orders are permutations of copies, so that no gradient is a sum over
//! an index: the same numbers come out whichever device adds them. The host reads once a block how many rows
//! each expert has.

use tch::{Device, Kind, Tensor};

use crate::config::{Experts, ModelConfig};

/// What follows attention in a block.
#[derive(Debug)]
pub enum FeedForward {
    /// One gated layer for every token.
    Dense(GatedWeights),
    /// Several, of which each token runs through a few.
    Experts(ExpertWeights),
}

/// The weights of a gated feed-forward layer.
#[derive(Debug)]
pub struct GatedWeights {
    /// Gate and up projections, `[2 * intermediate, hidden]`.
    pub gate_up: Tensor,
    /// Down projection, `[hidden, intermediate]`.
    pub down: Tensor,
    /// Bias of `gate_up`.
    pub gate_up_bias: Option<Tensor>,
    /// Bias of `down`.
    pub down_bias: Option<Tensor>,
}

impl FeedForward {
    /// The one layer of a block that is no mixture of experts.
    ///
    /// # Panics
    /// When it is one.
    pub fn dense(&self) -> &GatedWeights {
        match self {
            Self::Dense(gated) => gated,
            Self::Experts(_) => panic!("a mixture of experts has no single feed-forward layer"),
        }
    }
}

/// The weights of a block's experts.
#[derive(Debug)]
pub struct ExpertWeights {
    /// `[experts, hidden]`.
    pub router: Tensor,
    /// Gate and up projections, `[experts, 2 * intermediate, hidden]`.
    pub gate_up: Tensor,
    /// Down projections, `[experts, hidden, intermediate]`.
    pub down: Tensor,
}

/// Which experts each row runs through.
#[derive(Debug)]
pub(crate) struct Routes {
    /// The likeliest first, `[rows, per_token]` i64.
    pub(crate) chosen: Tensor,
    /// What their outputs are multiplied by, `[rows, per_token]` in the rows' element type.
    pub(crate) shares: Tensor,
}

impl ExpertWeights {
    /// From normalised rows `x`, `[rows, hidden]`, to what is added to the residual stream, of the same
    /// shape.
    ///
    /// # Panics
    /// When the configuration has no experts, or others.
    pub(crate) fn apply(&self, config: &ModelConfig, x: &Tensor) -> Tensor {
        let experts = config.experts.expect("weights of experts belong to a configuration that has them");
        let Routes { chosen, shares } = self.route(&experts, x);
        let (rows, hidden) = (x.size()[0], x.size()[1]);
        let chosen = chosen.reshape([-1]);
        let order = chosen.argsort_stable(true, 0, false);
        let copies = x.unsqueeze(1).expand([rows, experts.per_token, hidden], false).reshape([-1, hidden]);
        let counts = counts(&chosen, experts.count);
        let inputs = copies.index_select(0, &order).split_with_sizes(counts.as_slice(), 0);
        // One split for all experts: the gradient in their weights is one concatenation.
        let weights = self.gate_up.unbind(0).into_iter().zip(self.down.unbind(0));
        let mut outputs = Vec::with_capacity(inputs.len());
        for (input, (gate_up, down)) in inputs.iter().zip(weights).filter(|(input, _)| input.size()[0] > 0) {
            let inner = gated(&input.linear(&gate_up, None::<&Tensor>));
            outputs.push(inner.linear(&down, None::<&Tensor>));
        }
        let outputs = if outputs.is_empty() { copies } else { Tensor::cat(&outputs, 0) };
        let outputs = outputs.index_select(0, &order.argsort(0, false));
        let outputs = outputs.view([rows, experts.per_token, hidden]);
        shares.unsqueeze(1).matmul(&outputs).squeeze_dim(1)
    }

    /// Probabilities over all experts, in f32 at least, of which the largest are taken.
    fn route(&self, experts: &Experts, x: &Tensor) -> Routes {
        let kind = if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let probabilities = x.linear(&self.router, None::<&Tensor>).softmax(-1, kind);
        let (shares, chosen) = probabilities.topk(experts.per_token, -1, true, true);
        let shares = match experts.normalized {
            true => &shares / shares.sum_dim_intlist([-1].as_slice(), true, kind),
            false => shares,
        };
        Routes { chosen, shares: shares.to_kind(x.kind()) }
    }
}

/// How many of `chosen`, `[n]` i64 below `experts`, name each expert.
fn counts(chosen: &Tensor, experts: i64) -> Vec<i64> {
    let counts = chosen.bincount(None::<&Tensor>, experts).to_device(Device::Cpu);
    Vec::try_from(counts).expect("counts are i64 in one dimension")
}

/// From gate and up projections, `[rows, 2 * intermediate]`, to `[rows, intermediate]`. One split, so that
/// its gradient is one concatenation.
pub(crate) fn gated(gate_up: &Tensor) -> Tensor {
    let parts = gate_up.split(gate_up.size()[1] / 2, 1);
    parts[0].silu() * &parts[1]
}
