//! Sums over the tokens of a policy loss, from which a step's metrics are made after ranks and micro-batches
//! are added up.

/// Sums over counted tokens. Add parts with [`merge`](Self::merge); between ranks, the two extremes are
/// reduced by minimum and maximum, everything else by addition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RatioSums {
    /// How many tokens count.
    pub tokens: f64,
    /// Sum of the ratio each token's loss used (the response's, for ratios of whole responses).
    pub ratio: f64,
    /// Smallest ratio; +∞ of nothing.
    pub ratio_min: f64,
    /// Largest ratio; −∞ of nothing.
    pub ratio_max: f64,
    /// Sum of `(ρ_t − 1) − log ρ_t` of the token ratios.
    pub approx_kl: f64,
    /// Tokens whose loss is the clipped branch.
    pub clipped: f64,
    /// Tokens whose loss is the dual clip's bound.
    pub dual_clipped: f64,
}

impl Default for RatioSums {
    fn default() -> Self {
        Self {
            tokens: 0.0,
            ratio: 0.0,
            ratio_min: f64::INFINITY,
            ratio_max: f64::NEG_INFINITY,
            approx_kl: 0.0,
            clipped: 0.0,
            dual_clipped: 0.0,
        }
    }
}

/// A policy step's metrics, per counted token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RatioMetrics {
    /// Mean ratio; exactly 1 on-policy.
    pub ratio_mean: f64,
    /// The smallest ratio of all parts.
    pub ratio_min: f64,
    /// The largest ratio of all parts.
    pub ratio_max: f64,
    /// Mean of `(ρ − 1) − log ρ`, the k3 estimate of KL(π_old‖π_θ) (Schulman 2020); exactly 0 on-policy.
    pub approx_kl: f64,
    /// Share of tokens whose loss is the clipped branch, which gives them no gradient (CISPO: a bounded one).
    pub clip_fraction: f64,
    /// Share of tokens whose loss is the dual clip's bound.
    pub dual_clip_fraction: f64,
}

impl RatioSums {
    /// Adds one token: the ratio its loss used and the log-ratio of the token itself.
    pub(crate) fn push(&mut self, ratio: f64, token_log_ratio: f64) {
        self.tokens += 1.0;
        self.ratio += ratio;
        self.ratio_min = self.ratio_min.min(ratio);
        self.ratio_max = self.ratio_max.max(ratio);
        let bounded = token_log_ratio.clamp(-crate::kl::MAX_LOG_RATIO, crate::kl::MAX_LOG_RATIO);
        self.approx_kl += bounded.exp_m1() - bounded;
    }

    /// Adds another part.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.ratio += other.ratio;
        self.ratio_min = self.ratio_min.min(other.ratio_min);
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.approx_kl += other.approx_kl;
        self.clipped += other.clipped;
        self.dual_clipped += other.dual_clipped;
    }

    /// The means; `None` if no token counted.
    pub fn metrics(&self) -> Option<RatioMetrics> {
        (self.tokens > 0.0).then(|| RatioMetrics {
            ratio_mean: self.ratio / self.tokens,
            ratio_min: self.ratio_min,
            ratio_max: self.ratio_max,
            approx_kl: self.approx_kl / self.tokens,
            clip_fraction: self.clipped / self.tokens,
            dual_clip_fraction: self.dual_clipped / self.tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_means_over_the_tokens_of_all_parts() {
        let part = RatioSums {
            tokens: 3.0,
            ratio: 3.5,
            ratio_min: 0.5,
            ratio_max: 2.0,
            approx_kl: 0.3,
            clipped: 1.0,
            dual_clipped: 1.0,
        };
        let mut sums = RatioSums { tokens: 1.0, ratio: 0.1, ratio_min: 0.1, ratio_max: 0.1, ..part };
        sums.merge(&part);
        let expected = RatioMetrics {
            ratio_mean: 0.9,
            ratio_min: 0.1,
            ratio_max: 2.0,
            approx_kl: 0.15,
            clip_fraction: 0.5,
            dual_clip_fraction: 0.5,
        };
        assert_eq!(sums.metrics(), Some(expected));
        assert_eq!(RatioSums::default().metrics(), None);
    }
}
