//! What top-k, top-p and min-p do to log-probs, and how to undo it in a ratio.
//!
//! A sampler that cuts the distribution `p` down to a kept set `S` draws from `q(y) = p(y) / m` on `S`, where
//! `m = Σ_{y∈S} p(y)` is the surviving mass. If it reports `log q` and the learner computes `log p` over the
//! whole vocabulary, every ratio learner/sampler carries the factor `m`, although no weight differs: 0.9 at
//! top-p 0.9 (trl#6789; also vllm#42259). The sampler therefore has to hand over `log m` per token, and `log
//! q + log m` is `log p` of the drawn token again. What remains is the ratio of the two policies over the
//! whole vocabulary, where the sampler's `m` stands for the learner's; for an exact ratio of the two
//! *truncated* policies the learner would have to renormalise over the sampler's kept set (DeepSeek-V3.2's
//! "keep sampling mask", arXiv 2512.02556, section 3.1).

use serde::{Deserialize, Serialize};

use crate::error::{Error, require};
use crate::responses::Responses;

/// How a sampler cuts a distribution. The cuts are made in the order of the fields, each on what the one
/// before left, as in transformers' `generate`. The most probable token always survives. The default keeps
/// everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Truncation {
    /// Keep the `k` most probable tokens (and those tied with the last of them).
    pub top_k: Option<usize>,
    /// Keep the smallest set of most probable tokens whose renormalised mass is at least this.
    pub top_p: Option<f64>,
    /// Keep tokens at least this fraction as probable as the most probable one.
    pub min_p: Option<f64>,
}

impl Truncation {
    /// `log m`, at most 0: the logarithm of the mass that survives of the distribution with these log-probs
    /// over the vocabulary (after temperature). This is the definition; samplers compute it on the device.
    ///
    /// # Errors
    /// An empty or unnormalised distribution, or a parameter outside its range.
    pub fn log_mass(&self, logprobs: &[f32]) -> Result<f64, Error> {
        self.validate()?;
        let mut probabilities: Vec<f64> = logprobs.iter().map(|&logprob| f64::from(logprob).exp()).collect();
        let total: f64 = probabilities.iter().sum();
        require((total - 1.0).abs() < 1e-3, "sum of probabilities", total, "1 within 1e-3")?;
        probabilities.sort_unstable_by(|a, b| b.total_cmp(a));
        if let Some(top_k) = self.top_k.filter(|&top_k| top_k < probabilities.len()) {
            let last = probabilities[top_k - 1];
            probabilities.retain(|&probability| probability >= last);
        }
        if let Some(top_p) = self.top_p {
            let target = top_p * probabilities.iter().sum::<f64>();
            let mut before = 0.0;
            probabilities.retain(|&probability| {
                let kept = before < target;
                before += probability;
                kept
            });
        }
        if let Some(min_p) = self.min_p {
            let least = min_p * probabilities[0];
            probabilities.retain(|&probability| probability >= least);
        }
        Ok((probabilities.iter().sum::<f64>() / total).ln().min(0.0))
    }

    fn validate(&self) -> Result<(), Error> {
        if let Some(top_k) = self.top_k {
            require(top_k > 0, "top_k", top_k as f64, "1 or more")?;
        }
        if let Some(top_p) = self.top_p {
            require(top_p > 0.0 && top_p <= 1.0, "top_p", top_p, "above 0, at most 1")?;
        }
        match self.min_p {
            Some(min_p) => require((0.0..=1.0).contains(&min_p), "min_p", min_p, "from 0 to 1"),
            None => Ok(()),
        }
    }
}

/// Log-probs over the whole vocabulary from those of a truncated sampler: `log p = log q + log m`, all
/// `[tokens]`; 0 on tokens that do not count.
///
/// # Errors
/// A positive `log m`, a wrong length or a counted number that is not finite.
pub fn full_support_logprobs(
    responses: Responses<'_>,
    rollout_logprobs: &[f32],
    log_masses: &[f32],
) -> Result<Vec<f32>, Error> {
    responses.require_tokens("rollout_logprobs", rollout_logprobs)?;
    responses.require_tokens("log_masses", log_masses)?;
    let mut logprobs = vec![0.0; responses.tokens()];
    for token in responses.counted_tokens() {
        let log_mass = log_masses[token];
        require(log_mass <= 0.0, "log_mass", f64::from(log_mass), "0 or less: a mass is at most 1")?;
        logprobs[token] = rollout_logprobs[token] + log_mass;
    }
    Ok(logprobs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correction::Correction;

    const PROBABILITIES: [f32; 5] = [0.1, 0.4, 0.2, 0.05, 0.25];

    fn mass(truncation: Truncation) -> f64 {
        truncation.log_mass(&PROBABILITIES.map(f32::ln)).unwrap().exp()
    }

    fn with(top_k: Option<usize>, top_p: Option<f64>, min_p: Option<f64>) -> Truncation {
        Truncation { top_k, top_p, min_p }
    }

    #[test]
    fn surviving_mass_of_each_cut_and_of_their_chain() {
        for (truncation, expected) in [
            (Truncation::default(), 1.0),
            (with(Some(2), None, None), 0.65),
            (with(Some(9), None, None), 1.0),
            (with(None, Some(0.7), None), 0.85),
            (with(None, Some(1e-9), None), 0.4),
            (with(None, None, Some(0.45)), 0.85),
            (with(None, None, Some(0.51)), 0.65),
            // Of the 0.65 that top-k leaves, the first token is 0.615: enough for 0.6.
            (with(Some(2), Some(0.6), None), 0.4),
            (with(Some(3), Some(0.9), Some(0.6)), 0.65),
        ] {
            assert!((mass(truncation) - expected).abs() < 1e-6, "{truncation:?}: {}", mass(truncation));
        }
    }

    #[test]
    fn the_mass_is_a_share_of_what_there_is() {
        let log_mass = with(Some(1), None, None).log_mass(&[0.7_f32.ln(), 0.3008_f32.ln()]).unwrap();
        assert!((log_mass.exp() - 0.7 / 1.0008).abs() < 1e-6);
    }

    /// trl#6789: without the correction the ratio of identical weights is the surviving mass; with it, 1.
    #[test]
    fn trl_6789_identical_weights_have_ratio_one_under_truncated_sampling() {
        let responses = Responses::new(&[1]).unwrap();
        for truncation in
            [with(None, Some(0.7), None), with(Some(2), None, None), with(None, None, Some(0.5))]
        {
            let log_mass = truncation.log_mass(&PROBABILITIES.map(f32::ln)).unwrap() as f32;
            let learner = [0.4_f32.ln()];
            let sampler = [0.4_f32.ln() - log_mass];
            let biased = Correction::Token.weights(responses, &learner, &sampler).unwrap().weights[0];
            assert!((biased - log_mass.exp()).abs() < 1e-6);
            let corrected = full_support_logprobs(responses, &sampler, &[log_mass]).unwrap();
            let ratio = Correction::Token.weights(responses, &learner, &corrected).unwrap().weights[0];
            assert!((ratio - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn bad_input_is_an_error() {
        assert!(with(Some(0), None, None).log_mass(&[0.0]).is_err());
        assert!(with(None, Some(0.0), None).log_mass(&[0.0]).is_err());
        assert!(with(None, None, Some(1.5)).log_mass(&[0.0]).is_err());
        assert!(Truncation::default().log_mass(&[]).is_err());
        assert!(Truncation::default().log_mass(&[f32::NAN]).is_err());
        assert!(full_support_logprobs(Responses::new(&[1]).unwrap(), &[-1.0], &[0.1]).is_err());
    }
}
