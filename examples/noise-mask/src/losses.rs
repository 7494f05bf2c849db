//! The score-function gradients of the mask policy, one function a formula.

use tch::{Kind, Tensor};

/// The paper's loss, one number for both networks: mean_i( ln Σ_j p(m_ij) ) · mean_i( CE_i ), as the authors'
/// code has it (ogrenenmakine/Policy-Gradient-Driven-Noise-Mask, `train_one_epoch.py`).
///
/// It is no REINFORCE: the log of a sum of densities and not the sum of their logs, no baseline, and the
/// batch's mean loss for every mask of the batch. The classifier's gradient is multiplied by the first
/// factor.
///
/// `log_densities` is `[images, cells]`, `cross_entropies` `[images]`.
pub fn paper_loss(log_densities: &Tensor, cross_entropies: &Tensor) -> Tensor {
    log_density_factor(log_densities) * cross_entropies.mean(Kind::Double)
}

/// mean_i( ln Σ_j p(m_ij) ): what the paper's loss multiplies the cross-entropy by. For uniform masks it is
/// ln(cells).
pub fn log_density_factor(log_densities: &Tensor) -> Tensor {
    log_densities.logsumexp([1i64].as_slice(), false).mean(Kind::Double)
}

/// REINFORCE (Williams 1992): mean_i( (CE_i − b_i) · Σ_j ln p(m_ij) ), whose gradient is an unbiased estimate
/// of that of the expected loss. The baseline b_i is the mean loss of the batch's other images (Kool et al.
/// 2019).
///
/// `log_densities` is `[images, cells]`, `cross_entropies` `[images]`, of two images or more.
pub fn reinforce_loss(log_densities: &Tensor, cross_entropies: &Tensor) -> Tensor {
    let costs = cross_entropies.detach().to_kind(Kind::Double);
    let count = costs.size()[0] as f64;
    let advantages = (&costs - costs.mean(Kind::Double)) * (count / (count - 1.0));
    (advantages * log_densities.sum_dim_intlist([1i64].as_slice(), false, Kind::Double)).mean(Kind::Double)
}
