//! Beta distributions with bounded parameters, and densities that stay finite at 0 and 1.
//!
//! The density of Beta(α, β) is infinite at 0 where α < 1 and at 1 where β < 1, and there a draw is often
//! exactly 0 or 1 in floating-point numbers. Two bounds keep log-densities and their gradients finite: α and
//! β lie within e^±[`LOG_BOUND`], and masks within [`EDGE`] of 0 and 1 are moved to that distance, so that
//! neither ln m nor ln(1 − m) is below ln [`EDGE`].

use tch::{Kind, Tensor};

/// Bound of |ln α| and of |ln β|.
pub const LOG_BOUND: f64 = 4.0;
/// The least distance of a mask from 0 and from 1.
pub const EDGE: f64 = 1e-4;

/// Independent Beta distributions. Beyond the bounds the parameters have no gradient.
#[derive(Debug)]
pub struct Beta {
    log_alpha: Tensor,
    log_beta: Tensor,
}

impl Beta {
    /// Beta(e^a, e^b) for each element of two tensors of one shape, in f64.
    pub fn new(log_alpha: &Tensor, log_beta: &Tensor) -> Self {
        Self { log_alpha: bounded(log_alpha), log_beta: bounded(log_beta) }
    }

    /// A draw from each; no gradient goes through it. Two Gamma draws and their ratio, as torch.distributions
    /// does.
    pub fn sample(&self) -> Tensor {
        let _guard = tch::no_grad_guard();
        let concentrations = Tensor::stack(&[self.log_alpha.exp(), self.log_beta.exp()], -1);
        concentrations.internal_sample_dirichlet().select(-1, 0).clamp(EDGE, 1.0 - EDGE)
    }

    /// ln p(m) = (α − 1) ln m + (β − 1) ln(1 − m) − ln B(α, β), element by element.
    pub fn log_density(&self, masks: &Tensor) -> Tensor {
        let masks = masks.to_kind(Kind::Double).clamp(EDGE, 1.0 - EDGE);
        let (alpha, beta) = (self.log_alpha.exp(), self.log_beta.exp());
        let log_normaliser = alpha.lgamma() + beta.lgamma() - (&alpha + &beta).lgamma();
        (alpha - 1.0) * masks.log() + (beta - 1.0) * (-masks).log1p() - log_normaliser
    }

    /// α / (α + β).
    pub fn mean(&self) -> Tensor {
        (&self.log_alpha - &self.log_beta).sigmoid()
    }

    /// Differential entropy in nats: 0 for the uniform distribution, less for every other.
    pub fn entropy(&self) -> Tensor {
        let (alpha, beta) = (self.log_alpha.exp(), self.log_beta.exp());
        let both = &alpha + &beta;
        let log_normaliser = alpha.lgamma() + beta.lgamma() - both.lgamma();
        log_normaliser - (&alpha - 1.0) * alpha.digamma() - (&beta - 1.0) * beta.digamma()
            + (&both - 2.0) * both.digamma()
    }
}

fn bounded(log_parameter: &Tensor) -> Tensor {
    log_parameter.to_kind(Kind::Double).clamp(-LOG_BOUND, LOG_BOUND)
}
