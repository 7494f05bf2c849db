//! The actor's loop: leases in, rollouts out.
//!
//! ```text
//!  coordinator --commands--> link --+
//!                                   v
//!  learner --weights--> receiver --> rollout loop --requests--> engine (a thread of its own)
//!                                   ^  |   |   ^----- events ------+
//!               recorded ids -------+  |   +--turns--> environments --> reward servers
//!                                      |   +--offers--> agents, whose calls go to the engine
//!                                      v
//!                              reward router --rollouts--> reward servers
//! ```
//!
//! | waits for                 | unblocked by                         | bound                                      |
//! |---------------------------|--------------------------------------|--------------------------------------------|
//! | a lease                   | room in engine and router            | free slots reported with every load        |
//! | the engine's events       | its next step                        | `max_sequences` plus what waits            |
//! | an environment            | its answer, or the timeout           | one request for each episode               |
//! | an agent                  | its end, its silence, its deadline   | `agents.episodes`                          |
//! | an acknowledgement        | the coordinator's journal            | `max_unacknowledged`; then no more leases  |
//! | weights                   | the learner, within its timeout      | one transfer at a time                     |
//!
//! The loop never waits for one of these alone: it is one `select!` over all of them.

mod agents;
mod episodes;
mod load;
mod policy_events;
mod submission;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use engine::{Event, Finished};
use openai::{AgentEvent, Agents};
use service::{
    BadInput, CancellationToken, LinkEvent, Readiness, Recurring, Saying, Security, Spawner, sleep_until,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::actor::{
    ActorCommand, ActorHello, ActorLoad, ActorReport, ActorWelcome, RewardServerAddress,
};
use types::link::environment::EnvironmentReply;
use types::{
    FailReason, Incarnation, MemberId, PolicyVersion, Rollout, RolloutFailure, RolloutId, RolloutParts,
    WeightHash,
};

use crate::config::Config;
use crate::coordinator_client::CoordinatorLink;
use crate::delivery::{Delivery, DeliveryConfig};
use crate::environment_client::Player;
use crate::environments::{self, Environments};
use crate::external::{Remote, external_problems};
use crate::metrics;
use crate::policy::{self, Outlets, Policy, PolicyEvent, PolicyUpdater, WeightSource};
use crate::reward_router::{RewardRouter, RouterCommand};
use crate::work::{Work, Workload};

/// Commands to the router that may wait.
const ROUTER_COMMAND_CAPACITY: usize = 256;
/// How soon a changed load is reported.
const LOAD_DELAY: Duration = Duration::from_millis(10);
/// How long a drained actor waits for the coordinator to close the stream.
const GOODBYE_DELAY: Duration = Duration::from_secs(1);
/// The loop with all that it owns.
#[derive(Debug)]
pub(crate) struct RolloutLoop {
    config: Config,
    member: MemberId,
    incarnation: Incarnation,
    link: CoordinatorLink,
    spawner: Spawner,
    readiness: Readiness,
    welcome: Option<ActorWelcome>,
    updater: PolicyUpdater,
    policy: Option<Policy>,
    /// The server that draws, where that is no engine of this process.
    remote: Option<Arc<Remote>>,
    /// Version and hash of the weights in use.
    weights: Option<(PolicyVersion, WeightHash)>,
    work: Workload,
    unacknowledged: BTreeSet<RolloutId>,
    /// The way to the reward router, once the run is known.
    router: Option<mpsc::Sender<RouterCommand>>,
    /// The way to the environments, where the run has episodes.
    environments: Option<Environments>,
    /// Agents that play episodes with loops of their own, where they do.
    agents: Option<Agents>,
    /// Numbers of the episodes whose next turn is to be drawn.
    next_turns: BTreeSet<u64>,
    /// Ids that the coordinator has recorded, and the router's way to tell them.
    recorded: mpsc::Receiver<RolloutId>,
    recorded_sender: mpsc::Sender<RolloutId>,
    generated_tokens: u64,
    /// Attempts that failed, by reason.
    failures: Recurring<FailReason>,
    reported_load: ActorLoad,
    reported_at: Instant,
    /// When a drain hands back what is not finished.
    drain_deadline: Option<Instant>,
    /// When an actor that has drained leaves, though the coordinator has not closed the stream.
    leave_at: Option<Instant>,
    /// Cancelled with the process.
    token: CancellationToken,
    security: Security,
}

/// What the loop is given by its process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) spawner: Spawner,
    pub(crate) readiness: Readiness,
    /// Cancelled with the process.
    pub(crate) token: CancellationToken,
    pub(crate) security: Security,
    /// Where agents lease episodes, if they do.
    pub(crate) agents: Option<Agents>,
}

/// What the select found.
enum Happened {
    Link(LinkEvent<ActorCommand>),
    Policy(anyhow::Result<PolicyEvent>),
    Engine(anyhow::Result<Event>),
    Environment(EnvironmentReply),
    Agent(AgentEvent),
    Recorded(RolloutId),
    LoadDue,
    LeaseOver,
    DrainOver,
    Leave,
    Stop,
}

impl RolloutLoop {
    /// A loop that is not running.
    ///
    /// # Errors
    /// When the actor's name is none.
    pub(crate) fn new(config: Config, process: Process, outlets: Outlets) -> anyhow::Result<Self> {
        let Process { spawner, readiness, token, security, agents } = process;
        let member = config.member_id()?;
        let remote = Remote::new(&config.engine, member.clone()).map_err(BadInput)?;
        let link = CoordinatorLink::new(config.coordinator.clone(), security.clone(), config.connect_timeout);
        // Ids are recorded at most once each, so that this never fills: the router never waits for this loop.
        let (recorded_sender, recorded) =
            mpsc::channel(2 * config.max_unacknowledged + config.engine.max_waiting);
        Ok(Self {
            updater: PolicyUpdater::new(&config, member.clone(), remote.clone(), security.clone(), outlets),
            remote,
            member,
            incarnation: Incarnation(service::new_incarnation()),
            link,
            spawner,
            readiness,
            welcome: None,
            policy: None,
            weights: None,
            work: Workload::default(),
            unacknowledged: BTreeSet::new(),
            router: None,
            environments: None,
            agents,
            next_turns: BTreeSet::new(),
            recorded,
            recorded_sender,
            generated_tokens: 0,
            failures: Recurring::default(),
            reported_load: ActorLoad::default(),
            reported_at: Instant::now(),
            drain_deadline: None,
            leave_at: None,
            token,
            security,
            config,
        })
    }

    /// Runs until the run is over, or the actor has drained.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        loop {
            match self.next().await {
                Happened::Link(event) => {
                    if self.link_event(event).await?.is_break() {
                        break;
                    }
                }
                Happened::Policy(event) => self.policy_event(event?).await?,
                Happened::Engine(event) => self.engine_event(event.context("generate")?).await,
                Happened::Environment(reply) => self.environment_reply(reply).await?,
                Happened::Agent(event) => self.agent_event(event).await,
                Happened::Recorded(id) => {
                    self.unacknowledged.remove(&id);
                }
                Happened::LoadDue => self.report_load().await,
                Happened::LeaseOver => self.give_up_overdue().await?,
                Happened::DrainOver => self.hand_back().await?,
                Happened::Leave => break,
                Happened::Stop => self.drain().await,
            }
            self.feed_engine().await?;
            self.draw_next_turns().await?;
            if self.has_drained() && self.leave_at.is_none() {
                tracing::info!("drained");
                // The last reports are on their way, and a stream that is dropped takes them with it.
                self.leave_at = Some(Instant::now() + GOODBYE_DELAY);
            }
        }
        self.agents.iter().for_each(Agents::leave);
        self.token.cancel();
        Ok(())
    }

    async fn next(&mut self) -> Happened {
        // A pull alone is no reason to speak before it is time.
        let load = ActorLoad { pulled_bytes: self.reported_load.pulled_bytes, ..self.load() };
        let changed = load != self.reported_load;
        let load_due = self.reported_at + if changed { LOAD_DELAY } else { self.config.heartbeat_interval };
        let (lease_over, drain_over) = (self.work.first_deadline(), self.drain_deadline);
        let stopping = self.drain_deadline.is_some();
        tokio::select! {
            event = self.link.next() => Happened::Link(event),
            event = self.updater.next() => Happened::Policy(event),
            event = policy::next_event(&mut self.policy) => Happened::Engine(event),
            reply = environments::next_reply(&mut self.environments) => Happened::Environment(reply),
            event = agents::next_event(self.agents.as_ref()) => Happened::Agent(event),
            Some(id) = self.recorded.recv() => Happened::Recorded(id),
            () = tokio::time::sleep_until(load_due), if self.link.is_connected() => Happened::LoadDue,
            () = sleep_until(lease_over) => Happened::LeaseOver,
            () = sleep_until(drain_over), if !self.work.is_empty() => Happened::DrainOver,
            () = sleep_until(self.leave_at) => Happened::Leave,
            () = self.token.cancelled(), if !stopping => Happened::Stop,
        }
    }

    /// Attempts that this actor works on or holds.
    fn holding(&self) -> Vec<RolloutId> {
        self.work.attempts().chain(self.unacknowledged.iter().copied()).collect()
    }

    async fn link_event(&mut self, event: LinkEvent<ActorCommand>) -> anyhow::Result<ControlFlow<()>> {
        let mut event = Some(event);
        while let Some(happened) = event.take() {
            match happened {
                LinkEvent::Due => {
                    let hello = ActorHello {
                        member: self.member.clone(),
                        incarnation: self.incarnation,
                        run: self.welcome.as_ref().map(|welcome| welcome.run.clone()),
                        holding: self.holding(),
                        weights: self.weights,
                        source: self.updater.source(),
                        vocabulary: self.updater.vocabulary(),
                        gpu: self.config.engine.device.gpu_name(),
                    };
                    event = self.link.connect(hello).await;
                }
                LinkEvent::Command(command) => return self.command(command).await,
                LinkEvent::Lost(_) if self.leave_at.is_some() => return Ok(ControlFlow::Break(())),
                LinkEvent::Lost(reason) => tracing::info!(reason, "coordinator lost; trying again"),
                LinkEvent::Refused(reason) => {
                    let problem = format!("the coordinator refuses this actor: {reason}");
                    return Err(BadInput(problem).into());
                }
                LinkEvent::GaveUp(reason) => anyhow::bail!(reason),
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn command(&mut self, command: ActorCommand) -> anyhow::Result<ControlFlow<()>> {
        match command {
            ActorCommand::Welcome(welcome) => self.welcomed(welcome).await?,
            ActorCommand::RewardServers(servers) => self.reward_servers(servers).await,
            ActorCommand::PullWeights { version, hash, .. } if self.holds(hash) => {
                self.renumber(version, hash).await?;
            }
            ActorCommand::PullWeights { source, version, hash } => {
                self.updater.pull(&self.spawner, WeightSource { address: source, version, hash }).await;
            }
            ActorCommand::JoinBroadcastGroup(group) => self.updater.join(group),
            ActorCommand::ReceiveWeights { group, manifest } => {
                self.updater.receive(group, manifest);
            }
            ActorCommand::LeaveBroadcastGroup(group) => self.updater.leave(group),
            ActorCommand::Lease(lease) => self.work.lease(lease),
            ActorCommand::Drain => self.drain().await,
            ActorCommand::Finish => {
                tracing::info!("the run is over");
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn welcomed(&mut self, welcome: ActorWelcome) -> anyhow::Result<()> {
        self.agents_fit(&welcome)?;
        let problems = external_problems(&self.config.engine, &welcome.sampling, welcome.deterministic);
        if !problems.is_empty() {
            return Err(BadInput(format!("engine: {}", problems.join("; "))).into());
        }
        if let Some(remote) = &self.remote {
            remote.expect_temperature(welcome.sampling.temperature());
        }
        tracing::info!(run = %welcome.run, member = %self.member, "welcome");
        if self.router.is_none() {
            let (router_sender, inbox) = mpsc::channel(ROUTER_COMMAND_CAPACITY);
            let config = DeliveryConfig {
                run: welcome.run.clone(),
                member: self.member.clone(),
                acknowledge_timeout: self.config.acknowledge_timeout,
                hedge_delay: self.config.hedge_delay,
                security: self.security.clone(),
            };
            let recorded = self.recorded_sender.clone();
            let router = RewardRouter::new(config, inbox, recorded, self.spawner.clone());
            self.spawner.spawn("reward router", service::OnError::Shutdown, router.run()).await;
            self.router = Some(router_sender);
        }
        if welcome.episodes && self.environments.is_none() {
            let (run, member, security) = (welcome.run.clone(), self.member.clone(), self.security.clone());
            let player = Player { run, member, security };
            let timeout = self.config.acknowledge_timeout;
            self.environments = Some(Environments::new(player, timeout, self.spawner.clone()));
        }
        self.updater.set_deterministic(welcome.deterministic);
        self.welcome = Some(welcome);
        Ok(())
    }

    async fn reward_servers(&mut self, servers: Vec<RewardServerAddress>) {
        if let Some(environments) = &mut self.environments {
            environments.replace_servers(&servers).await;
        }
        self.tell_router(RouterCommand::Servers(servers)).await;
    }

    async fn tell_router(&mut self, command: RouterCommand) {
        if let Some(router) = &self.router {
            // The router ends only with the process.
            let _ = router.send(command).await;
        }
    }

    /// Gives waiting leases to the engine: all at once, or in deterministic mode one after the other.
    async fn feed_engine(&mut self) -> anyhow::Result<()> {
        let Some(welcome) = self.welcome.clone() else { return Ok(()) };
        while self.policy.is_some() && (!welcome.deterministic || self.work.running() == 0) {
            let Some(lease) = self.work.next_lease() else { break };
            if self.agents.is_some() {
                self.offer_to_agents(lease, &welcome);
            } else if welcome.episodes {
                self.begin_episodes(lease, &welcome);
            } else {
                self.submit(lease, &welcome).await?;
            }
        }
        Ok(())
    }

    async fn engine_event(&mut self, event: Event) {
        match event {
            Event::Token(_) => {}
            Event::Finished(finished) => match self.work.get(finished.id) {
                Some(Work { episode: Some(_), .. }) => self.turn_drawn(*finished).await,
                _ => self.finished(*finished).await,
            },
            Event::Failed { id, response_tokens, problem } => {
                self.end_failed(id, FailReason::Generation, problem, response_tokens).await;
            }
        }
    }

    async fn finished(&mut self, finished: Finished) {
        let Some(work) = self.work.end(finished.id) else { return };
        let tokens = finished.response_tokens.len();
        self.generated_tokens += tokens as u64;
        metrics::finished(tokens);
        if work.unwanted {
            return;
        }
        let parts = RolloutParts {
            id: work.id,
            prompt_tokens: work.prompt_tokens,
            response_tokens: finished.response_tokens,
            observations: Vec::new(),
            reward: None,
            rollout_logprobs: finished.rollout_logprobs,
            surviving_mass: finished.surviving_mass,
            spans: finished.spans,
            finish_reason: finished.finish_reason,
            // Its scorers ask the coordinator for them.
            fields: "".into(),
        };
        self.deliver(parts, work.deadline).await;
    }

    /// Sends a rollout on its way.
    async fn deliver(&mut self, parts: RolloutParts, deadline: Instant) {
        let (id, tokens) = (parts.id, parts.response_tokens.len());
        match Rollout::new(parts) {
            Ok(rollout) => {
                self.unacknowledged.insert(id);
                let delivery = Delivery { rollout: Arc::new(rollout), deadline };
                self.tell_router(RouterCommand::Deliver(delivery)).await;
            }
            Err(invalid) => self.fail(id, FailReason::Invalid, invalid.to_string(), tokens).await,
        }
    }

    /// What is worked on under a number has failed.
    async fn end_failed(&mut self, number: u64, reason: FailReason, detail: String, tokens: usize) {
        let Some(work) = self.work.end(number) else { return };
        self.forget_episode(number, &work);
        if !work.unwanted {
            self.fail(work.id, reason, detail, tokens).await;
        }
    }

    async fn fail(&mut self, id: RolloutId, reason: FailReason, detail: String, tokens: usize) {
        match self.failures.happened(Instant::now(), reason) {
            Saying::First => {
                tracing::warn!(%id, %reason, detail, "attempt failed; others of its reason are counted");
            }
            Saying::More { count, within } => {
                tracing::warn!(%reason, count, seconds = within.as_secs(), "attempts failed, again");
            }
            Saying::Nothing => {}
        }
        metrics::failed(reason);
        let response_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let failure = RolloutFailure { id, reason, detail, response_tokens };
        self.link.report(ActorReport::Failed(failure)).await;
    }

    /// Takes no more work; what has begun may finish before its deadline.
    async fn drain(&mut self) {
        if self.drain_deadline.is_none() {
            tracing::info!(running = self.work.running(), "draining");
            self.drain_deadline = Some(Instant::now() + self.config.drain_timeout);
            self.link.report(ActorReport::Draining).await;
            self.agents.iter().for_each(Agents::leave);
        }
    }

    /// Gives up what a drain did not finish: the coordinator issues it anew.
    async fn hand_back(&mut self) -> anyhow::Result<()> {
        self.give_up(|_| true, FailReason::Returned, "the actor is leaving").await
    }

    /// Gives up what others are to generate by now. What is generated already is delivered all the same:
    /// reward server and coordinator know what to make of it.
    async fn give_up_overdue(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.give_up(
            |deadline| deadline <= now,
            FailReason::LeaseExpired,
            "not generated before its lease ran out",
        )
        .await
    }

    /// Generates no further what is `chosen` by the end of its lease.
    async fn give_up(
        &mut self,
        chosen: impl Fn(Instant) -> bool,
        reason: FailReason,
        detail: &str,
    ) -> anyhow::Result<()> {
        let given_up = self.work.give_up(chosen);
        for number in given_up.numbers {
            self.next_turns.remove(&number);
            if let Some(policy) = &mut self.policy {
                policy.engine.cancel(number).await?;
            }
        }
        for id in given_up.episodes {
            if let Some(environments) = &mut self.environments {
                environments.close(id);
            }
            if let Some(agents) = &self.agents {
                agents.close(id, detail);
            }
        }
        for id in given_up.wanted {
            self.fail(id, reason, detail.to_owned(), 0).await;
        }
        Ok(())
    }

    /// Whether nothing is left of the work, and everybody knows what became of it.
    fn has_drained(&self) -> bool {
        self.drain_deadline.is_some() && self.work.is_empty() && self.unacknowledged.is_empty()
    }
}
