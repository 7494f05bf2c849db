//! Wires a rank of the learner: on rank 0 trainer, publisher, weight service and loop; on the others the trainer alone.

use std::net::SocketAddr;

use anyhow::Context as _;
use collective::Store;
use service::grpc::Listener;
use service::{CancellationToken, Context, OnError, Readiness};
use tokio::sync::mpsc;

use super::config::Config;
use super::grpc::WeightService;
use super::publisher::{PublishEvent, Publisher, PublisherConfig};
use super::rank::{self, Outcome, RankHandle, Ready};
use super::ring_loop::{Addresses, Parts, RingLoop};
use super::snapshots::Snapshots;
use crate::metrics;

/// Outcomes and events that may wait for the loop.
const QUEUE: usize = 16;

/// Builds a rank of the learner; nothing runs yet.
///
/// # Errors
/// When a port cannot be used.
pub async fn build(config: Config, mut context: Context) -> anyhow::Result<Context> {
    metrics::describe();
    if config.rank > 0 {
        context.tasks.add("rank", OnError::Shutdown, follow(config, context.readiness.clone()));
        return Ok(context);
    }
    let listener = Listener::bind("listen", config.listen).await?;
    context.bound.push(("grpc", listener.address));
    let host = if config.advertise.is_empty() {
        listener.address.ip().to_string()
    } else {
        config.advertise.clone()
    };
    let broadcast_store =
        serve_store(&host, 0, &config).await.context("host the store for broadcast groups")?;
    let rank_store = if config.world_size > 1 {
        let (host, port) = config.rendezvous.rsplit_once(':').context("rendezvous must be host:port")?;
        let store = serve_store(host, port.parse()?, &config).await.context("host the ranks' rendezvous")?;
        context.bound.push(("rendezvous", address(host, store.port())?));
        Some(store)
    } else {
        None
    };
    let addresses = Addresses {
        store: format!("{host}:{}", broadcast_store.port()),
        weights: format!("{host}:{}", listener.address.port()),
    };
    let (token, readiness) = (context.token.clone(), context.readiness.clone());
    let lead = async move {
        let life = Life { config, addresses, listener, token, readiness, _broadcast_store: broadcast_store };
        life.run(rank_store).await
    };
    context.tasks.add("ring", OnError::Shutdown, lead);
    Ok(context)
}

async fn serve_store(host: &str, port: u16, config: &Config) -> anyhow::Result<Store> {
    let (host, time_limit) = (host.to_owned(), config.join_time_limit);
    let store = tokio::task::spawn_blocking(move || Store::serve(&host, port, time_limit));
    Ok(store.await??)
}

fn address(host: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let parsed = format!("{host}:{port}").parse();
    // A name instead of a number: the port is what matters to who reads the address file.
    parsed.or_else(|_| format!("127.0.0.1:{port}").parse()).context("an address")
}

/// Rank 0 from its first breath.
struct Life {
    config: Config,
    addresses: Addresses,
    listener: Listener,
    token: CancellationToken,
    readiness: Readiness,
    /// Groups meet here as long as this process lives.
    _broadcast_store: Store,
}

impl Life {
    async fn run(self, rank_store: Option<Store>) -> anyhow::Result<()> {
        let (outcome_sender, mut outcomes) = mpsc::channel(QUEUE);
        let rank = RankHandle::start(self.config.clone(), rank_store, outcome_sender)?;
        let ready = tokio::select! {
            outcome = outcomes.recv() => match outcome.context("the trainer is gone")? {
                Outcome::Ready(ready) => ready,
                Outcome::Failed(error) => return Err(error),
                other => anyhow::bail!("the trainer began with {other:?}"),
            },
            () = self.token.cancelled() => return Ok(()),
        };
        let Ready { run, trained, steps, parameters, kind, buffer, folder } = ready;
        tracing::info!(trained = trained.0, run = ?run, ranks = self.config.world_size, "learner ready");
        let snapshots = Snapshots::default();
        let (event_sender, mut events) = mpsc::channel::<PublishEvent>(QUEUE);
        let publisher = PublisherConfig {
            parameters,
            dtype: dtype(kind)?,
            device: self.config.device.to_torch(),
            time_limit: self.config.broadcast_time_limit,
            store: self.addresses.store.clone(),
        };
        let publisher = Publisher::start(publisher, snapshots.clone(), event_sender)?;
        publisher.snapshot(types::PolicyVersion(trained.0), buffer);
        let manifest = match events.recv().await.context("the publisher is gone")? {
            PublishEvent::Ready(manifest) => manifest,
            other => anyhow::bail!("the publisher began with {other:?}"),
        };
        let service = WeightService::new(&folder, snapshots)?;
        let parts = Parts {
            config: self.config,
            addresses: self.addresses,
            rank,
            publisher,
            outcomes,
            events,
            readiness: self.readiness,
            token: self.token.clone(),
            run,
            trained,
            steps,
            manifest,
        };
        let ring_loop = RingLoop::new(parts)?;
        // Weights are served until the loop has left, which on a cancelled token is after a checkpoint.
        let serving = service.router().serve_with_incoming(self.listener.incoming());
        tokio::select! {
            ended = ring_loop.run() => ended,
            served = serving => served.context("serve weights"),
        }
    }
}

/// The life of any other rank, on a thread of its own.
async fn follow(config: Config, readiness: Readiness) -> anyhow::Result<()> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let name = format!("rank {}", config.rank);
    let work = move || {
        // Nobody waiting means that the process is ending.
        let _ = done.send(rank::follow(&config, || readiness.set(true)));
    };
    std::thread::Builder::new().name(name).spawn(work).context("start the rank's thread")?;
    ended.await.context("the rank's thread panicked")?
}

fn dtype(kind: tch::Kind) -> anyhow::Result<types::DType> {
    Ok(match kind {
        tch::Kind::Float => types::DType::F32,
        tch::Kind::BFloat16 => types::DType::Bf16,
        tch::Kind::Half => types::DType::F16,
        other => anyhow::bail!("weights of element type {other:?} cannot be published"),
    })
}
