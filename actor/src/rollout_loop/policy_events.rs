//! What the loop makes of news about the policy's weights.

use engine::PolicyWeights;
use types::link::actor::ActorReport;
use types::{PolicyVersion, WeightHash};
use weights::GroupEvent;

use super::RolloutLoop;
use crate::policy::PolicyEvent;

impl RolloutLoop {
    pub(super) async fn policy_event(&mut self, event: PolicyEvent) -> anyhow::Result<()> {
        match event {
            PolicyEvent::Group(GroupEvent::Ready(group)) => {
                self.link.report(ActorReport::BroadcastGroupReady(group)).await;
            }
            PolicyEvent::Group(GroupEvent::Failed { group, error }) => {
                let detail = error.to_string();
                self.link.report(ActorReport::BroadcastGroupFailed { group, detail }).await;
            }
            PolicyEvent::Failed { version, detail } => {
                tracing::warn!(%version, detail, "weights did not arrive");
                self.link.report(ActorReport::WeightsFailed { version, detail }).await;
            }
            PolicyEvent::Arrived { manifest, weights } => {
                return self.take_up(manifest.version(), manifest.hash(), *weights).await;
            }
        }
        Ok(())
    }

    /// Puts weights into use, unless newer ones are: a learner that came back from an older checkpoint offers
    /// what it has before the coordinator knows what this actor got from the one before.
    async fn take_up(
        &mut self,
        version: PolicyVersion,
        hash: WeightHash,
        weights: PolicyWeights,
    ) -> anyhow::Result<()> {
        if let Some((held, _)) = self.weights
            && held > version
        {
            let detail = format!("this actor generates with {held}, and does not go back");
            tracing::info!(%version, detail, "weights not taken up");
            self.link.report(ActorReport::WeightsFailed { version, detail }).await;
            return Ok(());
        }
        self.updater.install(&mut self.policy, version, weights).await?;
        self.weights = Some((version, hash));
        self.readiness.set(true);
        self.link.report(ActorReport::WeightsConfirmed { version, hash }).await;
        Ok(())
    }
}
