//! A reward server that runs inside the test, with a coordinator to talk to.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use reward_server::Config;
use reward_server::config::{ReferenceConfig, RewardModel, ScorerConfig, ScorerKind};
use service::{CancellationToken, Context, Readiness, Security, TaskSet};
use tokio::task::JoinSet;
use types::link::reward::RewardReport;
use types::{FailReason, RolloutFailure, ScoredRollout};

use crate::grpc::{Actor, FakeCoordinator, Session};
use crate::tiny;

pub(crate) const RUN: &str = "test-run";

/// Longer than anything here takes on a busy machine; a wait that ends here has failed.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_TIMEOUT, what).await.expect("took too long")
}

/// Polls until `holds`, but not for ever.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let poll = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, poll).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// A running reward server.
pub(crate) struct Server {
    pub(crate) address: Option<String>,
    pub(crate) token: CancellationToken,
    pub(crate) readiness: Readiness,
    tasks: JoinSet<anyhow::Result<()>>,
    pages: axum::Router,
    bound: Vec<(&'static str, SocketAddr)>,
}

impl Server {
    pub(crate) async fn start(config: Config) -> anyhow::Result<Self> {
        let token = CancellationToken::new();
        let context = Context {
            token: token.clone(),
            tasks: TaskSet::default(),
            readiness: Readiness::default(),
            pulse: service::Pulse::default(),
            pages: axum::Router::new(),
            security: Security::open(),
            bound: Vec::new(),
        };
        assert_eq!(service::Config::problems(&config), Vec::<String>::new());
        let context = reward_server::build(config, context).await?;
        let Context { tasks, readiness, pages, bound, .. } = context;
        let mut running = JoinSet::new();
        running.spawn(tasks.run(token.clone(), WAIT_TIMEOUT));
        let address = bound.iter().find(|(name, _)| *name == "grpc").map(|(_, address)| address.to_string());
        Ok(Self { address, token, readiness, tasks: running, pages, bound })
    }

    /// The address under which it serves this.
    pub(crate) fn bound(&self, wanted: &str) -> Option<String> {
        let found = self.bound.iter().find(|(name, _)| *name == wanted)?;
        Some(found.1.to_string())
    }

    /// Serves the pages; returns their address.
    pub(crate) async fn serve_pages(&mut self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let pages = self.pages.clone();
        self.tasks.spawn(async move { Ok(axum::serve(listener, pages).await?) });
        address
    }

    /// How the server has ended.
    pub(crate) async fn ended(mut self) -> anyhow::Result<()> {
        soon(self.tasks.join_next()).await.unwrap().unwrap()
    }
}

/// A reward server in a run, with one actor.
pub(crate) struct World {
    pub(crate) coordinator: FakeCoordinator,
    pub(crate) session: Session,
    pub(crate) server: Server,
    pub(crate) actor: Actor,
}

impl World {
    /// Starts everything and introduces it to each other.
    pub(crate) async fn start(config: Config) -> Self {
        let mut coordinator = FakeCoordinator::start().await;
        let config = Config { coordinator: Some(coordinator.address.clone()), ..config };
        let server = Server::start(config).await.unwrap();
        let session = coordinator.welcomed().await;
        let actor = connect(&server, "actor-0").await;
        Self { coordinator, session, server, actor }
    }

    pub(crate) fn address(&self) -> &str {
        self.server.address.as_deref().unwrap()
    }
}

/// An actor of the server's run. The welcome may still be on its way: until then the server says that it is
/// unavailable.
pub(crate) async fn connect(server: &Server, member: &str) -> Actor {
    connect_to(server.address.as_deref().unwrap(), member).await
}

/// The same, by the server's address.
pub(crate) async fn connect_to(address: &str, member: &str) -> Actor {
    let connecting = async {
        loop {
            match Actor::connect(address, RUN, member).await {
                Ok(actor) => return actor,
                Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
            }
        }
    };
    soon(connecting).await
}

/// A scorer of weight 1.
pub(crate) fn scorer(kind: ScorerKind) -> Vec<ScorerConfig> {
    vec![ScorerConfig::new(kind)]
}

/// Reference and reward model, nothing that reads text.
pub(crate) fn networks() -> Config {
    let model = tiny::folder("reward-model");
    Config {
        reference: Some(ReferenceConfig { model: tiny::folder("policy"), temperature: Some(0.8) }),
        scorers: scorer(ScorerKind::RewardModel(RewardModel { model, normalise: true })),
        models: reward_server::config::ModelsConfig { threads: Some(1), ..Default::default() },
        ..Config::default()
    }
}

/// The scored rollout of a report.
pub(crate) fn scored(report: RewardReport) -> ScoredRollout {
    match report {
        RewardReport::Scored(scored) => scored,
        other => panic!("not scored: {other:?}"),
    }
}

/// The failure of a report.
pub(crate) fn failed(report: RewardReport) -> RolloutFailure {
    match report {
        RewardReport::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

/// The reason and detail of a failure.
pub(crate) fn why(report: RewardReport) -> (FailReason, String) {
    let failure = failed(report);
    (failure.reason, failure.detail)
}
