//! What an environment is told. It is one flat table: the bounds of every episode beside the keys of its
//! kind.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use sandbox::{Limits, SessionLimits};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use types::link::environment::OnRewrite;

use super::flat_table;

/// Keys of every environment; all others are its kind's.
const BOUND_KEYS: [&str; 7] =
    ["turns", "max_tokens", "wall", "tool_time", "observation_bytes", "episodes", "on_rewrite"];

/// Nothing of an environment is more than this: a bound against nonsense.
const MOST: usize = 1 << 24;

/// What episodes act in, and what bounds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct EnvironmentConfig {
    /// What every episode may have.
    pub bounds: EpisodeBounds,
    /// What it acts in.
    pub kind: EnvironmentKind,
}

/// What an episode may have. One that reaches a bound is cut off: it is scored as it is then, as a truncated
/// response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EpisodeBounds {
    /// Most turns of the policy.
    pub turns: u32,
    /// Most tokens that it draws in all turns together; `coordinator.sampling.max_new_tokens` bounds each
    /// turn.
    pub max_tokens: u32,
    /// Longest time from its beginning to its last turn.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub wall: Duration,
    /// Longest time of all calls of tools together.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub tool_time: Duration,
    /// Most bytes of what a call returns that are shown to the policy: its beginning and its end, with a mark
    /// between them.
    pub observation_bytes: usize,
    /// Episodes under way at a time on a reward server; actors try one more elsewhere, or later.
    pub episodes: usize,
    /// What becomes of an episode whose chat template rewrites what came before: that drops the thoughts of
    /// turns before, as Qwen3's does.
    pub on_rewrite: OnRewrite,
}

impl Default for EpisodeBounds {
    fn default() -> Self {
        Self {
            turns: 8,
            max_tokens: 8192,
            wall: Duration::from_secs(600),
            tool_time: Duration::from_secs(60),
            observation_bytes: 8 << 10,
            episodes: 1024,
            // Ended, an episode of a model that thinks would have one turn, whatever it has called.
            on_rewrite: OnRewrite::Split,
        }
    }
}

/// What episodes act in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EnvironmentKind {
    /// A Python interpreter in the sandbox, one for each episode: what a call defines is there for the next
    /// one. A turn without a call ends the episode.
    Python(PythonTool),
    /// Functions of a Python file that the policy calls as tools, in the form that its chat template teaches.
    /// Their signatures and docstrings are what it is told of them. A turn without a call ends the episode.
    Tools(ProgramFile),
    /// A Python class with `reset(**fields)` and `step(text)`, an instance for each episode. `step` returns
    /// what is said, or `(observation, reward, terminated, truncated, info)` as Gymnasium has it; the scorer
    /// of kind `environment` has the sum of the rewards.
    Class(ClassFile),
    /// An environment at a remote server: `POST URL/reset` and `POST URL/step` with JSON, as OpenEnv or a
    /// Gym-like server has them. The scorer of kind `environment` has the sum of the rewards.
    Http(HttpEnvironment),
}

/// A Python interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PythonTool {
    /// How the policy asks for code to be run.
    pub calls: CallSyntax,
    /// Episodes that have an interpreter at a time. One has it from its first call on; others wait for it
    /// with theirs.
    pub interpreters: usize,
    /// What a call may use. Memory, files and processes are those of the episode's interpreter at any time.
    pub limits: Limits,
}

impl Default for PythonTool {
    fn default() -> Self {
        // Interpreters stand still between calls: more of them than cores wait for nobody.
        Self { calls: CallSyntax::default(), interpreters: 16, limits: SessionLimits::default().step }
    }
}

/// The operator's own functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProgramFile {
    /// The file: the functions of its list `TOOLS`, or all whose names begin with no underscore.
    #[schemars(extend("x-kind" = "file"))]
    pub file: PathBuf,
    /// The interpreter that runs it.
    #[serde(default = "python3")]
    pub interpreter: PathBuf,
    /// Worker processes; each answers one call at a time.
    #[serde(default = "four")]
    pub workers: usize,
    /// How long a call may take; then its worker is killed and replaced, and the policy is told.
    #[serde(default = "half_a_minute", with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub timeout: Duration,
    /// Address space of a worker; 0 is unlimited.
    #[serde(default = "four_gibibytes")]
    pub memory_bytes: u64,
}

/// The operator's own class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassFile {
    /// The file.
    #[schemars(extend("x-kind" = "file"))]
    pub file: PathBuf,
    /// The class's name; where not given `Environment`, `Env`, or the only one with `reset` and `step`.
    #[serde(default)]
    pub class: Option<String>,
    /// The interpreter that runs it.
    #[serde(default = "python3")]
    pub interpreter: PathBuf,
    /// Worker processes; each has the instances of many episodes and answers one call at a time.
    #[serde(default = "four")]
    pub workers: usize,
    /// How long a call may take; then its worker is killed, and the episodes that it has have failed.
    #[serde(default = "half_a_minute", with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub timeout: Duration,
    /// Address space of a worker; 0 is unlimited.
    #[serde(default = "four_gibibytes")]
    pub memory_bytes: u64,
}

impl ClassFile {
    /// How its workers are run.
    pub(crate) fn file(&self) -> ProgramFile {
        let Self { file, interpreter, workers, timeout, memory_bytes, .. } = self.clone();
        ProgramFile { file, interpreter, workers, timeout, memory_bytes }
    }
}

/// A remote environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpEnvironment {
    /// Where it is: `http://` or `https://`, and `/reset` and `/step` are put behind it; or `ws://` or
    /// `wss://`, OpenEnv's WebSocket, `/ws` is put behind it, and each episode has a connection.
    pub url: String,
    /// What is sent and what is answered.
    #[serde(default)]
    pub shape: HttpShape,
    /// The field of an action that holds what the policy wrote in a turn. Of a `gym` server the action is
    /// that text itself where not given.
    #[serde(default)]
    pub action_field: Option<String>,
    /// The field of an observation that is told to the policy. Where not given it is the observation: a text
    /// as it is, anything else as JSON.
    #[serde(default)]
    pub observation_field: Option<String>,
    /// The field of the answer to a reset that names the episode, where the server gives names of its own. It
    /// is sent with every step.
    #[serde(default)]
    pub session_field: Option<String>,
    /// A file whose first line is sent as bearer token.
    #[serde(default)]
    #[schemars(extend("x-kind" = "file"))]
    pub token_file: Option<PathBuf>,
    /// How long an answer may take; then the episode has failed.
    #[serde(default = "half_a_minute", with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub timeout: Duration,
    /// Attempts to reset after the first. A step is sent once.
    #[serde(default = "three")]
    pub retries: u32,
    /// Requests at a time.
    #[serde(default = "sixty_four")]
    pub concurrency: usize,
}

/// What a remote environment is sent, and what it answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HttpShape {
    /// As OpenEnv has it: the prompt's fields beside `seed` and `episode_id`; then `{"action":
    /// {"message": TEXT}}`, answered by `observation`, `reward` and `done`.
    #[default]
    Openenv,
    /// As Gymnasium has it: `seed` and `options` with the prompt's fields; then `{"action": TEXT}`, answered
    /// by `observation`, `reward`, `terminated` and `truncated`, or by these as a list.
    Gym,
}

impl HttpEnvironment {
    /// Whether episodes have connections.
    pub(crate) fn is_websocket(&self) -> bool {
        ["ws://", "wss://"].iter().any(|scheme| self.url.starts_with(scheme))
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let is_http = ["http://", "https://"].iter().any(|scheme| self.url.starts_with(scheme));
        if !is_http && !self.is_websocket() {
            problems
                .push(format!("url is {:?}, must start with http://, https://, ws:// or wss://", self.url));
        }
        if self.is_websocket() {
            if self.shape != HttpShape::Openenv {
                problems.push(format!(
                    "shape is \"gym\", but url is {:?}: only openenv has a WebSocket",
                    self.url
                ));
            }
            if self.session_field.is_some() {
                problems.push(
                    "session_field is of http:// and https://: a WebSocket is the episode's own".to_owned(),
                );
            }
        }
        if self.timeout.is_zero() {
            problems.push("timeout must be above 0s".to_owned());
        }
        // Each takes a thread; tokio has 512 for all that blocks.
        if self.concurrency > 256 {
            problems.push(format!("concurrency is {}, must be at most 256", self.concurrency));
        }
        problems
    }
}

fn python3() -> PathBuf {
    PathBuf::from("python3")
}
fn four() -> usize {
    4
}
fn three() -> u32 {
    3
}
fn sixty_four() -> usize {
    64
}
fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}
fn four_gibibytes() -> u64 {
    4 << 30
}

/// How a policy asks for code to be run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CallSyntax {
    /// By a call of the tool `python` with the argument `code`, in the form that the policy's chat template
    /// teaches (Hermes and Qwen, Llama, Mistral, else JSON).
    #[default]
    Tool,
    /// By fenced blocks that are marked as Python (ToRA, arXiv 2309.17452).
    Block,
}

/// How many episodes can go on at a time, whatever the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpisodePlaces {
    /// The key that bounds them.
    pub key: &'static str,
    /// Its value.
    pub places: usize,
}

impl EnvironmentConfig {
    /// How many episodes can go on at a time on one reward server without one waiting for another to end.
    pub fn places(&self) -> EpisodePlaces {
        let episodes = EpisodePlaces { key: "episodes", places: self.bounds.episodes };
        match &self.kind {
            EnvironmentKind::Python(python) if python.interpreters < episodes.places => {
                EpisodePlaces { key: "interpreters", places: python.interpreters }
            }
            _ => episodes,
        }
    }

    /// Whether it says what an episode is worth.
    pub(super) fn gives_rewards(&self) -> bool {
        matches!(self.kind, EnvironmentKind::Class(_) | EnvironmentKind::Http(_))
    }

    /// What is wrong with it: the key, and why.
    pub fn problems(&self) -> Vec<String> {
        let EpisodeBounds { turns, max_tokens, wall, tool_time, observation_bytes, episodes, on_rewrite: _ } =
            &self.bounds;
        let (name, workers) = match &self.kind {
            EnvironmentKind::Python(python) => ("interpreters", python.interpreters),
            EnvironmentKind::Tools(file) => ("workers", file.workers),
            EnvironmentKind::Class(class) => ("workers", class.workers),
            EnvironmentKind::Http(http) => ("concurrency", http.concurrency),
        };
        let numbers = [
            ("turns", *turns as usize),
            ("max_tokens", *max_tokens as usize),
            ("episodes", *episodes),
            (name, workers),
        ];
        let many = numbers.iter().filter(|(_, number)| *number > MOST);
        let many = many.map(|(name, number)| format!("{name} is {number}, must be at most {MOST}"));
        let mut problems: Vec<String> = many.collect();
        let zero = numbers.into_iter().filter(|(_, number)| *number == 0);
        problems.extend(zero.map(|(name, _)| format!("{name} must be at least 1")));
        if let EnvironmentKind::Http(http) = &self.kind {
            problems.extend(http.problems());
        }
        for (name, time) in [("wall", wall), ("tool_time", tool_time)] {
            if time.is_zero() {
                problems.push(format!("{name} must be above 0s"));
            }
        }
        let most = types::link::environment::MAX_ENVIRONMENT_BYTES / 4;
        if !(64..=most).contains(observation_bytes) {
            problems.push(format!("observation_bytes is {observation_bytes}, must be 64 to {most}"));
        }
        problems
    }
}

impl TryFrom<Map<String, Value>> for EnvironmentConfig {
    type Error = serde_json::Error;

    fn try_from(table: Map<String, Value>) -> Result<Self, serde_json::Error> {
        let (bounds, kind) = flat_table::split(table, &BOUND_KEYS)?;
        Ok(Self { bounds, kind })
    }
}

/// The keys of an environment, side by side as they are written.
#[derive(Serialize, JsonSchema)]
struct EnvironmentKeys {
    #[serde(flatten)]
    bounds: EpisodeBounds,
    #[serde(flatten)]
    kind: EnvironmentKind,
}

impl JsonSchema for EnvironmentConfig {
    fn schema_name() -> Cow<'static, str> {
        "EnvironmentConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        EnvironmentKeys::json_schema(generator)
    }
}

impl From<EnvironmentConfig> for Map<String, Value> {
    fn from(config: EnvironmentConfig) -> Self {
        flat_table::join(config.bounds, config.kind)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(table: Value) -> Result<EnvironmentConfig, String> {
        serde_json::from_value(table).map_err(|error| error.to_string())
    }

    #[test]
    fn bounds_and_kind_stand_in_one_table() {
        let config = read(json!({"kind": "python", "turns": 3, "calls": "block"})).unwrap();
        assert_eq!(config.bounds, EpisodeBounds { turns: 3, ..EpisodeBounds::default() });
        let EnvironmentKind::Python(python) = &config.kind else { panic!("another kind") };
        assert_eq!(python.calls, CallSyntax::Block);
        assert_eq!(python.limits, SessionLimits::default().step, "a call's code is bounded as a session's");
        let written = serde_json::to_value(&config).unwrap();
        assert_eq!((&written["kind"], &written["turns"]), (&json!("python"), &json!(3)));
        assert_eq!(read(written), Ok(config));
        assert!(read(json!({"kind": "python", "turn": 3})).unwrap_err().contains("turn"));
        assert!(read(json!({"turns": 3})).unwrap_err().contains("kind"));
    }

    #[test]
    fn bounds_that_allow_nothing_are_named() {
        let bad =
            json!({"kind": "python", "turns": 0, "wall": "0s", "observation_bytes": 1, "interpreters": 0});
        let problems = read(bad).unwrap().problems();
        for expected in ["turns must", "interpreters must", "wall must", "observation_bytes is 1"] {
            assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:?}");
        }
        assert_eq!(read(json!({"kind": "python"})).unwrap().problems(), Vec::<String>::new());
        let bad = json!({"kind": "http", "url": "localhost:8000", "concurrency": 0, "timeout": "0s"});
        let problems = read(bad).unwrap().problems();
        for expected in ["url is", "concurrency must", "timeout must"] {
            assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:?}");
        }
        for sound in [
            json!({"kind": "http", "url": "http://localhost:8000", "shape": "gym"}),
            json!({"kind": "http", "url": "wss://localhost:8000"}),
        ] {
            assert_eq!(read(sound).unwrap().problems(), Vec::<String>::new());
        }
        let bad = json!({"kind": "http", "url": "ws://localhost:8000", "shape": "gym", "session_field": "s"});
        let problems = read(bad).unwrap().problems();
        assert!(problems[0].contains("only openenv has a WebSocket"), "{problems:?}");
        assert!(problems[1].starts_with("session_field is of http://"), "{problems:?}");
    }
}
