//! Wires a rank of the learner: on rank 0 trainer, publisher, weight service and loop; on the others the
//! trainer alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use collective::Store;
use model::Tokenizer;
use service::grpc::Listener;
use service::{BadInput, Context, OnError, Pulse, Readiness};
use types::{HostPort, Manifest, PolicyVersion, Vocabulary};
use weights::{Member, ModelFiles, PublishEvent, Publisher, PublisherConfig, Snapshots, WeightService};

use super::config::Config;
use super::final_error::final_or_not;
use super::rank::{self, RankEvent, RankHandle, Ready};
use super::ring_loop::{Addresses, Offered, RingContext, RingLoop};
use crate::metrics;

/// How long a process that is over waits for its trainer to end what it computes.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Builds a rank of the learner; nothing runs yet.
///
/// # Errors
/// When a port cannot be used.
pub async fn build(config: Config, mut context: Context) -> anyhow::Result<Context> {
    service::describe_metrics(metrics::METRICS);
    if config.rank > 0 {
        let rank = follow(config, context.pulse.clone(), context.readiness.clone());
        context.tasks.add("rank", OnError::Shutdown, async { rank.await.map_err(final_or_not) });
        return Ok(context);
    }
    let listener = Listener::bind("listen", config.listen, &context.security).await?;
    context.bound.push(("grpc", listener.address));
    let host = if config.advertise.is_empty() {
        listener.address.ip().to_string()
    } else {
        config.advertise.clone()
    };
    let free_port = HostPort { host: host.clone(), port: 0 };
    let broadcast_store =
        serve_store(free_port, &config).await.context("host the store for broadcast groups")?;
    let rank_store = if config.world_size > 1 {
        let rendezvous: HostPort = config.rendezvous.parse()?;
        let store = serve_store(rendezvous, &config).await.context("host the ranks' rendezvous")?;
        context.bound.push(("rendezvous", bound_address(&store)?));
        Some(store)
    } else {
        None
    };
    let addresses = Addresses {
        store: HostPort { host: host.clone(), port: broadcast_store.port() }.to_string(),
        weights: HostPort { host, port: listener.address.port() }.to_string(),
    };
    let (token, readiness) = (context.token.clone(), context.readiness.clone());
    let security = context.security.clone();
    let ring = RingContext { member: config.member.parse()?, config, addresses, readiness, token, security };
    let pulse = context.pulse.clone();
    let rank_zero = RankZero { ring, listener, rank_store, pulse, _broadcast_store: broadcast_store };
    context
        .tasks
        .add("ring", OnError::Shutdown, async { Box::pin(rank_zero.run()).await.map_err(final_or_not) });
    Ok(context)
}

async fn serve_store(address: HostPort, config: &Config) -> anyhow::Result<Store> {
    let timeout = config.join_timeout;
    let store = tokio::task::spawn_blocking(move || Store::serve(&address.host, address.port, timeout));
    Ok(store.await??)
}

fn bound_address(store: &Store) -> anyhow::Result<SocketAddr> {
    let (host, port) = (store.host(), store.port());
    let parsed = format!("{host}:{port}").parse();
    // A name instead of a number: the port is what matters to who reads the address file.
    parsed.or_else(|_| format!("127.0.0.1:{port}").parse()).context("an address")
}

/// Rank 0 before its trainer is ready.
struct RankZero {
    ring: RingContext,
    listener: Listener,
    /// Where the ranks meet, if there are several.
    rank_store: Option<Store>,
    /// Beaten by the trainer's thread.
    pulse: Pulse,
    /// Broadcast groups meet here as long as this process lives.
    _broadcast_store: Store,
}

impl RankZero {
    async fn run(mut self) -> anyhow::Result<()> {
        let (rank, thread) =
            RankHandle::start(self.ring.config.clone(), self.rank_store.take(), self.pulse.clone())?;
        let result = self.lead(rank).await;
        leave(thread).await;
        result
    }

    async fn lead(self, mut rank: RankHandle) -> anyhow::Result<()> {
        let Self { ring, listener, _broadcast_store, .. } = self;
        let ready = tokio::select! {
            event = rank.next_event() => match event? {
                RankEvent::Ready(ready) => *ready,
                RankEvent::Failed(error) => return Err(error),
                other => anyhow::bail!("the trainer began with {other:?}"),
            },
            () = ring.token.cancelled() => return Ok(()),
        };
        let Ready { resumed, model, kind, buffer, folder } = ready;
        let (trained, ranks) = (resumed.trained.0, ring.config.world_size);
        tracing::info!(trained, run = ?resumed.run, ranks, "learner ready");
        let snapshots = Snapshots::of_learner();
        let service = WeightService::new(ModelFiles::of_folder(&folder)?, snapshots.clone());
        let publisher = PublisherConfig { member: member(&ring), model, kind };
        let mut publisher = Publisher::start(publisher, snapshots)?;
        publisher.keep(PolicyVersion(trained), buffer);
        let manifest = first_manifest(&mut publisher).await?;
        let router = service.router(&ring.security);
        let offered = Offered { manifest, vocabulary: vocabulary(folder).await? };
        let ring_loop = RingLoop::new(ring, rank, publisher, resumed, offered);
        // Weights are served until the loop has left, which on a cancelled token is after a checkpoint.
        let serving = router.serve_with_incoming(listener.incoming());
        tokio::select! {
            ended = ring_loop.run() => ended,
            served = serving => served.context("serve weights"),
        }
    }
}

/// Waits until the rank's thread has ended: a process that ends under it runs libtorch's destructors while it
/// computes, crashes, and its exit code is lost.
async fn leave(thread: JoinHandle<()>) {
    let ended = tokio::task::spawn_blocking(move || thread.join());
    if tokio::time::timeout(LEAVE_TIMEOUT, ended).await.is_err() {
        tracing::warn!(after = ?LEAVE_TIMEOUT, "leaving while the trainer computes");
    }
}

/// This learner in its broadcast groups.
fn member(ring: &RingContext) -> Member {
    Member {
        name: ring.member.clone(),
        device: ring.config.device.to_torch(),
        timeout: ring.config.broadcast_timeout,
    }
}

/// The description of the weights that the trainer starts with.
async fn first_manifest(publisher: &mut Publisher) -> anyhow::Result<Manifest> {
    match publisher.next_event().await.context("the publisher is gone")? {
        PublishEvent::Kept(manifest) => Ok(manifest),
        PublishEvent::Refused { error, .. } => Err(error.into()),
        other => anyhow::bail!("the publisher began with {other:?}"),
    }
}

/// That of the policy's tokenizer, on a thread for that: a large one takes long. A folder without one is no
/// folder that actors can use, which they say.
async fn vocabulary(folder: PathBuf) -> anyhow::Result<Vocabulary> {
    let read = move || {
        if !folder.join("tokenizer.json").is_file() {
            return Ok(Vocabulary::none());
        }
        Tokenizer::load(&folder).map(|tokenizer| Vocabulary::of(tokenizer.tokens()))
    };
    Ok(tokio::task::spawn_blocking(read).await?.map_err(|error| BadInput(error.to_string()))?)
}

/// Runs any other rank, on a thread of its own.
async fn follow(config: Config, pulse: Pulse, readiness: Readiness) -> anyhow::Result<()> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let name = format!("rank {}", config.rank);
    let work = move || {
        // Nobody waiting means that the process is ending.
        let _ = done.send(rank::follow(&config, &pulse, || readiness.set(true)));
    };
    std::thread::Builder::new().name(name).spawn(work).context("start the rank's thread")?;
    ended.await.context("the rank's thread panicked")?
}
