//! The reward server's configuration.

mod environment;
mod flat_table;
mod need;
mod required;
mod scorer;
mod share;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use extraction::Extract;
use model::Device;
use sandbox::{GraderConfig, Limits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service::ServiceConfig;
use service::security::Door;
use types::{DType, MemberId};

pub use environment::{
    CallSyntax, ClassFile, EnvironmentConfig, EnvironmentKind, EpisodeBounds, EpisodePlaces, HttpEnvironment,
    HttpShape, ProgramFile, PythonTool,
};
pub use scorer::{
    EnvironmentReward, ExactMatch, Format, Http, LengthPenalty, MathMatch, NumericMatch, Python, RegexMatch,
    RepetitionPenalty, RewardModel, Rule, ScorerConfig, ScorerKind, UnitTests,
};
pub use share::{Gate, Share};

/// Everything the reward server can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Its name, unique among the run's reward servers. Made of host, process and something random when
    /// empty.
    pub member: String,
    /// `host:port` of the coordinator. Without one only the HTTP endpoint is served.
    pub coordinator: Option<String>,
    /// How long there may be no stream to the coordinator before the process gives up.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub connect_timeout: Duration,
    /// Where actors connect. Loopback by default.
    pub listen: SocketAddr,
    /// `host:port` under which actors reach it; the bound address where not given.
    pub advertise: Option<String>,
    /// Every rollout is scored in a batch of its own, so that its numbers do not depend on what arrived with
    /// it.
    pub deterministic: bool,
    /// Folder of the policy's tokenizer; that of the reference, else of the first reward model, where not
    /// given. With another than the policy's the coordinator refuses the server.
    #[schemars(extend("x-kind" = "tokenizer folder"))]
    pub tokenizer: Option<PathBuf>,
    /// What is not scored this long after its arrival has failed; sooner where its lease runs out sooner.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub scoring_timeout: Duration,
    /// Keeps the combined score within `[low, high]`.
    pub clip: Option<[f64; 2]>,
    /// What waits or is worked on.
    pub queue: QueueConfig,
    /// How the frozen networks are run.
    pub models: ModelsConfig,
    /// The reference policy. Without it the rollouts carry no reference log-probs.
    pub reference: Option<ReferenceConfig>,
    /// Runs unit tests. With it, the outcome of every problem that has tests is reported, whatever the
    /// scorers' weights, unless a scorer is marked as the yardstick.
    pub sandbox: Option<SandboxConfig>,
    /// What the policy acts in over several turns. Without it a response is one turn.
    pub environment: Option<EnvironmentConfig>,
    /// Agents play the episodes, and what they say that one is worth is what the scorer `environment` takes.
    /// Follows from `actor.agents.enabled` in a recipe.
    pub agents: bool,
    /// The scorers; their weighted sum is the score.
    pub scorers: Vec<ScorerConfig>,
    /// The HTTP endpoint for programs that are not Sluice.
    pub endpoint: EndpointConfig,
    /// Logging, metrics and shutdown of the process.
    pub service: ServiceConfig,
}

/// Bounds of what is in work. A rollout leaves when the coordinator's journal has its fate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Most rollouts.
    pub max_rollouts: usize,
    /// Most bytes of rollouts, as estimated from their tokens and fields.
    pub max_bytes: usize,
    /// Rollouts of one actor's stream that may await their answer; then the stream is read no further.
    pub stream_rollouts: usize,
    /// Actors' streams; one more is answered `RESOURCE_EXHAUSTED`, and the actor goes elsewhere or tries
    /// later.
    pub max_streams: usize,
}

impl Default for QueueConfig {
    fn default() -> Self {
        // A batch of the default recipe is 64 prompts of 5 responses; a few of them fit.
        Self { max_rollouts: 2048, max_bytes: 512 << 20, stream_rollouts: 1024, max_streams: 1024 }
    }
}

/// How the frozen networks are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsConfig {
    /// The device that holds and computes them.
    pub device: Device,
    /// Element type of their weights in memory; that of the files where not given.
    pub dtype: Option<DType>,
    /// Threads of one operation; all cores where not given. Another number may change the last bits.
    pub threads: Option<usize>,
    /// Most tokens of a batch; a longer sequence is a batch of its own.
    pub batch_tokens: usize,
    /// How long a batch that is not full waits for more.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub batch_delay: Duration,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: None,
            threads: None,
            // Enough for matrix products to be efficient, little enough for the activations to stay small.
            batch_tokens: 8192,
            // While a batch is computed the next one gathers by itself; this only helps the first.
            batch_delay: Duration::from_millis(2),
        }
    }
}

/// Torch's name of an element type.
pub(crate) fn torch_kind(dtype: DType) -> tch::Kind {
    match dtype {
        DType::F32 => tch::Kind::Float,
        DType::Bf16 => tch::Kind::BFloat16,
        DType::F16 => tch::Kind::Half,
    }
}

/// The reference policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferenceConfig {
    /// A folder with a `*ForCausalLM`.
    #[schemars(extend("x-kind" = "model folder"))]
    pub model: PathBuf,
    /// The temperature at which its log-probs are taken; 0 (greedy) means 1. That of the run's sampling,
    /// which the coordinator tells, when absent; another one is refused then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

/// How unit tests are run: in the ring, and by the tools that grade files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxConfig {
    /// Workers, tiers, interpreter.
    pub grader: GraderConfig,
    /// What a response may use.
    pub limits: Limits,
    /// Which part of a response is the program.
    pub extract: Extract,
    /// Verdicts that are remembered, so that equal programs are run once.
    pub cache: CacheConfig,
}

/// The memory of verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Most verdicts; 0 runs every program.
    pub entries: usize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { entries: 65_536 }
    }
}

/// `POST /get_reward`, in the shape of OpenRLHF's remote reward models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointConfig {
    /// Whether it is served. Off by default.
    pub enabled: bool,
    /// Where it is served; loopback by default. Port 0 takes any free port; log and address file say which,
    /// under `rewards`.
    pub listen: SocketAddr,
    /// Most texts in work for all its callers; more are answered 429.
    pub max_texts: usize,
    /// Largest body of a request.
    pub max_bytes: usize,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { enabled: false, listen, max_texts: 1024, max_bytes: 32 << 20 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            member: String::new(),
            coordinator: None,
            connect_timeout: Duration::from_secs(600),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            deterministic: false,
            tokenizer: None,
            // Longer than a sandboxed program with many cases or a remote model may take.
            scoring_timeout: Duration::from_secs(120),
            clip: None,
            queue: QueueConfig::default(),
            models: ModelsConfig::default(),
            reference: None,
            sandbox: None,
            environment: None,
            agents: false,
            scorers: Vec::new(),
            endpoint: EndpointConfig::default(),
            service: ServiceConfig::default(),
        }
    }
}

impl Config {
    /// The folder of the policy's tokenizer, if anything names one.
    pub fn tokenizer_dir(&self) -> Option<&Path> {
        let reward_model = self.scorers.iter().find_map(|scorer| match &scorer.kind {
            ScorerKind::RewardModel(reward_model) => Some(&reward_model.model),
            _ => None,
        });
        let reference = self.reference.as_ref().map(|reference| &reference.model);
        self.tokenizer.as_ref().or(reference).or(reward_model).map(PathBuf::as_path)
    }

    /// Whether code of the operator's runs for it, or a remote service is asked: these reach whom they like.
    pub fn may_ask_others(&self) -> bool {
        let by_scorer = self
            .scorers
            .iter()
            .any(|scorer| matches!(scorer.kind, ScorerKind::Http(_) | ScorerKind::Python(_)));
        let kind = self.environment.as_ref().map(|environment| &environment.kind);
        let asks = |kind: &EnvironmentKind| !matches!(kind, EnvironmentKind::Python(_));
        by_scorer || kind.is_some_and(asks)
    }

    /// Whether a scorer says which responses are right, so that no hidden tests are needed for that.
    pub fn has_yardstick(&self) -> bool {
        !self.yardsticks().is_empty()
    }

    /// The places of the scorers that are marked as yardstick.
    fn yardsticks(&self) -> Vec<usize> {
        let scorers = self.scorers.iter().enumerate();
        scorers.filter(|(_, scorer)| scorer.share.yardstick).map(|(index, _)| index).collect()
    }

    /// Whether anything reads text, so that a tokenizer is needed.
    pub(crate) fn needs_text(&self) -> bool {
        self.sandbox.is_some()
            || self.environment.is_some()
            || self.endpoint.enabled
            || self.scorers.iter().any(|scorer| scorer.kind.reads_text())
    }

    fn queue_problems(&self, problems: &mut Vec<String>) {
        let positive = [
            ("queue.max_rollouts", self.queue.max_rollouts),
            ("queue.max_bytes", self.queue.max_bytes),
            ("queue.stream_rollouts", self.queue.stream_rollouts),
            ("queue.max_streams", self.queue.max_streams),
            ("models.batch_tokens", self.models.batch_tokens),
            ("models.threads", self.models.threads.unwrap_or(1)),
            ("endpoint.max_texts", self.endpoint.max_texts),
        ];
        let zero = positive.into_iter().filter(|(_, value)| *value == 0);
        problems.extend(zero.map(|(name, _)| format!("{name} must be at least 1")));
        if self.scoring_timeout.is_zero() {
            problems.push("scoring_timeout must be above 0s".to_owned());
        }
    }

    /// The reward server's name.
    ///
    /// # Errors
    /// When the configured one is no name.
    pub(crate) fn member_id(&self) -> Result<MemberId, types::Invalid> {
        if self.member.is_empty() { service::unique_name("reward").parse() } else { self.member.parse() }
    }

    fn address_problems(&self, problems: &mut Vec<String>) {
        if let Err(error) = self.member_id() {
            problems.push(error.to_string());
        }
        if self.coordinator.is_none() && !self.endpoint.enabled {
            problems.push(
                "coordinator is missing: name its host:port, or set endpoint.enabled = true".to_owned(),
            );
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() && self.coordinator.is_some() {
            problems.push(format!(
                "listen is {}, which actors cannot connect to: set advertise to the host:port they reach",
                self.listen
            ));
        }
    }
}

impl service::Config for Config {
    fn service(&self) -> &ServiceConfig {
        &self.service
    }

    fn doors(&self) -> Vec<Door> {
        let mut doors = Vec::new();
        doors.extend(self.coordinator.is_some().then(|| Door::new("listen", self.listen)));
        doors.extend(self.endpoint.enabled.then(|| Door::new("endpoint.listen", self.endpoint.listen)));
        doors
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        self.address_problems(&mut problems);
        self.queue_problems(&mut problems);
        if self.scorers.is_empty() {
            problems.push("scorers is empty: a rollout needs a score".to_owned());
        } else if self.scorers.iter().all(|scorer| scorer.weight() == 0.0) {
            problems.push("every scorer has weight 0: all scores would be 0".to_owned());
        }
        if let [_, second, ..] = self.yardsticks()[..] {
            problems.push(format!("scorers[{second}].yardstick is true, and an earlier one's too: mark one"));
        }
        for (index, scorer) in self.scorers.iter().enumerate() {
            problems
                .extend(scorer.problems().into_iter().map(|problem| format!("scorers[{index}].{problem}")));
            if matches!(scorer.kind, ScorerKind::UnitTests(_)) && self.sandbox.is_none() {
                problems.push(format!("scorers[{index}] runs unit tests: add a [sandbox] section"));
            }
            let rewards =
                self.agents || self.environment.as_ref().is_some_and(EnvironmentConfig::gives_rewards);
            if matches!(scorer.kind, ScorerKind::Environment(_)) && !rewards {
                problems.push(format!(
                    "scorers[{index}] takes the environment's reward: add an [environment] section of kind class, which \
                     gives rewards, or let agents play (actor.agents.enabled)"
                ));
            }
        }
        let environment = self.environment.iter().flat_map(EnvironmentConfig::problems);
        problems.extend(environment.map(|problem| format!("environment.{problem}")));
        if let Some(temperature) = self.reference.as_ref().and_then(|reference| reference.temperature)
            && !(temperature.is_finite() && temperature >= 0.0)
        {
            problems.push(format!("reference.temperature is {temperature}, must be at least 0"));
        }
        if self.reference.as_ref().is_some_and(|reference| reference.model.as_os_str().is_empty()) {
            problems.push("reference.model is empty: name the reference policy's folder".to_owned());
        }
        if let Some([low, high]) = self.clip
            && !matches!(low.partial_cmp(&high), Some(std::cmp::Ordering::Less))
        {
            problems.push(format!("clip is [{low}, {high}], the first must be below the second"));
        }
        if self.needs_text() && self.tokenizer_dir().is_none() {
            problems.push("tokenizer is missing: name the folder of the policy's tokenizer".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use service::Config as _;
    use service::config::{Layers, render};

    use super::*;

    fn parse(text: &str) -> Result<Config, service::config::Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("reward.toml");
        std::fs::write(&file, text).unwrap();
        let mut layers = Layers::default();
        layers.add_file(&file)?;
        layers.parse()
    }

    const FULL: &str = r#"
        coordinator = "127.0.0.1:7700"
        scoring_timeout = "30s"
        [reference]
        model = "sft"
        temperature = 0.7
        [models]
        device = "cuda:1"
        dtype = "bf16"
        [sandbox]
        extract = "code-block"
        [sandbox.limits]
        cpu = "1s"
        [[scorers]]
        kind = "reward-model"
        model = "rm"
        [[scorers]]
        kind = "unit-tests"
        rule = "all"
        weight = 0.5
        [[scorers]]
        kind = "format"
        code_block = true
        gate = "floor"
        threshold = 1.0
        floor = -1
        [[scorers]]
        kind = "http"
        url = "http://127.0.0.1:5000/get_reward"
        timeout = "5s"
    "#;

    #[test]
    fn every_section_is_read_and_written_back() {
        let config = parse(FULL).unwrap();
        assert_eq!(config.models.device, Device::Cuda(1));
        assert_eq!(config.scorers.len(), 4);
        assert_eq!(config.scorers[1].weight(), 0.5);
        assert_eq!(config.scorers[2].weight(), 0.0, "a gate adds nothing unless told to");
        assert_eq!(config.tokenizer_dir(), Some(Path::new("sft")));
        assert_eq!(parse(&render(&config)).unwrap(), config);
    }

    #[test]
    fn a_reference_without_a_folder_is_named() {
        let config = parse(&FULL.replace("model = \"sft\"", "model = \"\"")).unwrap();
        let problems = config.problems();
        assert!(
            problems.iter().any(|problem| problem.starts_with("reference.model is empty")),
            "{problems:?}"
        );
    }

    #[test]
    fn a_misspelt_key_of_a_scorer_is_named_with_the_right_one() {
        let error = parse(&FULL.replace("rule =", "rulle =")).unwrap_err().to_string();
        assert!(error.contains("rulle") && error.contains("rule"), "{error}");
        let error = parse(&FULL.replace("\"format\"", "\"fromat\"")).unwrap_err().to_string();
        assert!(error.contains("fromat") && error.contains("format"), "{error}");
        let error = parse(&FULL.replace("cuda:1", "gpu")).unwrap_err().to_string();
        assert!(error.contains("must be cpu, cuda"), "{error}");
    }

    #[test]
    fn every_problem_is_listed() {
        let bad = r#"
            member = "a b"
            listen = "0.0.0.0:0"
            coordinator = "c:1"
            clip = [1.0, -1.0]
            [queue]
            max_bytes = 0
            [[scorers]]
            kind = "unit-tests"
            weight = 0.0
            [[scorers]]
            kind = "regex"
            pattern = "("
            weight = 0.0
            std = 0.0
        "#;
        let problems = parse(bad).unwrap().problems();
        let expected = [
            "member \"a b\"",
            "advertise",
            "clip",
            "queue.max_bytes",
            "every scorer has weight 0",
            "[sandbox]",
            "scorers[1].pattern",
            "scorers[1].std",
            "tokenizer is missing",
        ];
        for expected in expected {
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected}: {problems:?}");
        }
        assert_eq!(Config::default().problems().len(), 2, "{:?}", Config::default().problems());
    }
}
