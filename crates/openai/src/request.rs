//! From the JSON of a request to what the engine is asked. Nothing behind this checks again, but the engine
//! itself.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use engine::{GrammarSource, MAX_TOP_LOGPROBS, PromptEncoder};
use model::ChatTemplate;
use model::chat::ToolFormat;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use types::{PromptContent, Sampling, SamplingParams};

use crate::chat::{Chat, ChatFields};
use crate::error::ApiError;
use crate::extra_fields;
use crate::kind::Kind;
use crate::name::ServedName;
use crate::structured;

/// Most responses of one request.
const MAX_RESPONSES: usize = 1024;

/// A request, understood.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompts: Vec<Asked>,
    pub(crate) n: usize,
    pub(crate) seed: u64,
    pub(crate) sampling: Sampling,
    /// Fewest tokens of a response.
    pub(crate) min_tokens: usize,
    /// What responses have to look like, if anything.
    pub(crate) grammar: Option<GrammarSource>,
    /// How calls of tools are looked for in responses, if there are tools.
    pub(crate) tools: Option<ToolUse>,
    /// Log-probs are wanted, with so many alternatives.
    pub(crate) top_logprobs: Option<usize>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

/// What a response is wanted to.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A text, or tokens.
    Prompt(PromptContent),
    Chat(Chat),
    /// Tokens that go on from those of an episode.
    Joined(Arc<[u32]>),
}

/// Who says how tokens are drawn.
#[derive(Debug, Clone)]
pub(crate) enum Draws {
    /// The client, within a context of so many tokens.
    Client { context_tokens: usize },
    /// The run: the request is a call in an agent's episode.
    Run(RunDraws),
}

/// How tokens are drawn in an agent's episode.
#[derive(Debug, Clone)]
pub(crate) struct RunDraws {
    pub(crate) sampling: Arc<Sampling>,
    /// Most tokens of the call, at least one.
    pub(crate) most: u32,
    /// Fields that say otherwise are passed over instead of refused.
    pub(crate) is_lenient: bool,
}

/// How calls of tools are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToolUse {
    pub(crate) format: ToolFormat,
    /// Whether a response has at most one.
    pub(crate) is_single: bool,
}

/// What both interfaces have.
#[derive(Debug, Deserialize)]
struct Common {
    model: Option<String>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    min_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    n: Option<usize>,
    seed: Option<i64>,
    stop: Option<OneOrMore<String>>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<Value>,
    structured_outputs: Option<Value>,
    /// What the two interfaces do not have in common.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct CompletionFields {
    prompt: Prompt,
    logprobs: Option<usize>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "stop is neither a text nor a list of texts")]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "prompt is neither a text, nor tokens, nor a list of these")]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl Job {
    /// Reads a request for the model that is called `served`.
    pub(crate) fn parse(
        kind: Kind,
        body: &[u8],
        (served, encoder): (&ServedName, &PromptEncoder),
        draws: &Draws,
    ) -> Result<Self, ApiError> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}"), None))?;
        let mut common: Common = fields(body)?;
        let rest = std::mem::take(&mut common.rest);
        if let Some(asked) = common.model.as_deref().filter(|asked| !served.is(asked)) {
            return Err(ApiError::unknown_model(asked, served.as_str()));
        }
        let mut tools = None;
        let (prompts, top_logprobs, rest) = match kind {
            Kind::Completion => {
                let CompletionFields { prompt, logprobs, rest } = fields(Value::Object(rest))?;
                (contents(prompt).into_iter().map(Asked::Prompt).collect(), logprobs, rest)
            }
            Kind::Chat => {
                let mut chat: ChatFields = fields(Value::Object(rest))?;
                let rest = std::mem::take(&mut chat.rest);
                let wanted = chat.wanted_logprobs();
                let is_single = chat.parallel_tool_calls == Some(false);
                let chat = Chat::read(chat, encoder.template())?;
                let format = encoder.template().map(ChatTemplate::tool_format);
                tools = format.filter(|_| chat.has_tools()).map(|format| ToolUse { format, is_single });
                (vec![Asked::Chat(chat)], wanted, rest)
            }
        };
        extra_fields::check(kind, &rest)?;
        let grammar = structured::wanted(common.response_format.take(), common.structured_outputs.take())?;
        if grammar.is_some() && tools.is_some() {
            let problem = "the response is to follow a grammar, in which no call of a tool has a place: leave out tools or the grammar";
            return Err(ApiError::bad_field("tools", problem));
        }
        let n = common.n.unwrap_or(1);
        if prompts.is_empty() || n == 0 || prompts.len().saturating_mul(n) > MAX_RESPONSES {
            let message =
                format!("{} prompts with n = {n}: must be 1 to {MAX_RESPONSES} responses", prompts.len());
            return Err(ApiError::bad_request(message, Some("n")));
        }
        if top_logprobs.is_some_and(|count| count > MAX_TOP_LOGPROBS) {
            let message = format!("more than {MAX_TOP_LOGPROBS} alternatives");
            return Err(ApiError::bad_request(message, Some("logprobs")));
        }
        if matches!(draws, Draws::Run(_)) && prompts.len() * n != 1 {
            let message = "a call in an episode has one prompt and one response: make a call for each";
            return Err(ApiError::bad_request(message, Some("n")));
        }
        let min_tokens = match draws {
            Draws::Client { .. } => common.min_tokens.unwrap_or(0),
            Draws::Run(_) => 0,
        };
        // Without a seed, one that nobody can guess or repeat.
        let seed = common.seed.map_or_else(|| RandomState::new().hash_one(0), i64::cast_unsigned);
        let stream = common.stream.unwrap_or(false);
        let options = common.stream_options.as_ref();
        let include_usage = options.and_then(|options| options.include_usage) == Some(true);
        let sampling = match draws {
            Draws::Client { context_tokens } => sampling(common, kind, *context_tokens)?,
            Draws::Run(run) => run_sampling(common, run)?,
        };
        if min_tokens > sampling.max_new_tokens() as usize {
            let most = sampling.max_new_tokens();
            let message = format!("min_tokens is {min_tokens}, must be at most max_tokens, {most}");
            return Err(ApiError::bad_request(message, Some("min_tokens")));
        }
        Ok(Self {
            prompts,
            n,
            seed,
            sampling,
            min_tokens,
            grammar,
            tools,
            top_logprobs,
            stream,
            include_usage,
        })
    }
}

fn fields<T: DeserializeOwned>(body: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(body)
        .map_err(|error| ApiError::bad_field(&error.path().to_string(), &error.inner().to_string()))
}

fn sampling(common: Common, kind: Kind, context_tokens: usize) -> Result<Sampling, ApiError> {
    // The defaults of the interface: 16 for completions, as much as there is room for in a chat.
    let most = match kind {
        Kind::Completion => 16,
        Kind::Chat => u32::try_from(context_tokens).unwrap_or(u32::MAX),
    };
    let params = SamplingParams {
        temperature: common.temperature.unwrap_or(1.0),
        top_p: common.top_p.unwrap_or(1.0),
        // -1 is how other servers spell "all".
        top_k: common.top_k.map_or(0, |k| u32::try_from(k.max(0)).unwrap_or(u32::MAX)),
        min_p: common.min_p.unwrap_or(0.0),
        repetition_penalty: common.repetition_penalty.unwrap_or(1.0),
        max_new_tokens: common.max_completion_tokens.or(common.max_tokens).unwrap_or(most),
        stop: common.stop.map_or_else(Vec::new, OneOrMore::into_list),
        stop_token_ids: common.stop_token_ids.unwrap_or_default(),
        ignore_eos: common.ignore_eos.unwrap_or(false),
    };
    Sampling::new(params).map_err(|invalid| ApiError::bad_request(invalid.to_string(), None))
}

/// Draws as the run does: a policy is trained on what it drew itself. A client may only end a response
/// earlier.
fn run_sampling(common: Common, run: &RunDraws) -> Result<Sampling, ApiError> {
    let own = &run.sampling;
    let fixed = [
        ("temperature", common.temperature.is_none_or(|asked| asked == own.temperature())),
        ("top_p", common.top_p.is_none_or(|asked| asked == own.top_p())),
        ("top_k", common.top_k.is_none_or(|asked| asked.max(0) == i64::from(own.top_k()))),
        ("min_p", common.min_p.is_none_or(|asked| asked == own.min_p())),
        (
            "repetition_penalty",
            common.repetition_penalty.is_none_or(|asked| asked == own.repetition_penalty()),
        ),
        ("ignore_eos", common.ignore_eos.is_none_or(|asked| asked == own.ignores_eos())),
        ("min_tokens", common.min_tokens.is_none_or(|asked| asked == 0)),
        ("seed", common.seed.is_none()),
    ];
    if let Some((field, _)) = fixed.iter().find(|(_, agrees)| !agrees && !run.is_lenient) {
        let problem = format!(
            "an episode's tokens are drawn as the run says, at a temperature of {}: leave {field} out, or set              actor.agents.ignore_sampling = true",
            own.temperature()
        );
        return Err(ApiError::bad_field(field, &problem));
    }
    let asked = common.max_completion_tokens.or(common.max_tokens).unwrap_or(u32::MAX);
    let mut params = SamplingParams::from(own.as_ref().clone());
    params.max_new_tokens = params.max_new_tokens.min(run.most).min(asked);
    for text in common.stop.into_iter().flat_map(OneOrMore::into_list) {
        if !params.stop.contains(&text) {
            params.stop.push(text);
        }
    }
    for token in common.stop_token_ids.into_iter().flatten() {
        if !params.stop_token_ids.contains(&token) {
            params.stop_token_ids.push(token);
        }
    }
    Sampling::new(params).map_err(|invalid| ApiError::bad_request(invalid.to_string(), None))
}

impl<T> OneOrMore<T> {
    fn into_list(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

fn contents(prompt: Prompt) -> Vec<PromptContent> {
    match prompt {
        Prompt::Text(text) => vec![PromptContent::Text(text)],
        Prompt::Tokens(tokens) => vec![PromptContent::Tokens(tokens)],
        Prompt::Texts(texts) => texts.into_iter().map(PromptContent::Text).collect(),
        Prompt::TokenLists(lists) => lists.into_iter().map(PromptContent::Tokens).collect(),
    }
}
