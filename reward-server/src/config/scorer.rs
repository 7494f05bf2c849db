//! What a scorer is told. A scorer is one flat table: the keys of every scorer (`weight`, `gate`, ...) beside
//! those of its kind.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::flat_table;
use super::required::missing_keys;
use super::share::{SHARED_KEYS, Share};

/// One scorer and how its number enters the score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct ScorerConfig {
    /// How its number enters the score.
    pub share: Share,
    /// What it computes.
    pub kind: ScorerKind,
}

/// What a scorer computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ScorerKind {
    /// A learned reward model's number at the last token.
    RewardModel(RewardModel),
    /// Hidden unit tests, run in the sandbox.
    UnitTests(UnitTests),
    /// 1 where the response matches a regular expression, else 0.
    Regex(RegexMatch),
    /// 1 where the response, or a part of it, equals a field of the prompt, else 0.
    ExactMatch(ExactMatch),
    /// 1 where a number in the response equals a field of the prompt, else 0.
    NumericMatch(NumericMatch),
    /// 1 where an expression in the response equals one in a field of the prompt, else 0.
    Math(MathMatch),
    /// 0 for short responses, falling to -1 for long ones.
    LengthPenalty(LengthPenalty),
    /// Minus the share of repeated n-grams.
    RepetitionPenalty(RepetitionPenalty),
    /// 1 where the response has a form, else 0.
    Format(Format),
    /// What the environment of an episode says that it is worth: the sum of the rewards of its turns.
    Environment(EnvironmentReward),
    /// A Python function of the user.
    Python(Python),
    /// A remote reward service.
    Http(Http),
}

/// A learned reward model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardModel {
    /// Its folder: a `*ForSequenceClassification` with one label and the policy's vocabulary.
    #[schemars(extend("x-kind" = "model folder"))]
    pub model: PathBuf,
    /// Apply the mean and standard deviation that its `config.json` stores, if it does.
    #[serde(default = "yes")]
    pub normalise: bool,
}

fn yes() -> bool {
    true
}

/// Hidden unit tests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UnitTests {
    /// How the tests' results become a number.
    pub rule: Rule,
}

/// How the tests' results become a number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The share of tests passed.
    #[default]
    Share,
    /// 1 where all passed, else 0.
    All,
}

/// A regular expression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexMatch {
    /// In the syntax of the `regex` crate; found anywhere unless anchored.
    pub pattern: String,
}

/// Equality with a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactMatch {
    /// The field of the prompt that holds the expected text or number.
    pub field: String,
    /// Takes the last match's first group (the whole match without groups) out of the response; none found is
    /// 0. Where it is one of braces, as in `\\boxed\{([^}]*)\}`, it goes on to the brace that closes them,
    /// and LaTeX is compared in one spelling (`\dfrac` as `\frac`, no space beside brackets and commas).
    pub pattern: Option<String>,
    /// Compare without regard to case.
    pub ignore_case: bool,
}

impl Default for ExactMatch {
    fn default() -> Self {
        Self { field: "label".to_owned(), pattern: None, ignore_case: false }
    }
}

/// Equality of numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NumericMatch {
    /// The field of the prompt that holds the expected number, or a text that is one: a fraction, with a
    /// unit, behind GSM8K's `####`. A label that is more than one number is no label.
    pub field: String,
    /// Takes a part out of the response, as in [`ExactMatch::pattern`]; its last number counts. Where not
    /// given the number in the last `\boxed{}` counts, else the one behind the last `####`, else the last
    /// one.
    pub pattern: Option<String>,
    /// Relative and absolute tolerance. Where not given, whole numbers are compared exactly and others to
    /// 1e-6.
    pub tolerance: Option<f64>,
}

impl Default for NumericMatch {
    fn default() -> Self {
        Self { field: "label".to_owned(), pattern: None, tolerance: None }
    }
}

/// Equality of mathematical expressions by math-verify, which `setup/install.sh math` installs: `\boxed{}`
/// with nested braces, fractions, roots, powers, tuples, intervals, sets, percentages, units, thousands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MathMatch {
    /// The field of the prompt that holds the expected expression.
    pub field: String,
    /// The interpreter.
    pub interpreter: PathBuf,
    /// A folder with math-verify, where the interpreter has none.
    pub packages: PathBuf,
    /// Worker processes.
    pub workers: usize,
    /// How long a comparison may take; then its worker is killed and replaced.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub timeout: Duration,
    /// Address space of a worker; 0 is unlimited.
    pub memory_bytes: u64,
}

impl Default for MathMatch {
    fn default() -> Self {
        Self {
            field: "label".to_owned(),
            interpreter: python3(),
            packages: PathBuf::from(".deps/math"),
            workers: two(),
            timeout: half_a_minute(),
            memory_bytes: four_gibibytes(),
        }
    }
}

/// A penalty on length (the soft overlong punishment of DAPO, arXiv 2503.14476, equation 13).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LengthPenalty {
    /// Up to this many tokens a response costs nothing.
    pub free_tokens: usize,
    /// From here on it costs 1; between the two the cost grows linearly.
    pub max_tokens: usize,
}

/// A penalty on repetition (Yeo et al., arXiv 2502.03373, appendix): minus the share of n-grams that occurred
/// before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RepetitionPenalty {
    /// Tokens of an n-gram.
    pub ngram: usize,
}

impl Default for RepetitionPenalty {
    fn default() -> Self {
        Self { ngram: 4 }
    }
}

/// A form of responses; everything that is asked for must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Format {
    /// The trimmed response starts with this.
    pub starts_with: Option<String>,
    /// The trimmed response ends with this.
    pub ends_with: Option<String>,
    /// Each occurs exactly once, in this order (`["<think>", "</think>", "<answer>", "</answer>"]`).
    pub in_order: Vec<String>,
    /// None occurs.
    pub excludes: Vec<String>,
    /// The trimmed response is one JSON value.
    pub json: bool,
    /// It holds a fenced code block.
    pub code_block: bool,
    /// It ended by itself and was not cut off.
    pub finished: bool,
}

/// The environment's own reward. One without rewards, such as `python`, fails its episodes here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnvironmentReward {}

/// `reward.py` with a function in one of these shapes, `async` or not: `reward(prompt, response, **fields)`,
/// `reward_batch(prompts, responses, fields)`, verl's `compute_score(data_source, solution_str, ground_truth,
/// extra_info)`, TRL's `any_name(prompts, completions, **columns)`, OpenRLHF's `reward_func(queries, prompts,
/// labels)`. What is no finite number fails its response; `NotImplementedError` says that it cannot be
/// judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Python {
    /// The user's file.
    #[schemars(extend("x-kind" = "file"))]
    pub file: PathBuf,
    /// The function's name; where not given that of a known shape.
    #[serde(default)]
    pub function: Option<String>,
    /// The interpreter that runs it.
    #[serde(default = "python3")]
    pub interpreter: PathBuf,
    /// Worker processes.
    #[serde(default = "two")]
    pub workers: usize,
    /// Most responses in one call of a function that takes several.
    #[serde(default = "sixteen")]
    pub batch: usize,
    /// How long a call may take; then its worker is killed and replaced.
    #[serde(default = "half_a_minute", with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub timeout: Duration,
    /// Address space of a worker; 0 is unlimited.
    #[serde(default = "four_gibibytes")]
    pub memory_bytes: u64,
}

/// A remote reward service in the shape of OpenRLHF's: `POST {"query", "prompts", "labels"}`, answer
/// `{"rewards"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where the requests go; `http://` or `https://`.
    pub url: String,
    /// A file whose first line is sent as bearer token.
    #[serde(default)]
    #[schemars(extend("x-kind" = "file"))]
    pub token_file: Option<PathBuf>,
    /// The field of the prompt that is sent as label; all fields as JSON text where not given.
    #[serde(default)]
    pub label: Option<String>,
    /// How long one attempt may take.
    #[serde(default = "half_a_minute", with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub timeout: Duration,
    /// Attempts after the first.
    #[serde(default = "three")]
    pub retries: u32,
    /// Requests at a time.
    #[serde(default = "sixteen")]
    pub concurrency: usize,
    /// Most responses in a request.
    #[serde(default = "sixteen")]
    pub batch: usize,
    /// Attempts that fail in a row before nothing is sent for `breaker_delay`.
    #[serde(default = "eight")]
    pub breaker_failures: u32,
    /// How long nothing is sent then. Meanwhile actors are told to come back later.
    #[serde(default = "five_seconds", with = "humantime_serde")]
    #[schemars(with = "String", extend("x-kind" = "duration"))]
    pub breaker_delay: Duration,
}

fn python3() -> PathBuf {
    PathBuf::from("python3")
}
fn two() -> usize {
    2
}
fn three() -> u32 {
    3
}
fn eight() -> u32 {
    8
}
fn sixteen() -> usize {
    16
}
fn five_seconds() -> Duration {
    Duration::from_secs(5)
}
fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}
fn four_gibibytes() -> u64 {
    4 << 30
}

impl ScorerKind {
    /// The name in configuration and metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::RewardModel(_) => "reward-model",
            Self::UnitTests(_) => "unit-tests",
            Self::Regex(_) => "regex",
            Self::ExactMatch(_) => "exact-match",
            Self::NumericMatch(_) => "numeric-match",
            Self::Math(_) => "math",
            Self::LengthPenalty(_) => "length-penalty",
            Self::RepetitionPenalty(_) => "repetition-penalty",
            Self::Format(_) => "format",
            Self::Environment(_) => "environment",
            Self::Python(_) => "python",
            Self::Http(_) => "http",
        }
    }

    /// Whether it needs the response's text.
    pub(crate) fn reads_text(&self) -> bool {
        !matches!(
            self,
            Self::RewardModel(_) | Self::LengthPenalty(_) | Self::RepetitionPenalty(_) | Self::Environment(_)
        )
    }

    /// Whether its numbers can say how right a response is, from 0 to 1.
    pub(crate) fn can_be_yardstick(&self) -> bool {
        !matches!(self, Self::RewardModel(_) | Self::LengthPenalty(_) | Self::RepetitionPenalty(_))
    }

    /// Whether its numbers are always from 0 to 1.
    pub fn is_zero_to_one(&self) -> bool {
        self.can_be_yardstick() && !matches!(self, Self::Environment(_) | Self::Python(_) | Self::Http(_))
    }

    fn problems(&self) -> Vec<String> {
        let problems = match self {
            Self::RewardModel(_) | Self::UnitTests(_) | Self::Environment(_) => Vec::new(),
            Self::Regex(regex) => vec![pattern_problem(&regex.pattern)],
            Self::ExactMatch(exact) => vec![exact.pattern.as_deref().and_then(pattern_problem)],
            Self::NumericMatch(numeric) => {
                let unfit = numeric.tolerance.filter(|tolerance| !tolerance.is_finite() || *tolerance < 0.0);
                let tolerance =
                    unfit.map(|tolerance| format!("tolerance is {tolerance}, must be at least 0"));
                vec![numeric.pattern.as_deref().and_then(pattern_problem), tolerance]
            }
            Self::Math(math) => vec![at_least_one("workers", math.workers)],
            Self::LengthPenalty(LengthPenalty { free_tokens, max_tokens }) => {
                vec![(free_tokens >= max_tokens).then(|| {
                    format!("free_tokens is {free_tokens}, must be below max_tokens = {max_tokens}")
                })]
            }
            Self::RepetitionPenalty(repetition) => vec![at_least_one("ngram", repetition.ngram)],
            Self::Format(format) => {
                vec![(*format == Format::default()).then(|| "format asks for nothing".to_owned())]
            }
            Self::Python(python) => {
                vec![at_least_one("workers", python.workers), at_least_one("batch", python.batch)]
            }
            Self::Http(http) => vec![
                at_least_one("concurrency", http.concurrency),
                at_least_one("batch", http.batch),
                at_least_one("breaker_failures", http.breaker_failures as usize),
                (!http.url.starts_with("http://") && !http.url.starts_with("https://"))
                    .then(|| format!("url is {:?}, must start with http:// or https://", http.url)),
            ],
        };
        problems.into_iter().flatten().collect()
    }
}

fn pattern_problem(pattern: &str) -> Option<String> {
    let error = Regex::new(pattern).err()?;
    Some(format!("pattern {pattern:?} is no regular expression: {error}"))
}

fn at_least_one(name: &str, value: usize) -> Option<String> {
    (value == 0).then(|| format!("{name} must be at least 1"))
}

impl ScorerConfig {
    /// A scorer of weight 1.
    pub fn new(kind: ScorerKind) -> Self {
        Self { share: Share::default(), kind }
    }

    /// Its factor in the sum.
    pub fn weight(&self) -> f64 {
        self.share.factor()
    }

    /// Whether its number is asked for: it enters the score or is the yardstick.
    pub(crate) fn is_asked(&self) -> bool {
        self.share.enters_score() || self.share.yardstick
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = self.kind.problems();
        problems.extend(self.share.problems());
        if self.share.yardstick && !self.kind.can_be_yardstick() {
            problems.push(format!(
                "yardstick is true, but the numbers of {} are no outcomes from 0 to 1: mark a scorer that compares with \
                 what is known to be right",
                self.kind.name()
            ));
        }
        problems
    }
}

impl TryFrom<Map<String, Value>> for ScorerConfig {
    type Error = serde_json::Error;

    fn try_from(table: Map<String, Value>) -> Result<Self, serde_json::Error> {
        if let Some(missing) = missing_keys(&table) {
            return Err(serde::de::Error::custom(missing));
        }
        let (share, kind) = flat_table::split(table, &SHARED_KEYS)?;
        Ok(Self { share, kind })
    }
}

/// The keys of a scorer, side by side as they are written.
#[derive(Serialize, JsonSchema)]
struct ScorerKeys {
    #[serde(flatten)]
    share: Share,
    #[serde(flatten)]
    kind: ScorerKind,
}

impl JsonSchema for ScorerConfig {
    fn schema_name() -> Cow<'static, str> {
        "ScorerConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        ScorerKeys::json_schema(generator)
    }
}

impl From<ScorerConfig> for Map<String, Value> {
    fn from(config: ScorerConfig) -> Self {
        flat_table::join(config.share, config.kind)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::required::REQUIRED_KEYS;
    use super::*;

    /// The list of keys without defaults is the one that serde has.
    #[test]
    fn everything_that_a_kind_needs_is_named_at_once() {
        for (kind, required) in REQUIRED_KEYS {
            let table = Map::from_iter([("kind".to_owned(), json!(kind))]);
            let error = ScorerConfig::try_from(table.clone()).unwrap_err().to_string();
            assert!(required.iter().all(|key| error.contains(key)), "{kind}: {error}");
            let by_serde =
                serde_json::from_value::<ScorerKind>(Value::Object(table)).unwrap_err().to_string();
            assert!(by_serde.contains(required[0]), "{kind}: {by_serde}");
        }
        for kind in ["unit-tests", "exact-match", "numeric-match", "math", "repetition-penalty", "format"] {
            let table = Map::from_iter([("kind".to_owned(), json!(kind))]);
            assert!(ScorerConfig::try_from(table).is_ok(), "{kind}");
        }
    }
}
