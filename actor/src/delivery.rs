//! What is delivered to reward servers, by whom and after how long again.

use std::sync::Arc;
use std::time::Duration;

use service::Security;
use tokio::time::Instant;
use types::{MemberId, Rollout, RunId};

/// A finished rollout on its way.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) rollout: Arc<Rollout>,
    /// When its lease runs out: the reward server is told what is left.
    pub(crate) deadline: Instant,
}

/// Who delivers, for which run.
#[derive(Debug, Clone)]
pub(crate) struct DeliveryConfig {
    pub(crate) run: RunId,
    pub(crate) member: MemberId,
    /// After this long without an acknowledgement a rollout is sent to another server.
    pub(crate) acknowledge_timeout: Duration,
    /// After this long it is sent to a second server too.
    pub(crate) hedge_delay: Duration,
    /// What is shown to the servers.
    pub(crate) security: Security,
}
