//! How busy the actor is, as the coordinator and the metrics are told.

use tokio::time::Instant;
use types::link::actor::{ActorLoad, ActorReport};

use super::RolloutLoop;
use crate::environments::Environments;
use crate::metrics;

/// How many episodes are taken for each place of the engine: those whose tools are at work hold none.
const EPISODES_PER_PLACE: usize = 4;

impl RolloutLoop {
    pub(super) fn load(&self) -> ActorLoad {
        let running = self.work.running();
        // A few responses wait in the engine, so that a finished one is followed at once.
        let places = self.config.engine.max_sequences() + self.config.engine.max_sequences() / 4;
        let full = self.unacknowledged.len() >= self.config.max_unacknowledged;
        let lost = self.policy.as_ref().is_none_or(|policy| policy.engine.is_lost());
        let closed = lost || self.drain_deadline.is_some() || full;
        let asked = running + self.work.waiting();
        // An episode whose environment is at work takes no place of the engine.
        let acting = self.environments.as_ref().map_or(0, Environments::waiting);
        let most = if acting > 0 { EPISODES_PER_PLACE * places } else { places };
        let room = places.saturating_sub(asked.saturating_sub(acting)).min(most.saturating_sub(asked));
        // Of agents as many as wait are given episodes, and what their calls draw is the engine's queue.
        let waiting = self.work.waiting();
        let room = self.agents.as_ref().map_or(room, |agents| agents.room().saturating_sub(waiting));
        let free = if closed { 0 } else { room };
        ActorLoad {
            free_slots: saturated(free),
            last_lease: self.work.last_lease(),
            running: saturated(running),
            unacknowledged: saturated(self.unacknowledged.len()),
            generated_tokens: self.generated_tokens,
            pulled_bytes: self.updater.pulled_bytes(),
        }
    }

    pub(super) async fn report_load(&mut self) {
        let load = self.load();
        metrics::load(load.running, load.free_slots);
        if let Some(totals) = self.policy.as_ref().and_then(|policy| policy.engine.totals_so_far()) {
            metrics::engine(&totals);
        }
        if let Some(agents) = &self.agents {
            metrics::agents(agents.counts());
        }
        metrics::episodes_waiting(self.environments.as_ref().map_or(0, Environments::waiting));
        (self.reported_load, self.reported_at) = (load, Instant::now());
        self.link.report(ActorReport::Load(load)).await;
    }
}

/// A count as it is reported.
fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
