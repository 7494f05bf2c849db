//! The actor's configuration.

use std::net::SocketAddr;
use std::time::Duration;

use engine::EngineConfig;
use openai::{AgentsConfig, ServeConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service::ServiceConfig;
use service::security::Door;
use types::MemberId;

/// Everything an actor can be told. The coordinator's address is the only thing it must be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its name, unique among the run's actors. Made of host, process and something random when empty.
    pub member: String,
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// Finished rollouts that may wait for their acknowledgement. No more work is taken while there are so
    /// many.
    pub max_unacknowledged: usize,
    /// Longest silence towards the coordinator.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub heartbeat_interval: Duration,
    /// How long to look for a coordinator before giving up.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub connect_timeout: Duration,
    /// After this long without an acknowledgement a rollout is sent to a second reward server too, and the
    /// first answer counts. At most one rollout in ten is: a slow scorer must not be given twice the work.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub hedge_delay: Duration,
    /// After this long without an acknowledgement a reward server counts as having lost a rollout: it is sent
    /// again, to another one if there is one.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub acknowledge_timeout: Duration,
    /// How long a transfer of weights may take without progress.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub weights_timeout: Duration,
    /// Where other actors pull the weights that this one has, so that the learner does not serve all of them.
    /// It keeps a copy of them in memory for that; not given, it shares nothing.
    pub listen_weights: Option<SocketAddr>,
    /// `host:port` under which other actors reach `listen_weights`; the bound address where not given.
    pub advertise: Option<String>,
    /// How long a drain goes on generating before the rest is handed back.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub drain_timeout: Duration,
    /// The generation engine.
    pub engine: EngineConfig,
    /// The policy under the OpenAI API, on a port of its own.
    pub serve: ServeConfig,
    /// Episodes that agents play with loops of their own, leased at `serve.listen`.
    pub agents: AgentsConfig,
    /// The process.
    pub service: ServiceConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            member: String::new(),
            coordinator: "127.0.0.1:7700".to_owned(),
            max_unacknowledged: 4096,
            heartbeat_interval: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(600),
            hedge_delay: Duration::from_secs(20),
            // Longer than a reward server's own deadlines, so that only a lost rollout is sent again.
            acknowledge_timeout: Duration::from_secs(150),
            weights_timeout: Duration::from_secs(60),
            listen_weights: None,
            advertise: None,
            drain_timeout: Duration::from_secs(15),
            engine: EngineConfig::default(),
            serve: ServeConfig::default(),
            agents: AgentsConfig::default(),
            service: ServiceConfig::default(),
        }
    }
}

impl service::Config for Config {
    fn service(&self) -> &ServiceConfig {
        &self.service
    }

    fn doors(&self) -> Vec<Door> {
        let mut doors = Vec::new();
        doors.extend(self.listen_weights.map(|listen| Door::new("listen_weights", listen)));
        doors.extend(self.serve.enabled.then(|| Door::new("serve.listen", self.serve.listen)));
        doors
    }

    fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.engine.problems().into_iter().map(|problem| format!("engine.{problem}")).collect();
        problems.extend(self.serve.problems().into_iter().map(|problem| format!("serve.{problem}")));
        problems.extend(self.agents.problems().into_iter().map(|problem| format!("agents.{problem}")));
        if self.agents.enabled && !self.serve.enabled {
            problems.push("agents.enabled needs serve.enabled = true: they speak to that port".to_owned());
        }
        if let Err(error) = self.member_id() {
            problems.push(error.to_string());
        }
        if self.coordinator.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            problems.push(format!("coordinator is {:?}, must be host:port", self.coordinator));
        }
        if self.listen_weights.is_some_and(|listen| listen.ip().is_unspecified()) && self.advertise.is_none()
        {
            problems.push(
                "listen_weights names every address of this host: set advertise to the host:port that other \
                 actors reach"
                    .to_owned(),
            );
        }
        if let Some(name) = self.engine.backend.external().filter(|_| self.serve.enabled) {
            problems.push(format!(
                "serve.enabled is true, but with engine.backend = {name:?} that server serves"
            ));
        }
        if self.max_unacknowledged == 0 {
            problems.push("max_unacknowledged must be at least 1".to_owned());
        }
        problems
    }
}

impl Config {
    /// The actor's name.
    ///
    /// # Errors
    /// When the configured one is no name.
    pub(crate) fn member_id(&self) -> Result<MemberId, types::Invalid> {
        if !self.member.is_empty() {
            return self.member.parse();
        }
        service::unique_name("actor").parse()
    }
}
