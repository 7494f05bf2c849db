//! Episodes at the reward servers' environments (docs/decisions.md, D24): which server has which, what is
//! asked of it, and what becomes of it when the server goes away.
//!
//! ```text
//!   rollout loop --reset, step, close--> environments --stream per server--> reward servers
//!        ^                                  |    ^                              |
//!        +------------ replies -------------+    +----------- replies ----------+
//! ```
//!
//! An episode that has not begun waits for a server that is connected and has room; it begins at the one with
//! the fewest. From then on it lives at that server, and is lost with its stream: what an environment holds
//! is nowhere else. Each request is answered within the timeout, or the episode has failed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use service::{CancellationToken, OnError, Spawner};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use types::link::actor::RewardServerAddress;
use types::link::environment::{EnvironmentReply, EnvironmentRequest};
use types::{FailReason, MemberId, RolloutId};

use crate::environment_client::{Player, StreamEvent, StreamReport, play};

/// Requests on their way to one server's stream.
const STREAM_CAPACITY: usize = 1024;
/// Reports of all streams that may wait.
const REPORT_CAPACITY: usize = 1024;
/// How often what waits is looked through.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Where an episode stands.
#[derive(Debug)]
struct Standing {
    /// The server that has it; none before it is sent to one.
    server: Option<MemberId>,
    /// The server has answered its reset.
    has_begun: bool,
    call: Call,
    /// The end of its lease.
    deadline: Instant,
}

/// What is asked of the environment.
#[derive(Debug)]
enum Call {
    /// Nothing: the policy is drawing.
    None,
    /// This, not before a moment.
    Unsent { request: EnvironmentRequest, not_before: Instant },
    /// This, and its answer is due.
    Sent { request: EnvironmentRequest, due: Instant },
}

#[derive(Debug)]
struct Server {
    address: String,
    requests: mpsc::Sender<EnvironmentRequest>,
    connected: bool,
    /// Episodes that it has.
    episodes: usize,
    stop: CancellationToken,
}

/// The actor's episodes.
#[derive(Debug)]
pub(crate) struct Environments {
    player: Player,
    /// How long a server may take with an answer.
    timeout: Duration,
    spawner: Spawner,
    servers: BTreeMap<MemberId, Server>,
    episodes: BTreeMap<RolloutId, Standing>,
    /// Those with a call.
    asking: BTreeSet<RolloutId>,
    /// What the rollout loop has not been told yet.
    replies: VecDeque<EnvironmentReply>,
    reports: mpsc::Receiver<StreamReport>,
    report_sender: mpsc::Sender<StreamReport>,
    sweep: Interval,
}

impl Environments {
    /// No servers, no episodes.
    pub(crate) fn new(player: Player, timeout: Duration, spawner: Spawner) -> Self {
        let (report_sender, reports) = mpsc::channel(REPORT_CAPACITY);
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            player,
            timeout,
            spawner,
            servers: BTreeMap::new(),
            episodes: BTreeMap::new(),
            asking: BTreeSet::new(),
            replies: VecDeque::new(),
            reports,
            report_sender,
            sweep,
        }
    }

    /// These servers are ready; replaces the list before.
    pub(crate) async fn replace_servers(&mut self, list: &[RewardServerAddress]) {
        let listed: BTreeMap<&MemberId, &String> =
            list.iter().map(|server| (&server.member, &server.address)).collect();
        let gone: Vec<MemberId> = self
            .servers
            .iter()
            .filter(|(member, server)| listed.get(member) != Some(&&server.address))
            .map(|(member, _)| member.clone())
            .collect();
        for member in gone {
            if let Some(server) = self.servers.remove(&member) {
                server.stop.cancel();
            }
            self.lose_server(&member, "the reward server has left the run");
        }
        for (member, address) in listed {
            if !self.servers.contains_key(member) {
                self.add_server(member.clone(), address.clone()).await;
            }
        }
        self.send_due();
    }

    async fn add_server(&mut self, member: MemberId, address: String) {
        let (requests, inbox) = mpsc::channel(STREAM_CAPACITY);
        let stop = CancellationToken::new();
        let events = self.report_sender.clone();
        let stream = play(member.clone(), address.clone(), self.player.clone(), inbox, events);
        let server = Server { address, requests, connected: false, episodes: 0, stop: stop.clone() };
        self.servers.insert(member.clone(), server);
        let until_stopped = async move {
            // Nothing is lost with the answer: it is that the stream was stopped.
            let _ = stop.run_until_cancelled(stream).await;
            Ok(())
        };
        self.spawner.spawn(format!("episodes at {member}"), OnError::Log, until_stopped).await;
    }

    /// Begins an episode, whose lease ends at the deadline.
    pub(crate) fn reset(&mut self, id: RolloutId, deadline: Instant) {
        let time_left = deadline.saturating_duration_since(Instant::now());
        let request = EnvironmentRequest::Reset { id, time_left };
        let call = Call::Unsent { request, not_before: Instant::now() };
        self.episodes.insert(id, Standing { server: None, has_begun: false, call, deadline });
        self.asking.insert(id);
        self.send_due();
    }

    /// Tells the environment a turn of an episode that waits for nothing.
    pub(crate) fn step(&mut self, request: EnvironmentRequest) {
        let EnvironmentRequest::Step { id, .. } = &request else { return };
        let id = *id;
        if let Some(standing) = self.episodes.get_mut(&id) {
            standing.call = Call::Unsent { request, not_before: Instant::now() };
            self.asking.insert(id);
            self.send_due();
        }
    }

    /// Forgets an episode; where it is under way, its server is told.
    pub(crate) fn close(&mut self, id: RolloutId) {
        let Some(server) = self.forget(id) else { return };
        if let Some(server) = self.servers.get(&server) {
            // Without room on the way the server keeps it until its time is over.
            let _ = server.requests.try_send(EnvironmentRequest::Close(id));
        }
    }

    /// Episodes that wait for their environment.
    pub(crate) fn waiting(&self) -> usize {
        self.asking.len()
    }

    /// Waits for the next answer. The future may be dropped at any time.
    pub(crate) async fn next(&mut self) -> EnvironmentReply {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return reply;
            }
            tokio::select! {
                Some(report) = self.reports.recv() => self.report(report),
                _ = self.sweep.tick(), if !self.asking.is_empty() => {
                    self.expire();
                    self.send_due();
                }
            }
        }
    }

    fn report(&mut self, report: StreamReport) {
        let StreamReport { server, event } = report;
        match event {
            StreamEvent::Connected => {
                if let Some(server) = self.servers.get_mut(&server) {
                    server.connected = true;
                }
                self.send_due();
            }
            StreamEvent::Lost(reason) => {
                tracing::info!(%server, reason, "no stream for episodes; those at this reward server are lost");
                if let Some(server) = self.servers.get_mut(&server) {
                    server.connected = false;
                }
                self.lose_server(&server, &reason);
            }
            StreamEvent::Reply(reply) => self.answered(&server, reply),
        }
    }

    fn answered(&mut self, server: &MemberId, reply: EnvironmentReply) {
        let id = reply.id();
        // Of an episode that was closed, or given to another server meanwhile.
        let Some(standing) = self.episodes.get_mut(&id) else { return };
        if standing.server.as_ref() != Some(server) {
            return;
        }
        match &reply {
            EnvironmentReply::Overloaded { retry_after, .. } => {
                let not_before = Instant::now() + *retry_after;
                self.send_again(id, not_before);
                return;
            }
            EnvironmentReply::Ready { .. } => standing.has_begun = true,
            EnvironmentReply::Observed { .. } => {}
            EnvironmentReply::Done { .. } | EnvironmentReply::Failed { .. } => {
                self.forget(id);
                self.replies.push_back(reply);
                return;
            }
        }
        standing.call = Call::None;
        self.asking.remove(&id);
        self.replies.push_back(reply);
    }

    /// A server has nothing any more: what has begun there has failed, the rest goes to others.
    fn lose_server(&mut self, server: &MemberId, reason: &str) {
        let its = self.episodes.iter().filter(|(_, standing)| standing.server.as_ref() == Some(server));
        let its: Vec<(RolloutId, bool)> = its.map(|(id, standing)| (*id, standing.has_begun)).collect();
        for (id, has_begun) in its {
            if has_begun {
                self.fail(id, format!("the environment at {server} is gone: {reason}"));
            } else {
                self.send_again(id, Instant::now());
            }
        }
    }

    /// A reset goes to another server, or to the same one later.
    fn send_again(&mut self, id: RolloutId, not_before: Instant) {
        let Some(standing) = self.episodes.get_mut(&id) else { return };
        if let Some(server) = standing.server.take().and_then(|server| self.servers.get_mut(&server)) {
            server.episodes = server.episodes.saturating_sub(1);
        }
        standing.call = match std::mem::replace(&mut standing.call, Call::None) {
            Call::Sent { request, .. } | Call::Unsent { request, .. } => Call::Unsent { request, not_before },
            Call::None => Call::None,
        };
    }

    /// Gives up what was not answered in time.
    fn expire(&mut self) {
        let now = Instant::now();
        let late = self.asking.iter().filter(|id| {
            let call = self.episodes.get(id).map(|standing| &standing.call);
            matches!(call, Some(Call::Sent { due, .. }) if *due <= now)
        });
        for id in late.copied().collect::<Vec<_>>() {
            let server = self.forget(id);
            let named = server.as_ref().map_or("the environment", MemberId::as_str);
            let detail = format!("{named} has not answered within {:?}", self.timeout);
            if let Some(server) = server.as_ref().and_then(|server| self.servers.get(server)) {
                let _ = server.requests.try_send(EnvironmentRequest::Close(id));
            }
            self.replies.push_back(EnvironmentReply::Failed { id, reason: FailReason::Environment, detail });
        }
    }

    fn fail(&mut self, id: RolloutId, detail: String) {
        self.forget(id);
        self.replies.push_back(EnvironmentReply::Failed { id, reason: FailReason::Environment, detail });
    }

    /// Forgets an episode; the server that has it.
    fn forget(&mut self, id: RolloutId) -> Option<MemberId> {
        let standing = self.episodes.remove(&id)?;
        self.asking.remove(&id);
        let server = standing.server?;
        if let Some(server) = self.servers.get_mut(&server) {
            server.episodes = server.episodes.saturating_sub(1);
        }
        Some(server)
    }

    /// Sends what may be sent.
    fn send_due(&mut self) {
        let now = Instant::now();
        for id in &self.asking {
            let Some(standing) = self.episodes.get_mut(id) else { continue };
            let Call::Unsent { request, not_before } = &mut standing.call else { continue };
            if *not_before > now {
                continue;
            }
            let chosen = match &standing.server {
                Some(server) => self.servers.get_mut(server).map(|found| (server.clone(), found)),
                None => fewest(&mut self.servers),
            };
            let Some((member, server)) = chosen else { continue };
            if let EnvironmentRequest::Reset { time_left, .. } = request {
                *time_left = standing.deadline.saturating_duration_since(now);
            }
            if server.requests.try_send(request.clone()).is_err() {
                continue;
            }
            if standing.server.is_none() {
                standing.server = Some(member);
                server.episodes += 1;
            }
            let request = request.clone();
            standing.call = Call::Sent { request, due: now + self.timeout };
        }
    }
}

impl Drop for Environments {
    fn drop(&mut self) {
        for server in self.servers.values() {
            server.stop.cancel();
        }
    }
}

/// The connected server that has the fewest episodes.
fn fewest(servers: &mut BTreeMap<MemberId, Server>) -> Option<(MemberId, &mut Server)> {
    let connected = servers.iter_mut().filter(|(_, server)| server.connected);
    connected.min_by_key(|(_, server)| server.episodes).map(|(member, server)| (member.clone(), server))
}

/// The next answer; none where the run has no episodes.
pub(crate) async fn next_reply(environments: &mut Option<Environments>) -> EnvironmentReply {
    match environments {
        Some(environments) => environments.next().await,
        None => std::future::pending().await,
    }
}
