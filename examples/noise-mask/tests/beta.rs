//! Densities, gradients and draws of the Beta distribution against SciPy, and at the borders.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use noise_mask::beta::{Beta, EDGE, LOG_BOUND};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// A line of golden.json, which golden.py makes.
#[derive(Debug, Deserialize)]
struct Golden {
    alpha: f64,
    beta: f64,
    mask: f64,
    log_density: f64,
    gradient: [f64; 2],
    entropy: f64,
    mean: f64,
}

fn parameter(value: f64) -> Tensor {
    Tensor::from_slice(&[value]).set_requires_grad(true)
}

/// The log-density of one mask, and its gradient with respect to ln α and ln β.
fn log_density(log_alpha: f64, log_beta: f64, mask: f64) -> (f64, [f64; 2]) {
    let (alpha, beta) = (parameter(log_alpha), parameter(log_beta));
    let density = Beta::new(&alpha, &beta).log_density(&Tensor::from_slice(&[mask]));
    density.backward();
    (density.double_value(&[0]), [alpha, beta].map(|parameter| parameter.grad().double_value(&[0])))
}

fn assert_close(what: &str, found: f64, expected: f64) {
    let tolerance = 1e-8 * expected.abs().max(1.0);
    assert!((found - expected).abs() < tolerance, "{what}: {found} and not {expected}");
}

#[test]
fn densities_gradients_means_and_entropies_are_scipys() {
    let golden: Vec<Golden> = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert_eq!(golden.len(), 150);
    for row in golden {
        let (density, gradient) = log_density(row.alpha.ln(), row.beta.ln(), row.mask);
        assert_close(&format!("log-density of {row:?}"), density, row.log_density);
        assert_close(&format!("gradient by ln α of {row:?}"), gradient[0], row.gradient[0]);
        assert_close(&format!("gradient by ln β of {row:?}"), gradient[1], row.gradient[1]);
        let one = Beta::new(&parameter(row.alpha.ln()), &parameter(row.beta.ln()));
        assert_close(&format!("mean of {row:?}"), one.mean().double_value(&[0]), row.mean);
        assert_close(&format!("entropy of {row:?}"), one.entropy().double_value(&[0]), row.entropy);
    }
}

#[test]
fn nothing_blows_up_at_the_borders() {
    // e^4 times −ln EDGE, and little more: ψ(α + β) − ψ(α) is small for large α, and α for small α.
    let (most_density, most_slope) = (500.0, 510.0);
    for log_alpha in [-1e6, -LOG_BOUND, -1.0, 0.0, 1.0, LOG_BOUND, 1e6] {
        for log_beta in [-1e6, -LOG_BOUND, 0.5, LOG_BOUND, 1e6] {
            for mask in [0.0, f64::MIN_POSITIVE, 1e-40, EDGE, 0.5, 1.0 - EDGE, 1.0 - 1e-16, 1.0] {
                let (density, gradient) = log_density(log_alpha, log_beta, mask);
                let what = format!("a {log_alpha}, b {log_beta}, mask {mask}: {density}, {gradient:?}");
                assert!(density.is_finite() && density.abs() < most_density, "{what}");
                assert!(gradient.iter().all(|slope| slope.is_finite() && slope.abs() < most_slope), "{what}");
            }
        }
    }
    // A mask at the border and one at the edge are the same to the density; without the edge the first is
    // infinite.
    assert_eq!(log_density(-1.0, 0.0, 0.0), log_density(-1.0, 0.0, EDGE));
    // Beyond the bounds the parameters have no gradient, and within them they do.
    assert_eq!(log_density(LOG_BOUND + 0.1, -LOG_BOUND - 0.1, 0.3).1, [0.0, 0.0]);
    assert!(log_density(LOG_BOUND - 0.1, -LOG_BOUND + 0.1, 0.3).1.iter().all(|slope| *slope != 0.0));
}

#[test]
fn draws_have_the_distributions_moments_and_repeat_with_the_seed() {
    const DRAWS: i64 = 200_000;
    for (alpha, beta) in [(0.3, 0.5), (1.0, 1.0), (1.7, 2.2), (50.0, 3.0), (0.02, 0.02)] {
        let full = |value: f64| Tensor::full([DRAWS], f64::ln(value), (Kind::Double, Device::Cpu));
        let distributions = Beta::new(&full(alpha), &full(beta));
        tch::manual_seed(7);
        let draws = distributions.sample();
        tch::manual_seed(7);
        assert_eq!(draws, distributions.sample());
        assert!(draws.min().double_value(&[]) >= EDGE && draws.max().double_value(&[]) <= 1.0 - EDGE);

        let (mean, both) = (alpha / (alpha + beta), alpha + beta);
        let variance = mean * (1.0 - mean) / (both + 1.0);
        let standard_error = (variance / DRAWS as f64).sqrt();
        let found = draws.mean(Kind::Double).double_value(&[]);
        assert!((found - mean).abs() < 4.0 * standard_error + EDGE, "Beta({alpha}, {beta}): mean {found}");
        let found = draws.var(true).double_value(&[]);
        assert!((found / variance - 1.0).abs() < 0.02, "Beta({alpha}, {beta}): variance {found}");
    }
}
