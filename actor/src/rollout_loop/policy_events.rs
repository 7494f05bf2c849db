//! What the loop makes of news about the policy's weights.

use service::BadInput;
use types::link::actor::ActorReport;
use types::{PolicyVersion, WeightHash};
use weights::GroupEvent;

use super::RolloutLoop;
use crate::policy::PolicyEvent;
use crate::preparation::Prepared;

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
                if let Some(refusal) = self.remote.as_ref().and_then(|remote| remote.refusal()) {
                    return Err(BadInput(refusal).into());
                }
            }
            PolicyEvent::Arrived { manifest, weights } => {
                return self.take_up(manifest.version(), manifest.hash(), weights).await;
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
        weights: Prepared,
    ) -> anyhow::Result<()> {
        if self.refuses(version).await {
            return Ok(());
        }
        self.updater.install(&mut self.policy, version, weights).await?;
        self.uses(version, hash).await;
        Ok(())
    }

    /// Whether the weights in use have this content.
    pub(super) fn holds(&self, hash: WeightHash) -> bool {
        self.policy.is_some() && self.weights.is_some_and(|(_, held)| held == hash)
    }

    /// Gives the weights in use the number of a version that has the same content: nothing is transferred,
    /// and what is on its way is not wanted any more.
    pub(super) async fn renumber(&mut self, version: PolicyVersion, hash: WeightHash) -> anyhow::Result<()> {
        self.updater.give_up_pull();
        if self.refuses(version).await {
            return Ok(());
        }
        if let Some(policy) = &self.policy {
            policy.engine.renumber(version).await?;
        }
        tracing::info!(%version, "the weights in use are this version's");
        self.uses(version, hash).await;
        Ok(())
    }

    /// Whether a version is older than the one in use, which is said.
    async fn refuses(&mut self, version: PolicyVersion) -> bool {
        let Some((held, _)) = self.weights.filter(|(held, _)| *held > version) else { return false };
        let detail = format!("this actor generates with {held}, and does not go back");
        tracing::info!(%version, detail, "weights not taken up");
        self.link.report(ActorReport::WeightsFailed { version, detail }).await;
        true
    }

    /// Weights are in use from now on.
    async fn uses(&mut self, version: PolicyVersion, hash: WeightHash) {
        self.weights = Some((version, hash));
        self.readiness.set(true);
        self.link.report(ActorReport::WeightsConfirmed { version, hash }).await;
    }
}
