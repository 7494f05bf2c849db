//! Wires the actor: the rollout loop with all that it talks to.

use anyhow::Context as _;
use service::{Context, OnError};
use tokio::sync::watch;

use crate::config::Config;
use crate::metrics;
use crate::rollout_loop::RolloutLoop;

/// Builds the actor; nothing runs yet. It listens for nothing but its metrics and, if the
/// configuration says so, clients of its policy: everything else it reaches out to.
///
/// # Errors
/// When the actor's name is none, or its engine's device is not there.
pub async fn build(config: Config, mut context: Context) -> anyhow::Result<Context> {
    service::describe_metrics(metrics::METRICS);
    config.engine.check_device().context("engine")?;
    let (served, policy) = watch::channel(None);
    if config.serve.enabled {
        context.pages = context.pages.merge(openai::pages(policy, config.serve.clone()));
    }
    let (spawner, readiness, token) =
        (context.tasks.spawner(), context.readiness.clone(), context.token.clone());
    let rollout_loop = RolloutLoop::new(config, spawner, readiness, token, served)?;
    context.tasks.add("rollout loop", OnError::Shutdown, rollout_loop.run());
    Ok(context)
}
