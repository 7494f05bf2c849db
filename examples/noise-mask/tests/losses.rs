//! What the two losses are, and where their gradients lead.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use noise_mask::beta::Beta;
use noise_mask::losses::{log_density_factor, paper_loss, reinforce_loss};
use tch::{Device, Kind, Tensor};

/// Masks, log-densities with a gradient, and the parameters ln α and ln β that all cells share.
struct Draws {
    parameters: [Tensor; 2],
    masks: Tensor,
    log_densities: Tensor,
}

fn draw(images: i64, cells: i64, [alpha, beta]: [f64; 2]) -> Draws {
    tch::manual_seed(3);
    let parameters = [alpha, beta].map(|value| Tensor::from(value.ln()).set_requires_grad(true));
    let [log_alpha, log_beta] = &parameters;
    let distributions =
        Beta::new(&log_alpha.expand([images, cells], false), &log_beta.expand([images, cells], false));
    let masks = distributions.sample();
    let log_densities = distributions.log_density(&masks);
    Draws { parameters, masks, log_densities }
}

impl Draws {
    /// The gradient of a loss with respect to ln α and ln β.
    fn gradient(&self, loss: &Tensor) -> [f64; 2] {
        loss.backward();
        [0, 1].map(|parameter| self.parameters[parameter].grad().double_value(&[]))
    }
}

#[test]
fn the_papers_loss_is_a_mean_of_log_sums_times_a_mean() {
    let log_densities = Tensor::from_slice2(&[[0.0, 0.0], [3f64.ln(), 0.0]]);
    let cross_entropies = Tensor::from_slice(&[1.0, 3.0]).set_requires_grad(true);
    let loss = paper_loss(&log_densities, &cross_entropies);
    let factor = (2f64.ln() + 4f64.ln()) / 2.0;
    assert!((log_density_factor(&log_densities).double_value(&[]) - factor).abs() < 1e-12);
    assert!((loss.double_value(&[]) - factor * 2.0).abs() < 1e-12);
    // The classifier's gradient is multiplied by the first factor.
    loss.backward();
    assert!((cross_entropies.grad().double_value(&[0]) - factor / 2.0).abs() < 1e-12);
}

#[test]
fn reinforce_weighs_log_densities_by_the_cost_above_the_others() {
    let log_densities = Tensor::from_slice2(&[[0.5, 1.0], [0.0, 2.0], [1.0, 1.0]]).set_requires_grad(true);
    let cross_entropies = Tensor::from_slice(&[1.0, 3.0, 8.0]).set_requires_grad(true);
    let loss = reinforce_loss(&log_densities, &cross_entropies);
    // 1 − (3 + 8) / 2, 3 − (1 + 8) / 2, 8 − (1 + 3) / 2.
    let advantages = [-4.5, -1.5, 6.0];
    assert!((loss.double_value(&[]) - (-4.5 * 1.5 - 1.5 * 2.0 + 6.0 * 2.0) / 3.0).abs() < 1e-12);
    loss.backward();
    for (image, advantage) in advantages.into_iter().enumerate() {
        let slope = log_densities.grad().double_value(&[image as i64, 1]);
        assert!((slope - advantage / 3.0).abs() < 1e-12, "{slope}");
    }
    assert!(!cross_entropies.grad().defined(), "the classifier learns from the cross-entropy alone");
}

#[test]
fn reinforce_estimates_the_gradient_of_the_expected_cost() {
    // The cost is the mask: its mean is α / (α + β), whose derivatives are ± αβ / (α + β)².
    for [alpha, beta] in [[1.7, 1.3], [0.4, 2.0], [6.0, 6.0]] {
        let draws = draw(400_000, 1, [alpha, beta]);
        let [by_alpha, by_beta] =
            draws.gradient(&reinforce_loss(&draws.log_densities, &draws.masks.squeeze_dim(1)));
        let exact = alpha * beta / f64::powi(alpha + beta, 2);
        let off = [by_alpha - exact, by_beta + exact];
        assert!(
            off.iter().all(|off| off.abs() < 0.01),
            "Beta({alpha}, {beta}): {by_alpha}, {by_beta}, {exact}"
        );
    }
}

#[test]
fn a_cost_that_never_changes_teaches_nothing_by_reinforce_and_flattens_by_the_papers_loss() {
    let images = 5_000;
    let cost = Tensor::full([images], 2.0, (Kind::Double, Device::Cpu));
    // Down the gradient the parameters go towards 1 from either side, where every mask is as likely as any
    // other.
    for (parameters, sign) in [([4.0, 4.0], 1.0), ([0.5, 0.5], -1.0)] {
        let draws_of = || draw(images, 64, parameters);
        let draws = draws_of();
        let gradient = draws.gradient(&reinforce_loss(&draws.log_densities, &cost));
        assert_eq!(gradient, [0.0, 0.0]);
        let draws = draws_of();
        let gradient = draws.gradient(&paper_loss(&draws.log_densities, &cost));
        assert!(gradient.iter().all(|slope| slope * sign > 0.05), "{parameters:?}: {gradient:?}");
    }
    let uniform = draw(images, 64, [1.0, 1.0]);
    let gradient = uniform.gradient(&paper_loss(&uniform.log_densities, &cost));
    assert!(gradient.iter().all(|slope| slope.abs() < 0.02), "{gradient:?}");
}
