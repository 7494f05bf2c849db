//! Wires the actor: the rollout loop with all that it talks to.

use service::{Context, OnError};

use crate::config::Config;
use crate::metrics;
use crate::rollout_loop::RolloutLoop;

/// Builds the actor; nothing runs yet. It listens on nothing but its metrics: everything else it reaches out to.
///
/// # Errors
/// When the actor's name is none.
pub async fn build(config: Config, mut context: Context) -> anyhow::Result<Context> {
    metrics::describe();
    let rollout_loop =
        RolloutLoop::new(config, context.tasks.spawner(), context.readiness.clone(), context.token.clone())?;
    context.tasks.add("rollout loop", OnError::Shutdown, rollout_loop.run());
    Ok(context)
}
