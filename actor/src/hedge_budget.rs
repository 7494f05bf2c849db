//! How often a rollout may be sent to a second reward server.

/// Hedges that may be sent: one for ten acknowledged rollouts, and a few to begin with. So servers that are
/// all slow are not given twice the work.
#[derive(Debug)]
pub(crate) struct HedgeBudget {
    /// Acknowledged rollouts not yet spent.
    acknowledged: u32,
}

impl HedgeBudget {
    const PRICE_COUNT: u32 = 10;
    const LIMIT_COUNT: u32 = 10 * Self::PRICE_COUNT;

    pub(crate) fn full() -> Self {
        Self { acknowledged: Self::LIMIT_COUNT }
    }

    pub(crate) fn earn(&mut self) {
        self.acknowledged = (self.acknowledged + 1).min(Self::LIMIT_COUNT);
    }

    pub(crate) fn allows(&self) -> bool {
        self.acknowledged >= Self::PRICE_COUNT
    }

    pub(crate) fn spend(&mut self) {
        self.acknowledged = self.acknowledged.saturating_sub(Self::PRICE_COUNT);
    }
}
