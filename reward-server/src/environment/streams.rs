//! The episodes of one actor's stream: a task for each, that answers one request after the other.
//!
//! Bounds: as many episodes as there are places, one request of each under way, and as many answers waiting
//! as the stream has room for: an actor that does not read its answers holds up its own episodes alone.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};
use types::link::environment::{EnvironmentReply, EnvironmentRequest};
use types::{PromptId, RolloutId, RunId};

use crate::fields_client::PromptFields;
use crate::metrics;
use crate::registry::Misbehaved;
use crate::score_error::ScoreError;

use super::episode::{Answer, Turn};
use super::known_fields::KnownFields;
use super::{Beginning, Environment, EnvironmentError};

/// When an actor may try again to begin an episode.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What an actor's stream carries; the error ends it.
pub(crate) type Said = Result<EnvironmentReply, Misbehaved>;

/// What an actor's episodes come from.
#[derive(Debug, Clone)]
pub(crate) struct EpisodeHost {
    pub(crate) environment: Environment,
    pub(crate) fields: FieldsSource,
    pub(crate) run: RunId,
}

/// Who knows the fields of prompts.
#[derive(Debug, Clone)]
pub(crate) enum FieldsSource {
    /// The coordinator, which is asked.
    Coordinator(Arc<PromptFields>),
    /// This process.
    Here(KnownFields),
}

impl FieldsSource {
    async fn of(&self, run: &RunId, prompt: PromptId, deadline: Instant) -> Result<Arc<str>, ScoreError> {
        match self {
            Self::Coordinator(coordinator) => coordinator.of(Some(run.clone()), prompt, deadline).await,
            Self::Here(known) => Ok(known.of(prompt.ordinal)),
        }
    }
}

/// What an episode begins with.
struct Begin {
    id: RolloutId,
    end: Instant,
    place: OwnedSemaphorePermit,
}

/// An episode under way.
#[derive(Debug)]
struct UnderWay {
    turns: mpsc::Sender<Turn>,
    task: AbortHandle,
}

/// Carries an actor's episodes until its stream ends; then all of them end.
///
/// # Errors
/// That of the stream, and what no correct actor sends.
pub(crate) async fn carry_episodes(
    host: EpisodeHost,
    requests: impl Stream<Item = Result<EnvironmentRequest, String>>,
    replies: mpsc::Sender<Said>,
) -> Result<(), String> {
    let environment = host.environment.clone();
    let mut requests = std::pin::pin!(requests);
    let mut episodes: BTreeMap<RolloutId, UnderWay> = BTreeMap::new();
    // Dropped with the stream: that aborts all of them.
    let mut tasks = JoinSet::new();
    loop {
        let request = tokio::select! {
            request = requests.next() => match request {
                Some(request) => request?,
                None => return Ok(()),
            },
            // A task does not fail: what it runs is guarded.
            Some(_) = tasks.join_next() => {
                episodes.retain(|_, episode| !episode.turns.is_closed());
                metrics::episodes_under_way(environment.under_way());
                continue;
            }
        };
        match request {
            EnvironmentRequest::Hello { .. } => {
                return Err("only the first message of a stream is a hello".to_owned());
            }
            EnvironmentRequest::Reset { id, time_left } => {
                if episodes.get(&id).is_some_and(|episode| !episode.turns.is_closed()) {
                    return Err(format!("episode {id} has begun already"));
                }
                let Some(place) = environment.place() else {
                    let refusal = EnvironmentReply::Overloaded { id, retry_after: RETRY_DELAY };
                    if replies.send(Ok(refusal)).await.is_err() {
                        return Ok(());
                    }
                    continue;
                };
                let (turns, inbox) = mpsc::channel(1);
                let end = Instant::now() + time_left.min(environment.longest());
                let begin = Begin { id, end, place };
                let played = play(host.clone(), begin, inbox, replies.clone());
                episodes.insert(id, UnderWay { turns, task: tasks.spawn(played) });
                metrics::episodes_under_way(environment.under_way());
            }
            EnvironmentRequest::Step { id, text, tokens, truncated } => {
                let turn = Turn { text, tokens, truncated };
                let sent = episodes.get(&id).map(|episode| episode.turns.try_send(turn));
                match sent {
                    Some(Ok(())) => {}
                    Some(Err(mpsc::error::TrySendError::Full(_))) => {
                        return Err(format!("episode {id} was sent a step before the last one was answered"));
                    }
                    // Its time is over, or it failed meanwhile.
                    Some(Err(mpsc::error::TrySendError::Closed(_))) | None => {
                        let lost = EnvironmentError::failed("the episode is over here");
                        if replies.send(Ok(failed(id, lost))).await.is_err() {
                            return Ok(());
                        }
                    }
                }
            }
            EnvironmentRequest::Close(id) => {
                if let Some(episode) = episodes.remove(&id) {
                    episode.task.abort();
                }
            }
        }
    }
}

/// Plays one episode to its end.
async fn play(
    EpisodeHost { environment, fields, run }: EpisodeHost,
    begin: Begin,
    mut turns: mpsc::Receiver<Turn>,
    replies: mpsc::Sender<Said>,
) {
    let Begin { id, end, place: _place } = begin;
    let fields = Box::pin(fields.of(&run, id.prompt, end));
    let begun = guarded(end, Box::pin(environment.reset((&run, id), fields))).await;
    let (mut episode, Beginning { messages, tools }) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            metrics::environment_failed(error.reason);
            // Nobody listening means that the actor has gone.
            let _ = replies.send(Ok(failed(id, error))).await;
            return;
        }
    };
    let (max_tokens, on_rewrite) = (environment.max_tokens(), environment.on_rewrite());
    let ready = EnvironmentReply::Ready { id, messages, tools, max_tokens, on_rewrite };
    if replies.send(Ok(ready)).await.is_err() {
        return;
    }
    while let Ok(Some(turn)) = timeout_at(end, turns.recv()).await {
        let since = Instant::now();
        let stepped = guarded(end, episode.step(turn)).await;
        metrics::environment_stepped(since.elapsed());
        let (reply, is_over) = match stepped {
            Ok(Answer::Observed(messages)) => {
                (EnvironmentReply::Observed { id, messages, reward: episode.reward() }, false)
            }
            Ok(Answer::Done(end)) => (EnvironmentReply::Done { id, end, reward: episode.reward() }, true),
            Err(error) => {
                metrics::environment_failed(error.reason);
                tracing::debug!(%id, %error, "an episode failed");
                (failed(id, error), true)
            }
        };
        if replies.send(Ok(reply)).await.is_err() || is_over {
            return;
        }
    }
}

/// Bounds an answer by the end of its episode; a panic is an error.
async fn guarded<T>(
    end: Instant,
    answer: impl Future<Output = Result<T, EnvironmentError>>,
) -> Result<T, EnvironmentError> {
    match AssertUnwindSafe(timeout_at(end, answer)).catch_unwind().await {
        Ok(Ok(answered)) => answered,
        Ok(Err(_)) => Err(EnvironmentError::failed("not answered before the end of its lease")),
        Err(_) => Err(EnvironmentError::failed("the environment panicked")),
    }
}

fn failed(id: RolloutId, EnvironmentError { reason, detail }: EnvironmentError) -> EnvironmentReply {
    EnvironmentReply::Failed { id, reason, detail }
}
