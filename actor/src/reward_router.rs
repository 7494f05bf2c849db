//! Rollouts on their way to the reward servers: sent, kept until acknowledged, sent again when an acknowledgement fails
//! to come (design D4).
//!
//! ```text
//!   rollout loop --Offer--> router --stream per server--> reward servers
//!        ^                    |  ^                              |
//!        +---- Recorded ------+  +------- replies --------------+
//! ```
//!
//! The router owns the unacknowledged rollouts. Each is at one server at a time, or waits: for a server to connect, or for
//! the pause that an overloaded server asked for. A server that goes away, or does not acknowledge within the time limit,
//! loses its rollouts to the others. The coordinator recognises what arrives twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use service::{CancellationToken, OnError, Spawner};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::actor::RewardServerAddress;
use types::link::reward::ScoreReply;
use types::{MemberId, Rollout, RolloutId, RunId};

use crate::metrics;
use crate::reward_client::{ServerEvent, ServerReport, serve};

/// Rollouts on their way to one server's stream.
const STREAM_QUEUE: usize = 64;
/// Events of all streams.
const EVENTS: usize = 1024;
/// How often what waits is looked through.
const SWEEP: Duration = Duration::from_millis(250);

/// What the router is told.
#[derive(Debug)]
pub(crate) enum Offer {
    /// These servers are ready; replaces the list before.
    Servers(Vec<RewardServerAddress>),
    /// Deliver this.
    Rollout(Arc<Rollout>),
}

/// Who delivers, for whom.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) run: RunId,
    pub(crate) member: MemberId,
    /// After this long without an acknowledgement a rollout is sent to another server.
    pub(crate) ack_time_limit: Duration,
}

#[derive(Debug)]
struct Pending {
    rollout: Arc<Rollout>,
    place: Place,
    /// The server that last did not acknowledge it in time: any other comes first.
    late_at: Option<MemberId>,
}

#[derive(Debug, Clone)]
enum Place {
    /// Not before this moment.
    Waiting(Instant),
    /// At a server since.
    At(MemberId, Instant),
}

#[derive(Debug)]
struct Server {
    address: String,
    queue: mpsc::Sender<Arc<Rollout>>,
    connected: bool,
    stop: CancellationToken,
}

/// The router.
#[derive(Debug)]
pub(crate) struct RewardRouter {
    sender: Sender,
    offers: mpsc::Receiver<Offer>,
    recorded: mpsc::Sender<RolloutId>,
    spawner: Spawner,
    servers: BTreeMap<MemberId, Server>,
    pending: BTreeMap<RolloutId, Pending>,
    /// Ids that wait, so that a sweep does not look through everything.
    waiting: BTreeSet<RolloutId>,
    events: (mpsc::Sender<ServerReport>, mpsc::Receiver<ServerReport>),
}

impl RewardRouter {
    /// A router that takes `offers` and says what was `recorded`.
    pub(crate) fn new(
        sender: Sender,
        offers: mpsc::Receiver<Offer>,
        recorded: mpsc::Sender<RolloutId>,
        spawner: Spawner,
    ) -> Self {
        Self {
            sender,
            offers,
            recorded,
            spawner,
            servers: BTreeMap::new(),
            pending: BTreeMap::new(),
            waiting: BTreeSet::new(),
            events: mpsc::channel(EVENTS),
        }
    }

    /// Runs until nobody offers any more. A process that is to stop goes on delivering as long as its rollout loop
    /// drains.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                offer = self.offers.recv() => match offer {
                    Some(Offer::Servers(list)) => self.replace_servers(list).await,
                    Some(Offer::Rollout(rollout)) => self.accept(rollout),
                    None => break,
                },
                Some(report) = self.events.1.recv() => self.server_report(report).await,
                _ = sweep.tick() => self.expire(),
            }
            self.dispatch();
            metrics::unacknowledged(self.pending.len());
        }
        for server in self.servers.values() {
            server.stop.cancel();
        }
        Ok(())
    }

    async fn replace_servers(&mut self, list: Vec<RewardServerAddress>) {
        let listed: BTreeMap<MemberId, String> =
            list.into_iter().map(|server| (server.member, server.address)).collect();
        let gone: Vec<MemberId> = self
            .servers
            .iter()
            .filter(|(member, server)| listed.get(member) != Some(&server.address))
            .map(|(member, _)| member.clone())
            .collect();
        for member in gone {
            if let Some(server) = self.servers.remove(&member) {
                server.stop.cancel();
            }
            self.take_back(&member);
        }
        for (member, address) in listed {
            if !self.servers.contains_key(&member) {
                self.add_server(member, address).await;
            }
        }
    }

    async fn add_server(&mut self, member: MemberId, address: String) {
        let (queue, rollouts) = mpsc::channel(STREAM_QUEUE);
        let stop = CancellationToken::new();
        let server = Server { address: address.clone(), queue, connected: false, stop: stop.clone() };
        let stream = serve(member.clone(), address, self.sender.clone(), rollouts, self.events.0.clone());
        self.servers.insert(member.clone(), server);
        let until_stopped = async move {
            tokio::select! {
                () = stream => {}
                () = stop.cancelled() => {}
            }
            Ok(())
        };
        self.spawner.spawn(format!("stream to {member}"), OnError::Log, until_stopped).await;
    }

    fn accept(&mut self, rollout: Arc<Rollout>) {
        let id = rollout.id;
        self.pending.insert(id, Pending { rollout, place: Place::Waiting(Instant::now()), late_at: None });
        self.waiting.insert(id);
    }

    async fn server_report(&mut self, report: ServerReport) {
        let ServerReport { server, event } = report;
        match event {
            ServerEvent::Connected => {
                if let Some(server) = self.servers.get_mut(&server) {
                    server.connected = true;
                }
            }
            ServerEvent::Lost(reason) => {
                tracing::info!(%server, reason, "reward server lost; its rollouts go to the others");
                if let Some(server) = self.servers.get_mut(&server) {
                    server.connected = false;
                }
                self.take_back(&server);
            }
            ServerEvent::Reply(ScoreReply::Recorded(id)) => {
                self.waiting.remove(&id);
                if self.pending.remove(&id).is_some() {
                    // The rollout loop reads these as long as it lives.
                    let _ = self.recorded.send(id).await;
                }
            }
            ServerEvent::Reply(ScoreReply::Overloaded { id, retry_after }) => {
                metrics::overloaded();
                self.wait(id, Instant::now() + retry_after);
            }
        }
    }

    fn wait(&mut self, id: RolloutId, until: Instant) {
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.place = Place::Waiting(until);
            self.waiting.insert(id);
        }
    }

    /// What a server had and did not acknowledge waits again.
    fn take_back(&mut self, server: &MemberId) {
        let at_server = |pending: &Pending| matches!(&pending.place, Place::At(at, _) if at == server);
        let ids: Vec<RolloutId> =
            self.pending.iter().filter(|(_, pending)| at_server(pending)).map(|(id, _)| *id).collect();
        for id in ids {
            self.wait(id, Instant::now());
        }
    }

    /// What was not acknowledged in time waits again, for another server. The late one may answer all the same: whichever
    /// answer comes first counts.
    fn expire(&mut self) {
        let (limit, now) = (self.sender.ack_time_limit, Instant::now());
        for (id, pending) in &mut self.pending {
            match &pending.place {
                Place::At(server, since) if since.elapsed() > limit => {
                    tracing::warn!(%id, %server, ?limit, "not acknowledged in time: sent again");
                    pending.late_at = Some(server.clone());
                    pending.place = Place::Waiting(now);
                    self.waiting.insert(*id);
                }
                Place::At(..) | Place::Waiting(_) => {}
            }
        }
    }

    /// Sends what may be sent, each to the connected server with the shortest queue, but to one that was late with it only
    /// where there is no other.
    fn dispatch(&mut self) {
        let now = Instant::now();
        let due: Vec<RolloutId> = self.waiting.iter().copied().collect();
        for id in due {
            let Some(pending) = self.pending.get_mut(&id) else {
                self.waiting.remove(&id);
                continue;
            };
            if matches!(pending.place, Place::Waiting(until) if until > now) {
                continue;
            }
            let connected = self.servers.iter().filter(|(_, server)| server.connected);
            let Some((member, server)) = connected.max_by_key(|(member, server)| {
                (pending.late_at.as_ref() != Some(*member), server.queue.capacity())
            }) else {
                return;
            };
            if server.queue.try_send(Arc::clone(&pending.rollout)).is_err() {
                return;
            }
            pending.place = Place::At(member.clone(), now);
            self.waiting.remove(&id);
        }
    }
}
