//! Responses that are episodes, in the commands and stages that draw some without a ring: the environment of
//! a recipe, in this process, with the turns and bounds that the ring has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use engine::generate::{Environments, Generator, Played, Response};
use reward_server::config::EnvironmentConfig;
use reward_server::{KnownFields, OfflineEpisodes};
use serde::Serialize;
use serde_json::{Value, json};
use service::BadInput;
use service::config::Layers;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use types::{Sampling, SamplingParams};

use crate::recipe::{Environment, Recipe, RecipeFile};

/// How long environments may take to end.
const GRACE_PERIOD: Duration = Duration::from_secs(10);

/// What episodes act in, and where their turns end.
#[derive(Debug, Clone)]
pub(crate) struct EpisodeSetup {
    /// The reward server whose environment it is.
    server: reward_server::Config,
    /// Texts that end a turn in the ring.
    stop: Vec<String>,
    stop_token_ids: Vec<u32>,
}

impl EpisodeSetup {
    /// The episodes of a recipe's ring; none where its responses have one turn.
    ///
    /// # Errors
    /// Where agents play them, which only a ring leases episodes to.
    pub(crate) fn of_recipe(recipe: &Recipe) -> Result<Option<Self>, BadInput> {
        if recipe.actor.agents.enabled {
            return Err(BadInput(BY_AGENTS.to_owned()));
        }
        let sampling = &recipe.coordinator.sampling;
        let setup = Self::of_server(&recipe.reward_server);
        Ok(setup.map(|setup| Self {
            stop: sampling.stop().to_vec(),
            stop_token_ids: sampling.stop_token_ids().to_vec(),
            ..setup
        }))
    }

    /// Those of a recipe, or of a reward server's configuration; none where the file has no environment.
    ///
    /// # Errors
    /// Names what cannot be used.
    pub(crate) fn of_file(path: &Path) -> anyhow::Result<Option<Self>> {
        if is_recipe(path)? {
            let file = RecipeFile::read(path, Environment::Applied, &[])?;
            let setup = Self::of_recipe(&file.recipe);
            return Ok(setup.map_err(|error| wrong(path, &error))?);
        }
        let server: reward_server::Config = Layers::of_process(Some(path), &[])?.parse()?;
        Ok(Self::of_server(&server))
    }

    /// Those of a file that was named for its environment.
    ///
    /// # Errors
    /// Names what cannot be used, and the file that has no environment.
    pub(crate) fn of_named(path: &Path) -> anyhow::Result<Self> {
        let setup = Self::of_file(path)?;
        let lacks = || wrong(path, &"there is no [reward_server.environment]: responses have one turn");
        Ok(setup.ok_or_else(lacks)?)
    }

    fn of_server(server: &reward_server::Config) -> Option<Self> {
        server.environment.is_some().then(|| Self {
            server: server.clone(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
        })
    }

    /// How the tokens of a turn are drawn: as asked for, and turns end where they end in the ring.
    ///
    /// # Errors
    /// When these are too many texts.
    pub(crate) fn sampling(&self, asked: &Sampling) -> Result<Sampling, BadInput> {
        let mut params = SamplingParams::from(asked.clone());
        for text in &self.stop {
            if !params.stop.contains(text) {
                params.stop.push(text.clone());
            }
        }
        params.stop_token_ids.extend(&self.stop_token_ids);
        Sampling::new(params).map_err(|invalid| BadInput(invalid.to_string()))
    }

    /// A generator whose responses are episodes of the policy in this folder.
    ///
    /// # Errors
    /// Names what the environment lacks: a sandbox, the operator's file, a tokenizer.
    pub(crate) fn start(&self, policy: &Path, generator: Generator) -> anyhow::Result<Drawing> {
        let mut server = self.server.clone();
        server.tokenizer = Some(policy.to_owned());
        let problems: Vec<String> = server.environment.iter().flat_map(EnvironmentConfig::problems).collect();
        if !problems.is_empty() {
            let problems = problems.into_iter().map(|problem| format!("reward_server.environment.{problem}"));
            return Err(service::config::Error::Unusable { problems: problems.collect() }.into());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.context("start the I/O runtime")?;
        let episodes = runtime.block_on(OfflineEpisodes::start(&server)).context("start the environment")?;
        let episodes = episodes.context("the environment is gone")?;
        let (places, timeout, fields) = (episodes.places(), episodes.timeout(), episodes.fields());
        // A request under way of each place, and the end of the episode before.
        let (requests, inbox) = mpsc::channel(4 * places + 1);
        let (outbox, replies) = mpsc::channel(2 * places);
        let task = runtime.spawn(episodes.carry(inbox, outbox));
        let runtime_handle = runtime.handle().clone();
        let environments = Environments { requests, replies, runtime: runtime_handle, places, timeout };
        let generator = generator.with_environments(environments)?;
        let host = Host { runtime: Some(runtime), task: Some(task) };
        Ok(Drawing { generator, fields, host: Some(host) })
    }
}

/// Why a recipe's episodes cannot be played here.
const BY_AGENTS: &str = "agents play the episodes of this recipe (actor.agents.enabled), and they lease them \
                         from a ring: [coordinator.eval] asks held-out prompts there; one_turn asks for \
                         responses of one turn";

/// Whether a file is a recipe rather than a reward server's configuration.
///
/// # Errors
/// Names the file that cannot be read.
pub(crate) fn is_recipe(path: &Path) -> Result<bool, BadInput> {
    let text = std::fs::read_to_string(path).map_err(|error| wrong(path, &error))?;
    let table: toml::Table = text.parse().map_err(|error| wrong(path, &error))?;
    let sections = ["reward_server", "coordinator", "learner"];
    Ok(sections.iter().any(|section| table.get(*section).is_some_and(toml::Value::is_table)))
}

fn wrong(path: &Path, problem: &dyn fmt::Display) -> BadInput {
    BadInput(format!("{}: {problem}", path.display()))
}

/// A model that draws responses: of one turn, or episodes.
#[derive(Debug)]
pub(crate) struct Drawing {
    /// Dropped before its environments, which end when nobody asks them any more.
    pub(crate) generator: Generator,
    /// What the environments are told of prompts, by the prompts' numbers.
    pub(crate) fields: KnownFields,
    host: Option<Host>,
}

impl Drawing {
    /// Responses as the setup says; of one turn without one.
    ///
    /// # Errors
    /// As [`EpisodeSetup::start`].
    pub(crate) fn new(
        setup: Option<&EpisodeSetup>,
        policy: &Path,
        generator: Generator,
    ) -> anyhow::Result<Self> {
        match setup {
            Some(setup) => setup.start(policy, generator),
            None => Ok(Self { generator, fields: KnownFields::default(), host: None }),
        }
    }

    /// Whether responses are episodes.
    pub(crate) fn plays(&self) -> bool {
        self.host.is_some()
    }

    /// The prompts have these fields, in their order.
    pub(crate) fn know(&self, fields: impl Iterator<Item = Arc<str>>) {
        if self.plays() {
            (0..).zip(fields).for_each(|(prompt, fields)| self.fields.put(prompt, fields));
        }
    }
}

/// The runtime of environments.
#[derive(Debug)]
struct Host {
    runtime: Option<Runtime>,
    task: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        let (Some(runtime), Some(task)) = (self.runtime.take(), self.task.take()) else { return };
        // What it has to say was said to whoever played: it ends because that has gone.
        let _ = runtime.block_on(async { tokio::time::timeout(GRACE_PERIOD, task).await });
        runtime.shutdown_timeout(GRACE_PERIOD);
    }
}

/// What came of episodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct EpisodeTotals {
    episodes: u64,
    turns: u64,
    tool_calls: u64,
    /// Turns that began a further sequence, because the chat template had rewritten what came before.
    #[serde(skip_serializing_if = "is_zero")]
    further_sequences: u64,
    /// By why they had no further turn.
    ends: BTreeMap<&'static str, u64>,
}

impl EpisodeTotals {
    /// Those of all responses; none where these have one turn.
    pub(crate) fn of<'a>(responses: impl IntoIterator<Item = &'a Response>) -> Option<Self> {
        Self::of_played(responses.into_iter().filter_map(|response| response.played.as_deref()))
    }

    /// Those of these episodes; none where there are none.
    pub(crate) fn of_played<'a>(played: impl IntoIterator<Item = &'a Played>) -> Option<Self> {
        let mut totals = Self::default();
        played.into_iter().for_each(|played| totals.add(played));
        (totals.episodes > 0).then_some(totals)
    }

    /// Adds an episode.
    pub(crate) fn add(&mut self, played: &Played) {
        self.episodes += 1;
        self.turns += played.turns() as u64;
        self.tool_calls += played.tool_calls() as u64;
        let begins = played.observations.iter().filter(|given| given.begins_sequence);
        self.further_sequences += begins.count() as u64;
        *self.ends.entry(played.end.as_str()).or_default() += 1;
    }

    /// A summary with these: a table, or a JSON object where it is for programs.
    pub(crate) fn beside(this: Option<&Self>, summary: String, is_json: bool) -> String {
        match (this, is_json) {
            (None, _) => summary,
            (Some(totals), false) => format!("{summary}\n{totals}"),
            (Some(totals), true) => match serde_json::from_str::<Value>(&summary) {
                Ok(Value::Object(mut object)) => {
                    object.insert("episodes".to_owned(), json!(totals));
                    Value::Object(object).to_string()
                }
                _ => summary,
            },
        }
    }
}

impl fmt::Display for EpisodeTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { episodes, turns, tool_calls, further_sequences, ends } = self;
        let ends: Vec<String> = ends.iter().map(|(end, count)| format!("{end} {count}")).collect();
        write!(f, "{episodes} episodes of {turns} turns and {tool_calls} calls of tools; they ended: ")?;
        f.write_str(&ends.join(", "))?;
        if *further_sequences > 0 {
            write!(f, "; {further_sequences} turns began a further sequence")?;
        }
        Ok(())
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The tokens behind a prompt, as `sluice replay` and others read them.
#[derive(Debug, PartialEq)]
pub(crate) struct BehindPrompt {
    pub(crate) tokens: Vec<u32>,
    /// Of each token; 0 for one that was given.
    pub(crate) logprobs: Vec<f32>,
    /// 1 for a token that the policy drew, 0 for one that it was given; none where it drew all.
    pub(crate) mask: Option<Vec<u8>>,
    /// Places of tokens with which further sequences begin.
    pub(crate) begins: Vec<usize>,
}

/// A sequence that the policy drew in.
#[derive(Debug, PartialEq)]
pub(crate) struct DrawnSequence {
    /// From its prompt on.
    pub(crate) tokens: Vec<u32>,
    /// The places of those that were drawn, with their log-probs.
    pub(crate) drawn: Vec<(usize, f32)>,
}

impl BehindPrompt {
    /// Those of a response.
    pub(crate) fn of(response: &Response) -> Self {
        let (mut tokens, mut logprobs, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        let (mut drawn, mut begins) = (0, Vec::new());
        for observation in response.observations() {
            let after = observation.after as usize;
            tokens.extend_from_slice(&response.tokens[drawn..after]);
            logprobs.extend_from_slice(&response.logprobs[drawn..after]);
            mask.resize(tokens.len(), 1);
            begins.extend(observation.begins_sequence.then_some(tokens.len()));
            tokens.extend_from_slice(&observation.tokens);
            logprobs.resize(tokens.len(), 0.0);
            mask.resize(tokens.len(), 0);
            drawn = after;
        }
        tokens.extend_from_slice(&response.tokens[drawn..]);
        logprobs.extend_from_slice(&response.logprobs[drawn..]);
        mask.resize(tokens.len(), 1);
        Self { tokens, logprobs, mask: response.played.is_some().then_some(mask), begins }
    }

    /// The sequences of a response, one behind the other.
    pub(crate) fn sequences(response: &Response) -> Vec<DrawnSequence> {
        let Self { tokens, logprobs, mask, begins } = Self::of(response);
        let starts = std::iter::once(0).chain(begins.iter().copied());
        let ends = begins.iter().copied().chain(std::iter::once(tokens.len()));
        let mut sequences = Vec::with_capacity(begins.len() + 1);
        for (start, end) in starts.zip(ends) {
            let prompt: &[u32] = if start == 0 { &response.prompt_tokens } else { &[] };
            let drawn = (start..end).filter(|place| mask.as_ref().is_none_or(|mask| mask[*place] == 1));
            let drawn = drawn.map(|place| (prompt.len() + place - start, logprobs[place])).collect();
            sequences.push(DrawnSequence { tokens: [prompt, &tokens[start..end]].concat(), drawn });
        }
        sequences
    }
}

/// What a row says of an episode beside its response: the turns and what was said between them.
pub(crate) fn add_turns(row: &mut Value, played: Option<&Played>) {
    if let Some(played) = played {
        row["turns"] = json!(played.said);
        row["end"] = json!(played.end.as_str());
    }
}
