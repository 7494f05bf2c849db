//! The learner's configuration as a member of a ring.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use model::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service::ServiceConfig;
use service::security::Door;
use types::{HostPort, MemberId};

use crate::config::PpoConfig;

/// Everything a rank of the learner can be told. All ranks are told the same, but for `rank`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The learner's name in the run.
    pub member: String,
    /// `host:port` of the coordinator. Only rank 0 speaks to it.
    pub coordinator: String,
    /// This process's rank, from 0.
    pub rank: usize,
    /// Number of ranks, one process each.
    pub world_size: usize,
    /// `host:port` where the ranks meet; rank 0 listens there. It takes any free port for port 0, and says
    /// which in its address file.
    pub rendezvous: String,
    /// Where rank 0 serves weights to actors that join late.
    pub listen: SocketAddr,
    /// Host under which actors reach rank 0; the one of `listen` when empty.
    pub advertise: String,
    /// The policy's folder, before the first batch.
    #[schemars(extend("x-kind" = "model folder"))]
    pub policy: PathBuf,
    /// The critic's folder: a critic or reward model keeps its head. The policy with a head of zeros when
    /// absent.
    #[schemars(extend("x-kind" = "model folder"))]
    pub critic: Option<PathBuf>,
    /// Where checkpoints are written.
    pub checkpoints: PathBuf,
    /// Batches from one checkpoint to the next. The samples since the last one are kept by the coordinator.
    pub checkpoint_every: u64,
    /// Checkpoints kept, at least 2.
    pub keep_checkpoints: usize,
    /// Where this rank computes: `cpu` or `cuda:N`.
    pub device: Device,
    /// Threads of a tensor operation; 0 leaves it to torch.
    pub threads: usize,
    /// The longest wait of a rank for the others within a step.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub rank_timeout: Duration,
    /// The longest wait for all ranks to come.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub join_timeout: Duration,
    /// The longest wait for a broadcast group to form, and for each part of a broadcast.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub broadcast_timeout: Duration,
    /// Longest silence towards the coordinator.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub heartbeat_interval: Duration,
    /// The longest look for a coordinator before giving up.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub connect_timeout: Duration,
    /// The step.
    pub ppo: PpoConfig,
    /// The process.
    pub service: ServiceConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            member: "learner".to_owned(),
            coordinator: "127.0.0.1:7700".to_owned(),
            rank: 0,
            world_size: 1,
            rendezvous: "127.0.0.1:0".to_owned(),
            // Loopback only: weights are not for everybody.
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: String::new(),
            policy: PathBuf::new(),
            critic: None,
            checkpoints: PathBuf::from("checkpoints"),
            checkpoint_every: 10,
            keep_checkpoints: 2,
            device: Device::default(),
            threads: 0,
            rank_timeout: Duration::from_secs(600),
            join_timeout: Duration::from_secs(120),
            broadcast_timeout: Duration::from_secs(60),
            heartbeat_interval: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(600),
            ppo: PpoConfig::default(),
            service: ServiceConfig::default(),
        }
    }
}

impl service::Config for Config {
    fn service(&self) -> &ServiceConfig {
        &self.service
    }

    fn doors(&self) -> Vec<Door> {
        // The other ranks listen for nothing.
        if self.rank > 0 {
            return Vec::new();
        }
        let mut doors = vec![Door::new("listen", self.listen)];
        // The store of broadcast groups is bound to what actors are told, that of the ranks to where they
        // meet.
        doors.extend((!self.advertise.is_empty()).then(|| Door::new("advertise", &self.advertise)));
        doors.extend((self.world_size > 1).then(|| Door::new("rendezvous", &self.rendezvous)));
        doors
    }

    fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.ppo.problems().into_iter().map(|problem| format!("ppo.{problem}")).collect();
        if let Err(error) = self.member.parse::<MemberId>() {
            problems.push(error.to_string());
        }
        if self.rank == 0 && self.listen.ip().is_unspecified() && self.advertise.is_empty() {
            problems.push(
                "listen names every address of this host, and what c10d opens, which asks nobody who comes, would be \
                 open on all of them: set advertise to the one that actors reach"
                    .to_owned(),
            );
        }
        let rendezvous = self.rendezvous.parse::<SocketAddr>();
        if self.world_size > 1 && rendezvous.is_ok_and(|address| address.ip().is_unspecified()) {
            problems.push(format!(
                "rendezvous is {}, which is every address of this host, and c10d's store, which asks nobody who comes, \
                 would be open on all of them: name the one that the ranks reach",
                self.rendezvous
            ));
        }
        if self.rank >= self.world_size {
            problems.push(format!("rank is {}, must be below world_size = {}", self.rank, self.world_size));
        }
        for (key, address) in [("coordinator", &self.coordinator), ("rendezvous", &self.rendezvous)] {
            if address.parse::<HostPort>().is_err() {
                problems.push(format!("{key} is {address:?}, must be host:port"));
            }
        }
        if self.policy.as_os_str().is_empty() {
            problems.push("policy is missing: name a model folder".to_owned());
        }
        if self.checkpoint_every == 0 {
            problems.push("checkpoint_every must be at least 1".to_owned());
        }
        if self.keep_checkpoints < 2 {
            problems.push("keep_checkpoints must be at least 2: one may be torn by a crash".to_owned());
        }
        problems
    }
}
