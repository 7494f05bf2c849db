//! Environments: what episodes of several turns act in (`docs/decisions.md`, D24).
//!
//! ```text
//! actor --reset, steps--> grpc --> streams (a task for each episode) --> episode (bounds) --> interpreter, tools, class, remote
//! ```
//!
//! An episode lives on the stream of the actor that plays it: where the stream ends, all its episodes end and
//! leave nothing. None of their failures says anything about the policy.

mod calls;
mod cut;
mod episode;
mod interpreter;
mod known_fields;
mod offline;
mod program;
mod remote;
mod streams;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use model::Tokenizer;
use model::chat::{ChatTemplate, ToolFormat};
use serde_json::Value;
use service::{BadInput, CancellationToken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use types::link::environment::{EnvironmentMessage, OnRewrite};
use types::{FailReason, RolloutId, RunId};

use crate::config::{CallSyntax, Config, EnvironmentKind, EpisodeBounds, ProgramFile};
use crate::score_error::ScoreError;

use calls::{CODE_ARGUMENT, PYTHON};
use episode::{Episode, Played};
use interpreter::InterpreterPool;
use program::{Program, ProgramPool};
use remote::Remote;

pub use known_fields::KnownFields;
pub use offline::OfflineEpisodes;
pub(crate) use streams::{EpisodeHost, FieldsSource, Said, carry_episodes};

/// Why an episode cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct EnvironmentError {
    /// The reason that the coordinator counts.
    reason: FailReason,
    /// What happened, for a person.
    detail: String,
}

impl EnvironmentError {
    /// The environment failed.
    fn failed(detail: impl Into<String>) -> Self {
        Self { reason: FailReason::Environment, detail: detail.into() }
    }

    /// The machine could not give the episode what it needed.
    fn overload(detail: impl Into<String>) -> Self {
        Self { reason: FailReason::Overload, detail: detail.into() }
    }
}

impl From<ScoreError> for EnvironmentError {
    fn from(error: ScoreError) -> Self {
        match error.reason {
            FailReason::Overload => Self::overload(error.detail),
            _ => Self::failed(error.detail),
        }
    }
}

/// The server's environment. A cheap clone.
#[derive(Debug, Clone)]
pub(crate) struct Environment(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: EpisodeBounds,
    kind: Kind,
    /// One for each episode that may be under way.
    places: Arc<Semaphore>,
    /// Cancelled when no new episode is to begin.
    draining: CancellationToken,
}

/// What episodes act in.
#[derive(Debug)]
enum Kind {
    /// An interpreter each.
    Python {
        calls: CallSyntax,
        /// How the policy writes calls of tools.
        format: ToolFormat,
        interpreters: InterpreterPool,
    },
    /// The functions of a file.
    Tools {
        /// How the policy writes calls of them.
        format: ToolFormat,
        pool: ProgramPool,
    },
    /// An instance of a class each.
    Class(ProgramPool),
    /// An episode at a remote server each.
    Http(Remote),
}

/// What an episode begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Beginning {
    messages: Vec<EnvironmentMessage>,
    tools: Option<String>,
}

impl Environment {
    /// The configured environment, if there is one.
    ///
    /// # Errors
    /// Where the sandbox cannot be started, or the policy's chat template cannot be read.
    pub(crate) async fn start(config: &Config, draining: CancellationToken) -> anyhow::Result<Option<Self>> {
        let Some(environment) = config.environment.clone() else { return Ok(None) };
        let folder = config.tokenizer_dir().map(Path::to_owned).context("an environment has a tokenizer")?;
        let format = spawn_blocking(move || tool_format(&folder)).await??;
        let bounds = environment.bounds;
        let kind = match environment.kind {
            EnvironmentKind::Python(python) => {
                let grader =
                    config.sandbox.as_ref().map(|sandbox| sandbox.grader.clone()).unwrap_or_default();
                let (calls, pool_bounds) = (python.calls, bounds.clone());
                let started = spawn_blocking(move || InterpreterPool::start(grader, &python, &pool_bounds));
                let interpreters = started.await?.context("start the environment's interpreters")?;
                Kind::Python { calls, format, interpreters }
            }
            EnvironmentKind::Tools(file) => {
                Kind::Tools { format, pool: pool(Program::tools(&file), &file).await? }
            }
            EnvironmentKind::Http(http) => Kind::Http(
                Remote::new(http)
                    .map_err(|error| BadInput(format!("reward_server.environment.token_file: {error}")))?,
            ),
            EnvironmentKind::Class(class) => {
                let file = class.file();
                Kind::Class(pool(Program::class(&file, class.class.as_ref()), &file).await?)
            }
        };
        let places = Arc::new(Semaphore::new(bounds.episodes));
        Ok(Some(Self(Arc::new(Inner { bounds, kind, places, draining }))))
    }

    /// A place for an episode, if there is one.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        if self.0.draining.is_cancelled() {
            return None;
        }
        Arc::clone(&self.0.places).try_acquire_owned().ok()
    }

    /// A new episode for a response to the prompt that has these fields, which are waited for where they are
    /// needed.
    ///
    /// # Errors
    /// Where the operator's class or server fails, or the coordinator does not say the fields.
    async fn reset(
        &self,
        (run, id): (&RunId, RolloutId),
        fields: impl Future<Output = Result<Arc<str>, ScoreError>>,
    ) -> Result<(Episode, Beginning), EnvironmentError> {
        let (played, messages) = match &self.0.kind {
            Kind::Python { .. } | Kind::Tools { .. } => (None, Vec::new()),
            Kind::Class(pool) => {
                let (instance, messages) = pool.reset(&fields.await?).await?;
                (Some(Played::Here(instance)), messages)
            }
            Kind::Http(remote) => {
                let (episode, messages) = remote.reset((run, id), &fields.await?).await?;
                (Some(Played::There(episode)), messages)
            }
        };
        Ok((Episode::new(self.clone(), played), Beginning { messages, tools: self.tools() }))
    }

    /// Episodes under way.
    fn under_way(&self) -> usize {
        self.0.bounds.episodes - self.0.places.available_permits()
    }

    /// How long an episode may last: the last turn may end a little later than its time is over, and is to be
    /// told so rather than to find nobody.
    fn longest(&self) -> Duration {
        self.0.bounds.wall.saturating_mul(2)
    }

    /// Most tokens that the policy may draw in an episode.
    fn max_tokens(&self) -> u32 {
        self.0.bounds.max_tokens
    }

    /// What becomes of an episode whose chat template rewrites what came before.
    fn on_rewrite(&self) -> OnRewrite {
        self.0.bounds.on_rewrite
    }

    /// The schemas of what the policy may call, as OpenAI's API has them and chat templates read them.
    fn tools(&self) -> Option<String> {
        let calls = match &self.0.kind {
            Kind::Python { calls, .. } => *calls,
            Kind::Tools { pool, .. } | Kind::Class(pool) => return pool.tools(),
            Kind::Http(_) => return None,
        };
        let schema = serde_json::json!([{
            "type": "function",
            "function": {
                "name": PYTHON,
                "description": "Runs Python code and returns what it prints and the value of a last expression. What \
                                earlier calls have defined is still there.",
                "parameters": {
                    "type": "object",
                    "properties": {CODE_ARGUMENT: {"type": "string", "description": "The code to run."}},
                    "required": [CODE_ARGUMENT],
                },
            },
        }]);
        (calls == CallSyntax::Tool).then(|| Value::to_string(&schema))
    }
}

/// The workers of a program of the operator.
async fn pool(program: Program, file: &ProgramFile) -> anyhow::Result<ProgramPool> {
    Ok(ProgramPool::start(program, file.workers).await.map_err(BadInput)?)
}

/// How the policy whose tokenizer lies in a folder writes calls: as its chat template teaches.
fn tool_format(folder: &Path) -> anyhow::Result<ToolFormat> {
    let unusable = |error: String| BadInput(format!("{}: {error}", folder.display()));
    let tokenizer = Tokenizer::load(folder).map_err(|error| unusable(error.to_string()))?;
    let template = ChatTemplate::load(folder, tokenizer.special().clone());
    let template = template.map_err(|error| unusable(error.to_string()))?;
    Ok(template.map_or(ToolFormat::Json, |template| template.tool_format()))
}
