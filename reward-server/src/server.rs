//! Wires the reward server: scorers, registry of rollouts, coordinator's stream, actors' service, endpoint.

use std::sync::Arc;

use anyhow::Context as _;
use service::grpc::Listener;
use service::security::serve_pages;
use service::{BadInput, CancellationToken, Context, OnError};

use crate::config::Config;
use crate::coordinator_client::Membership;
use crate::environment::Environment;
use crate::fields_client::PromptFields;
use crate::grpc::{Grpc, GrpcWork};
use crate::inflight::Bounds;
use crate::registry::RolloutRegistry;
use crate::scorer_set::ScorerSet;
use crate::{endpoint, metrics, scoring};

/// Builds the reward server; nothing but its workers runs yet.
///
/// # Errors
/// When the device is not there, a port is taken, a model or file cannot be used, or the sandbox cannot be
/// started.
pub async fn build(config: Config, mut context: Context) -> anyhow::Result<Context> {
    service::describe_metrics(metrics::METRICS);
    // Not among the configuration's problems: they are the same on every machine.
    if let Some(problem) = config.models.device.problem(1) {
        return Err(BadInput(format!("models.{problem}")).into());
    }
    let listener = match config.coordinator {
        Some(_) => Some(Listener::bind("listen", config.listen, &context.security).await?),
        None => None,
    };
    let rewards_listener = match config.endpoint.enabled {
        true => Some(service::bind("endpoint.listen", config.endpoint.listen).await?),
        false => None,
    };
    // Cancelled when the server has left the run: everything ends then, and not when it is asked to leave.
    let done = CancellationToken::new();
    let scorers = Arc::new(ScorerSet::start(&config, &mut context.tasks, &done).await?);
    let environment = Environment::start(&config, context.token.clone()).await?;
    if let Some((listener, address)) = rewards_listener {
        context.bound.push(("rewards", address));
        let pages = endpoint::pages(Arc::clone(&scorers), &config.endpoint);
        let (stop, security) = (context.token.clone().cancelled_owned(), context.security.clone());
        context.tasks.add("rewards", OnError::Shutdown, async move {
            serve_pages(&security, listener, pages, &["client"], stop).await.context("serve /get_reward")
        });
    }
    match listener {
        Some(listener) => join_run(&config, listener, Parts { scorers, environment }, done, &mut context)?,
        None => {
            context.readiness.set(true);
            let token = context.token.clone();
            context.tasks.add("endpoint", OnError::Shutdown, async move {
                token.cancelled().await;
                done.cancel();
                Ok(())
            });
        }
    }
    Ok(context)
}

/// What a member of a run does for it.
struct Parts {
    scorers: Arc<ScorerSet>,
    environment: Option<Environment>,
}

/// Adds the tasks of a member of a run.
fn join_run(
    config: &Config,
    listener: Listener,
    parts: Parts,
    done: CancellationToken,
    context: &mut Context,
) -> anyhow::Result<()> {
    let Parts { scorers, environment } = parts;
    let bounds = Bounds { rollouts: config.queue.max_rollouts, bytes: config.queue.max_bytes };
    let (registry, arrivals) = RolloutRegistry::new(bounds, Arc::clone(&scorers), context.token.clone());
    context.bound.push(("grpc", listener.address));
    let membership = Membership {
        member: config.member_id().map_err(|error| BadInput(error.to_string()))?,
        coordinator: config.coordinator.clone().context("a member of a run has a coordinator")?,
        connect_timeout: config.connect_timeout,
        address: listener.reachable(config.advertise.as_ref()),
        vocabulary: scorers.vocabulary().clone(),
        registry: registry.clone(),
        scorers: Arc::clone(&scorers),
        readiness: context.readiness.clone(),
        security: context.security.clone(),
        token: context.token.clone(),
        done: done.clone(),
    };
    let fields = Arc::new(PromptFields::new(membership.coordinator.clone(), context.security.clone()));
    let work = GrpcWork { registry: registry.clone(), environment, fields: Arc::clone(&fields) };
    let grpc = Grpc::new(work, context.tasks.spawner(), config.queue.clone(), done.clone());
    let router = grpc.router(&context.security);
    let scoring = scoring::run(scorers, fields, registry, arrivals, done.clone());
    context.tasks.add("scoring", OnError::Shutdown, scoring);
    context.tasks.add("coordinator", OnError::Shutdown, membership.run());
    context.tasks.add("grpc", OnError::Shutdown, async move {
        // The server outlives the request to stop, because actors wait for their answers; it ends with the
        // membership, and does not wait for actors that are slow to close.
        listener.serve(router, done).await
    });
    Ok(())
}
