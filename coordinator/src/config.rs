//! The coordinator's configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service::ServiceConfig;
use service::security::Door;
use types::{RunId, Sampling};

use crate::data::{DataConfig, DataSet};
use crate::eval_config::EvalConfig;
use crate::state::{EvaluationPlan, FiltrationPlan, Order, RunPlan, Schedule, SetPlan};

/// The smallest bound of the samples: a line has two texts of 8 KiB, in which each byte may take six.
const MIN_SAMPLES_BYTES: u64 = 1 << 20;

/// Everything the coordinator can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The run's name. A journal or checkpoint of another run is refused.
    pub run: String,
    /// Seeds the order of prompts, the filtration's draws and every response's sampling.
    pub seed: u64,
    /// Where members connect. Loopback by default.
    pub listen: SocketAddr,
    /// The journal's folder. It belongs to one run.
    pub journal: PathBuf,
    /// Bytes free on the journal's disk below which no new prompts are begun: what is in flight still has to
    /// be written. The run goes on when there is room again.
    pub journal_reserve_bytes: u64,
    /// Receives one JSON line per training step; none when empty.
    pub steps_file: Option<PathBuf>,
    /// Number of batches, that is of policy versions, to train.
    pub batches: u64,
    /// Prompts per batch. A batch is refilled until it has this many groups that carry signal.
    pub batch_prompts: u64,
    /// Responses per prompt, N. The paper's is 5.
    pub group_size: u16,
    /// Smallest number of scored responses for which a group with failures is still filtered.
    pub min_group: u16,
    /// Versions that a response may be behind when it trains, eta. 0 is synchronous and on-policy.
    pub max_staleness: u64,
    /// Most prompts in flight at a time.
    pub max_prompts_in_flight: u64,
    /// Most prompts in one lease; exactly this many in deterministic mode.
    pub lease_prompts: u64,
    /// Fixed batch composition everywhere: same seed, same weights, bit for bit on CPU. Needs `max_staleness
    /// = 0`.
    pub deterministic: bool,
    /// Send filtered samples to the learner with weight 0: for `whiten = "before-filter"` and `critic_on =
    /// "all"`.
    pub send_filtered: bool,
    /// How many batches' worth of groups may be generated for a batch in the place of those of which nothing
    /// trains (DAPO's dynamic sampling). When they are used up, the batch goes on with the groups that it
    /// has, and says so; it waits for one at least. As many as it takes where not given.
    pub max_refill_batches: Option<u64>,
    /// Attempts at one response before it counts as failed for good. What only an actor is to blame for is
    /// not counted.
    pub max_attempts: u16,
    /// What is not scored by then is issued anew.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub lease_timeout: Duration,
    /// A member silent for longer is lost.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub heartbeat_timeout: Duration,
    /// How long a broadcast group may take to form, and weights to arrive.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub broadcast_timeout: Duration,
    /// Most actors that receive weights together; the others pull them from the learner.
    pub broadcast_members: usize,
    /// How long a drain waits for actors to finish what they have begun.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub drain_timeout: Duration,
    /// How long a cause that cannot go away by itself (no actor has room for a group, every attempt fails, no
    /// group can be trained, nothing moves) may hold before the run ends with exit code 3.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub hopeless_timeout: Duration,
    /// Groups in a row of which nothing can be trained, from which on nobody expects another.
    pub hopeless_groups: u64,
    /// How long nothing may move; a run with slow steps is given five times what its longest one took.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub standstill_timeout: Duration,
    /// How long a batch that has enough groups waits for groups that were begun earlier and would be too old
    /// for the next batch. Without it, long responses train less often than they are generated. Synchronous
    /// runs never wait.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub straggler_timeout: Duration,
    /// Responses that people can read.
    pub samples: SamplesConfig,
    /// The prompts.
    pub data: DataConfig,
    /// Which prompts come next.
    pub schedule: Schedule,
    /// Which rollouts train.
    pub filtration: FiltrationPlan,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Held-out prompts that are asked now and then; nothing is learnt from them.
    pub eval: Option<EvalConfig>,
    /// Responses are episodes of several turns: the reward servers have an environment. Follows from
    /// `reward_server.environment` in a recipe.
    pub episodes: bool,
    /// What the other roles are told, by dotted key such as `learner.ppo.policy_lr`: recorded with the run,
    /// so that a change between two starts is listed, or refused by name. Follows from the recipe.
    pub told: BTreeMap<String, String>,
    /// The process.
    pub service: ServiceConfig,
}

/// Which responses are written down with their texts, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplesConfig {
    /// Receives a JSON line for each: prompt and response, score, each scorer's own number, outcome, length,
    /// why it ended, whether it trains or why not; none when empty.
    pub file: Option<PathBuf>,
    /// Lines for each batch trained, and for each minute without one; 0 for none. The prompts are chosen when
    /// they are leased; of a group with more responses those from the worst to the best are taken.
    pub per_batch: usize,
    /// Bytes of the file and of the one before it, `NAME.previous.jsonl`, together.
    pub max_bytes: u64,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        // About 20,000 responses of a thousand tokens.
        Self { file: None, per_batch: 8, max_bytes: 64 << 20 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            run: "run".to_owned(),
            seed: 0,
            listen: SocketAddr::from(([127, 0, 0, 1], 7700)),
            journal: PathBuf::from("journal"),
            // As much as the store keeps in one file of its log.
            journal_reserve_bytes: 64 << 20,
            steps_file: None,
            batches: 100,
            batch_prompts: 64,
            // The paper's N, and what remains of it after best-worst.
            group_size: 5,
            min_group: 2,
            max_staleness: 0,
            max_prompts_in_flight: 1024,
            lease_prompts: 8,
            deterministic: false,
            send_filtered: false,
            max_refill_batches: None,
            max_attempts: 3,
            // Longer than any sane generation; a lost actor is noticed much sooner by its silence.
            lease_timeout: Duration::from_secs(1800),
            heartbeat_timeout: Duration::from_secs(10),
            broadcast_timeout: Duration::from_secs(60),
            broadcast_members: 32,
            drain_timeout: Duration::from_secs(20),
            // Longer than a reward service or a cluster's scheduler needs to come back.
            hopeless_timeout: Duration::from_secs(300),
            // With signal in one group of a hundred the chance of so many in a row without is 3e-5.
            hopeless_groups: 1024,
            standstill_timeout: Duration::from_secs(3600),
            // Longer than a response takes, shorter than a lease of an actor that is stuck.
            straggler_timeout: Duration::from_secs(300),
            samples: SamplesConfig::default(),
            data: DataConfig::default(),
            schedule: Schedule::default(),
            filtration: FiltrationPlan::default(),
            sampling: Sampling::default(),
            eval: None,
            episodes: false,
            told: BTreeMap::new(),
            service: ServiceConfig::default(),
        }
    }
}

impl service::Config for Config {
    fn service(&self) -> &ServiceConfig {
        &self.service
    }

    fn doors(&self) -> Vec<Door> {
        vec![Door::new("listen", self.listen)]
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, problem: String| {
            if !ok {
                problems.push(problem);
            }
        };
        if let Err(error) = RunId::try_from(self.run.clone()) {
            check(false, error.to_string());
        }
        for problem in self.filtration.problems() {
            check(false, problem);
        }
        if let Some(problem) = self.schedule.problem() {
            check(false, problem);
        }
        for problem in self.data.problems() {
            check(false, problem);
        }
        check(
            self.data.sets.is_empty() || self.schedule.order != Order::Vade,
            "schedule.order = \"vade\" selects among all prompts: the shares of data.sets would mean nothing"
                .into(),
        );
        check(self.batches > 0, "batches must be at least 1".into());
        check(self.batch_prompts > 0, "batch_prompts must be at least 1".into());
        check(self.group_size > 0, "group_size must be at least 1".into());
        check(self.lease_prompts > 0, "lease_prompts must be at least 1".into());
        check(self.max_attempts > 0, "max_attempts must be at least 1".into());
        check(
            (1..=self.group_size).contains(&self.min_group),
            format!(
                "min_group is {}, must be between 1 and group_size = {}",
                self.min_group, self.group_size
            ),
        );
        check(
            self.max_prompts_in_flight >= self.batch_prompts || self.max_staleness > 0,
            format!(
                "max_prompts_in_flight = {} is below batch_prompts = {}: a synchronous batch could never fill",
                self.max_prompts_in_flight, self.batch_prompts
            ),
        );
        check(
            !self.deterministic || self.max_staleness == 0,
            format!("deterministic runs are synchronous: set max_staleness = 0, not {}", self.max_staleness),
        );
        check(
            self.samples.max_bytes >= MIN_SAMPLES_BYTES,
            format!("samples.max_bytes must be at least {MIN_SAMPLES_BYTES}"),
        );
        for problem in self.eval.iter().flat_map(|eval| eval.problems(self.group_size)) {
            check(false, format!("eval.{problem}"));
        }
        check(self.hopeless_groups > 0, "hopeless_groups must be at least 1".into());
        check(
            self.heartbeat_timeout >= Duration::from_secs(1),
            "heartbeat_timeout must be at least 1s".into(),
        );
        problems
    }
}

impl Config {
    /// Whether each epoch has an order of its own. VADE has no epochs, and a curriculum knows a prompt by its
    /// place.
    pub(crate) fn shuffles(&self) -> bool {
        self.data.shuffle && self.schedule.order == Order::Epochs
    }

    /// The data sets, where there are several.
    fn sets(&self, data: &DataSet) -> Vec<SetPlan> {
        let mut sets = Vec::with_capacity(self.data.sets.len());
        for (set, prompts) in self.data.sets.iter().zip(data.part_sizes()) {
            sets.push(SetPlan { name: set.name.clone(), prompts, share: set.share });
        }
        sets
    }

    fn evaluation(&self, data: &DataSet) -> Result<Option<EvaluationPlan>, types::Invalid> {
        let of = self.eval.as_ref().zip(data.held_out());
        of.map(|(eval, held_out)| eval.plan(held_out, &self.sampling)).transpose()
    }

    /// The plan of the run over this data set.
    ///
    /// # Errors
    /// When the run's name is no name.
    pub fn plan(&self, data: &DataSet) -> Result<RunPlan, types::Invalid> {
        Ok(RunPlan {
            run: RunId::try_from(self.run.clone())?,
            seed: self.seed,
            prompts: data.len() as u64,
            sets: self.sets(data),
            data_hash: data.hash().to_owned(),
            shuffle: self.shuffles(),
            schedule: self.schedule,
            group_size: self.group_size,
            batch_prompts: self.batch_prompts,
            batches: self.batches,
            max_staleness: self.max_staleness,
            max_prompts_in_flight: self.max_prompts_in_flight,
            lease_prompts: self.lease_prompts,
            deterministic: self.deterministic,
            lease_timeout: self.lease_timeout,
            heartbeat_timeout: self.heartbeat_timeout,
            broadcast_timeout: self.broadcast_timeout,
            broadcast_members: self.broadcast_members,
            drain_timeout: self.drain_timeout,
            hopeless_timeout: self.hopeless_timeout,
            hopeless_groups: self.hopeless_groups,
            standstill_timeout: self.standstill_timeout,
            straggler_timeout: self.straggler_timeout,
            max_attempts: self.max_attempts,
            min_group: self.min_group,
            filtration: self.filtration.clone(),
            send_filtered: self.send_filtered,
            max_refill_batches: self.max_refill_batches,
            sampling: self.sampling.clone(),
            evaluation: self.evaluation(data)?,
            episodes: self.episodes,
            told: self.told.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use service::Config as _;

    use super::*;

    #[test]
    fn every_problem_is_listed() {
        let bad = Config {
            run: "a b".into(),
            batches: 0,
            min_group: 9,
            deterministic: true,
            max_staleness: 2,
            ..Config::default()
        };
        let problems = bad.problems();
        for expected in ["run \"a b\"", "data.path", "batches", "min_group is 9", "deterministic"] {
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
        }
    }

    #[test]
    fn the_defaults_lack_only_the_data() {
        assert_eq!(Config::default().problems(), ["data.path is missing: name a file of prompts"]);
    }
}
