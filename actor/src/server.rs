//! Wires the actor: the rollout loop with all that it talks to.

use std::net::SocketAddr;

use anyhow::Context as _;
use openai::Agents;
use service::grpc::Listener;
use service::security::serve_pages;
use service::{Context, OnError};
use tokio::sync::watch;
use weights::{ModelFiles, Snapshots, WeightService};

use crate::config::Config;
use crate::metrics;
use crate::policy::{Outlets, SharedWeights};
use crate::rollout_loop::{Process, RolloutLoop};

/// Builds the actor; nothing runs yet. It listens for nothing but its metrics and, if the configuration says
/// so, clients of its policy on another port and actors that pull its weights: everything else it reaches out
/// to.
///
/// # Errors
/// When the actor's name is none, its engine's device is not there, or a port cannot be used.
pub async fn build(config: Config, mut context: Context) -> anyhow::Result<Context> {
    service::describe_metrics(metrics::METRICS);
    config.engine.check_device().context("engine")?;
    let (served, policy) = watch::channel(None);
    let agents = config.agents.enabled.then(|| Agents::new(config.agents.clone()));
    if config.serve.enabled {
        let (listener, address) = service::bind("serve.listen", config.serve.listen).await?;
        context.bound.push(("openai", address));
        // Pages of this machine alone are served without TLS.
        let is_tls = context.security.has_certificates() && !address.ip().to_canonical().is_loopback();
        let pages = match &agents {
            Some(agents) => openai::pages_with_agents(policy, config.serve.clone(), agents, is_tls),
            None => openai::pages(policy, config.serve.clone()),
        };
        let (stop, security) = (context.token.clone().cancelled_owned(), context.security.clone());
        context.tasks.add("openai", OnError::Shutdown, async move {
            serve_pages(&security, listener, pages, &["client"], stop).await.context("serve the policy")
        });
    }
    let shared = match config.listen_weights {
        Some(address) => Some(share_weights(address, &config, &mut context).await?),
        None => None,
    };
    let process = Process {
        spawner: context.tasks.spawner(),
        readiness: context.readiness.clone(),
        token: context.token.clone(),
        security: context.security.clone(),
        agents,
    };
    let outlets = Outlets { served, shared };
    let rollout_loop = RolloutLoop::new(config, process, outlets)?;
    context.tasks.add("rollout loop", OnError::Shutdown, rollout_loop.run());
    Ok(context)
}

/// Serves the weights that the actor will have to other actors, as long as the process lives.
async fn share_weights(
    address: SocketAddr,
    config: &Config,
    context: &mut Context,
) -> anyhow::Result<SharedWeights> {
    let listener = Listener::bind("listen_weights", address, &context.security).await?;
    context.bound.push(("weights", listener.address));
    let source = listener.reachable(config.advertise.as_ref());
    let (snapshots, files) = (Snapshots::of_actor(), ModelFiles::default());
    let router = WeightService::new(files.clone(), snapshots.clone()).router(&context.security);
    let token = context.token.clone();
    context.tasks.add("weight service", OnError::Shutdown, listener.serve(router, token));
    Ok(SharedWeights { source, snapshots, files })
}
