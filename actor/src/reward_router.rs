//! Rollouts on their way to the reward servers: sent, kept until acknowledged, sent again when an
//! acknowledgement fails to come (docs/decisions.md, D4).
//!
//! ```text
//!   rollout loop --commands--> router --stream per server--> reward servers
//!        ^                    |  ^                              |
//!        +---- Recorded ------+  +------- replies --------------+
//! ```
//!
//! The router owns the unacknowledged rollouts. Each is at a server, or waits: for a server to connect, or
//! for the pause that an overloaded server asked for. A server that goes away, or does not acknowledge within
//! the timeout, loses its rollouts to the others. What a server takes long with is given to a second one
//! too, so that one slow server does not hold up a batch (hedged requests: Dean and Barroso, "The tail at
//! scale", 2013); the first answer counts. The coordinator recognises what arrives twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use service::{CancellationToken, OnError, Spawner};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::actor::RewardServerAddress;
use types::link::reward::ScoreReply;
use types::{MemberId, RolloutId};

use crate::delivery::{Delivery, DeliveryConfig};
use crate::hedge_budget::HedgeBudget;
use crate::metrics;
use crate::reward_client::{ServerEvent, ServerReport, serve};

/// Rollouts on their way to one server's stream.
const STREAM_CAPACITY: usize = 64;
/// Reports of all streams that may wait.
const REPORT_CAPACITY: usize = 1024;
/// How often what waits is looked through.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// What the router is told.
#[derive(Debug)]
pub(crate) enum RouterCommand {
    /// These servers are ready; replaces the list before.
    Servers(Vec<RewardServerAddress>),
    /// Deliver this.
    Deliver(Delivery),
}

#[derive(Debug)]
struct Pending {
    delivery: Delivery,
    /// The servers that have it: one, or two once it is hedged. It waits while none has.
    sent: Vec<Sent>,
    /// It goes to no further server before this moment.
    not_before: Instant,
    /// The server that last did not acknowledge it in time: any other comes first.
    late_at: Option<MemberId>,
}

#[derive(Debug)]
struct Sent {
    server: MemberId,
    since: Instant,
}

impl Pending {
    /// A server does not have it any more; whether it waits now, since no other has it.
    fn lose(&mut self, server: &MemberId, not_before: Instant) -> bool {
        let before = self.sent.len();
        self.sent.retain(|sent| sent.server != *server);
        let lost = self.sent.len() < before;
        if lost {
            self.not_before = not_before;
        }
        lost && self.sent.is_empty()
    }
}

#[derive(Debug)]
struct Server {
    address: String,
    queue: mpsc::Sender<Delivery>,
    connected: bool,
    stop: CancellationToken,
}

/// The router.
#[derive(Debug)]
pub(crate) struct RewardRouter {
    config: DeliveryConfig,
    commands: mpsc::Receiver<RouterCommand>,
    recorded: mpsc::Sender<RolloutId>,
    spawner: Spawner,
    servers: BTreeMap<MemberId, Server>,
    pending: BTreeMap<RolloutId, Pending>,
    /// Ids that wait, so that a sweep does not look through everything.
    waiting: BTreeSet<RolloutId>,
    hedges: HedgeBudget,
    /// What the streams tell, and their way to tell it.
    reports: mpsc::Receiver<ServerReport>,
    report_sender: mpsc::Sender<ServerReport>,
}

impl RewardRouter {
    /// A router that carries out `commands` and says what was `recorded`.
    pub(crate) fn new(
        config: DeliveryConfig,
        commands: mpsc::Receiver<RouterCommand>,
        recorded: mpsc::Sender<RolloutId>,
        spawner: Spawner,
    ) -> Self {
        let (report_sender, reports) = mpsc::channel(REPORT_CAPACITY);
        Self {
            config,
            commands,
            recorded,
            spawner,
            servers: BTreeMap::new(),
            pending: BTreeMap::new(),
            waiting: BTreeSet::new(),
            hedges: HedgeBudget::full(),
            reports,
            report_sender,
        }
    }

    /// Runs until nobody commands it any more. A process that is to stop goes on delivering as long as its
    /// rollout loop drains.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(RouterCommand::Servers(list)) => self.replace_servers(list).await,
                    Some(RouterCommand::Deliver(delivery)) => self.accept(delivery),
                    None => break,
                },
                Some(report) = self.reports.recv() => self.server_report(report).await,
                _ = sweep.tick() => {
                    self.expire();
                    self.hedge();
                }
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
        let (queue, rollouts) = mpsc::channel(STREAM_CAPACITY);
        let stop = CancellationToken::new();
        let server = Server { address: address.clone(), queue, connected: false, stop: stop.clone() };
        let stream =
            serve(member.clone(), address, self.config.clone(), rollouts, self.report_sender.clone());
        self.servers.insert(member.clone(), server);
        let until_stopped = async move {
            // Nothing is lost with the answer: it is that the stream was stopped.
            let _ = stop.run_until_cancelled(stream).await;
            Ok(())
        };
        self.spawner.spawn(format!("stream to {member}"), OnError::Log, until_stopped).await;
    }

    fn accept(&mut self, delivery: Delivery) {
        let id = delivery.rollout.id();
        let not_before = Instant::now();
        self.pending.insert(id, Pending { delivery, sent: Vec::new(), not_before, late_at: None });
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
                    self.hedges.earn();
                    // The rollout loop reads these as long as it lives.
                    let _ = self.recorded.send(id).await;
                }
            }
            ServerEvent::Reply(ScoreReply::Overloaded { id, retry_after }) => {
                metrics::overloaded();
                let pending = self.pending.get_mut(&id);
                if pending.is_some_and(|pending| pending.lose(&server, Instant::now() + retry_after)) {
                    self.waiting.insert(id);
                }
            }
        }
    }

    /// A server has nothing any more.
    fn take_back(&mut self, server: &MemberId) {
        let now = Instant::now();
        for (id, pending) in &mut self.pending {
            if pending.lose(server, now) {
                self.waiting.insert(*id);
            }
        }
    }

    /// Takes back what was not acknowledged in time. The late server may answer all the same: whichever
    /// answer comes first counts.
    fn expire(&mut self) {
        let (timeout, now) = (self.config.acknowledge_timeout, Instant::now());
        for (id, pending) in &mut self.pending {
            let Some(late) = pending.sent.iter().find(|sent| sent.since.elapsed() > timeout) else {
                continue;
            };
            let late = late.server.clone();
            tracing::warn!(%id, server = %late, ?timeout, "not acknowledged in time");
            if pending.lose(&late, now) {
                self.waiting.insert(*id);
            }
            pending.late_at = Some(late);
        }
    }

    /// Gives what one server takes long with to a second one too.
    fn hedge(&mut self) {
        let now = Instant::now();
        for (id, pending) in &mut self.pending {
            let [first] = pending.sent.as_slice() else { continue };
            let slow = first.since.elapsed() > self.config.hedge_delay;
            if !slow || pending.not_before > now || !self.hedges.allows() {
                continue;
            }
            let others = self.servers.iter().filter(|(member, _)| **member != first.server);
            if let Some(sent) = send(&pending.delivery, least_busy(others, pending.late_at.as_ref())) {
                tracing::debug!(%id, slow = %first.server, server = %sent.server, "hedged");
                pending.sent.push(sent);
                self.hedges.spend();
                metrics::hedged();
            }
        }
    }

    /// Sends what may be sent.
    fn dispatch(&mut self) {
        let now = Instant::now();
        let due: Vec<RolloutId> = self.waiting.iter().copied().collect();
        for id in due {
            let Some(pending) = self.pending.get_mut(&id) else {
                self.waiting.remove(&id);
                continue;
            };
            if pending.not_before > now {
                continue;
            }
            let server = least_busy(self.servers.iter(), pending.late_at.as_ref());
            let Some(sent) = send(&pending.delivery, server) else { return };
            pending.sent.push(sent);
            self.waiting.remove(&id);
        }
    }
}

/// The connected server with the shortest queue; one that was late only where there is no other.
fn least_busy<'a>(
    servers: impl Iterator<Item = (&'a MemberId, &'a Server)>,
    late: Option<&MemberId>,
) -> Option<(&'a MemberId, &'a Server)> {
    let connected = servers.filter(|(_, server)| server.connected);
    connected.max_by_key(|(member, server)| (late != Some(*member), server.queue.capacity()))
}

/// Sends a rollout, if there is a server and room on the way to it.
fn send(delivery: &Delivery, to: Option<(&MemberId, &Server)>) -> Option<Sent> {
    let (member, server) = to?;
    server.queue.try_send(delivery.clone()).ok()?;
    Some(Sent { server: member.clone(), since: Instant::now() })
}
