//! The temperature at which the reference's log-probs are taken: one fact of the run, which its coordinator
//! tells (docs/decisions.md, D20).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use types::Sampling;

/// Two temperatures that differ by less are one that was written in f32 and in f64.
const TOLERANCE: f64 = 1e-6;

/// A temperature that many read, and that the coordinator's welcome may set.
#[derive(Debug, Clone)]
pub(crate) struct Temperature {
    configured: Option<f64>,
    /// The bits of the one in force.
    used: Arc<AtomicU64>,
}

impl Temperature {
    /// As it is configured; where it is not, 1 until the coordinator says.
    pub(crate) fn of(configured: Option<f64>) -> Self {
        let used = Arc::new(AtomicU64::new(above_zero(configured.unwrap_or(1.0)).to_bits()));
        Self { configured, used }
    }

    /// The one in force.
    pub(crate) fn get(&self) -> f64 {
        f64::from_bits(self.used.load(Ordering::Relaxed))
    }

    /// Takes over that of the run's draws.
    ///
    /// # Errors
    /// Where another one is configured: every KL to the reference would be wrong.
    pub(crate) fn of_run(&self, sampling: Option<&Sampling>) -> Result<(), String> {
        let drawn_at = sampling.map(Sampling::temperature);
        match (drawn_at, self.configured) {
            (Some(drawn_at), Some(configured))
                if (above_zero(f64::from(drawn_at)) - above_zero(configured)).abs() > TOLERANCE =>
            {
                Err(format!(
                    "the run draws at temperature {drawn_at}, but reference.temperature is {configured} here: leave it \
                     out, so that the KL is taken at the temperature of the draws"
                ))
            }
            (Some(drawn_at), None) => {
                self.used.store(above_zero(f64::from(drawn_at)).to_bits(), Ordering::Relaxed);
                Ok(())
            }
            (None, None) => {
                tracing::warn!(
                    "the coordinator does not say at which temperature the run draws, as older releases do not: the \
                     reference's log-probs are taken at 1; set reference.temperature where it is another"
                );
                Ok(())
            }
            (_, Some(_)) => Ok(()),
        }
    }
}

/// Greedy draws have no temperature to take log-probs at.
fn above_zero(temperature: f64) -> f64 {
    if temperature == 0.0 { 1.0 } else { temperature }
}
