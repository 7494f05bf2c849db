//! The service for actors: a stream of rollouts up, one answer each down; and the same for the turns of
//! episodes.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use proto::pb::reward_server_server::{RewardServer, RewardServerServer};
use proto::{CALLERS, MAX_MESSAGE_BYTES, pb};
use service::grpc::{Router, first_message, next_message};
use service::{CancellationToken, OnError, Security, Spawner};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::link::environment::EnvironmentRequest;
use types::link::reward::ScoreRequest;
use types::{MemberId, RolloutId, RunId};

use crate::config::QueueConfig;
use crate::environment::{Environment, EpisodeHost, FieldsSource, Said, carry_episodes};
use crate::fields_client::PromptFields;
use crate::registry::{InvalidRollout, Misbehaved, Reply, RolloutRegistry};

/// What goes down a stream.
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    registry: RolloutRegistry,
    environment: Option<Environment>,
    fields: Arc<PromptFields>,
    spawner: Spawner,
    queue: QueueConfig,
    /// One permit for each stream there may be.
    streams: Arc<Semaphore>,
    /// Cancelled when the server has left the run: streams are read no further.
    done: CancellationToken,
}

/// What the service hands requests to.
#[derive(Debug, Clone)]
pub(crate) struct GrpcWork {
    pub(crate) registry: RolloutRegistry,
    /// What episodes act in; a run of one-turn responses has none.
    pub(crate) environment: Option<Environment>,
    pub(crate) fields: Arc<PromptFields>,
}

impl Grpc {
    pub(crate) fn new(work: GrpcWork, spawner: Spawner, queue: QueueConfig, done: CancellationToken) -> Self {
        let GrpcWork { registry, environment, fields } = work;
        let streams = Arc::new(Semaphore::new(queue.max_streams));
        Self { registry, environment, fields, spawner, queue, streams, done }
    }

    /// The service on a server with our bounds.
    pub(crate) fn router(self, security: &Security) -> Router {
        let service = RewardServerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        service::grpc::server(security, CALLERS).add_service(service)
    }

    /// A place for a new stream.
    fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{} streams are open, the most that queue.max_streams allows; try another reward server, or later",
                self.queue.max_streams
            ))
        })
    }

    /// The actor that a new stream's hello names, if it works for our run.
    fn introduced(&self, run: &RunId, member: MemberId) -> Result<MemberId, Status> {
        match self.registry.run() {
            None => Err(Status::unavailable("not yet connected to the coordinator")),
            Some(ours) if ours != *run => Err(Status::failed_precondition(format!(
                "this reward server works for run {ours}, not for run {run}"
            ))),
            Some(_) => Ok(member),
        }
    }
}

fn no_hello() -> Status {
    Status::invalid_argument("the first message of a stream must be a hello")
}

#[tonic::async_trait]
impl RewardServer for Grpc {
    type ScoreStream = Replies<pb::ScoreReply>;
    type EnvironmentStream = Replies<pb::EnvironmentReply>;

    async fn score(
        &self,
        request: Request<Streaming<pb::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let mut requests = request.into_inner();
        let stream = self.place()?;
        let ScoreRequest::Hello { run, member } = first_message(&mut requests).await?.try_into()? else {
            return Err(no_hello());
        };
        let actor = self.introduced(&run, member)?;
        let (replies, outbox) = mpsc::channel::<Reply>(self.queue.stream_rollouts);
        let (registry, done) = (self.registry.clone(), self.done.clone());
        tracing::info!(%actor, "actor connected");
        let name = format!("stream of {actor}");
        let carry = async move {
            let _stream = stream;
            tokio::select! {
                ended = carry_rollouts(&registry, &actor, &mut requests, &replies) => match ended {
                    Ok(()) => tracing::info!(%actor, "actor left"),
                    Err(status) => tracing::info!(%actor, reason = status.message(), "actor's stream ended"),
                },
                () = done.cancelled() => {}
            }
            Ok(())
        };
        self.spawner.spawn(name, OnError::Log, carry).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox).map(message))))
    }

    async fn environment(
        &self,
        request: Request<Streaming<pb::EnvironmentRequest>>,
    ) -> Result<Response<Self::EnvironmentStream>, Status> {
        let mut requests = request.into_inner();
        let stream = self.place()?;
        let first = first_message(&mut requests).await?;
        let EnvironmentRequest::Hello { run, member } = first.try_into()? else { return Err(no_hello()) };
        let actor = self.introduced(&run, member)?;
        let environment = self.environment.clone().ok_or_else(|| {
            Status::failed_precondition(
                "this reward server has no environment: add [reward_server.environment] to its configuration, or \
                 run without coordinator.episodes",
            )
        })?;
        let fields = FieldsSource::Coordinator(Arc::clone(&self.fields));
        let host = EpisodeHost { environment, fields, run };
        let (replies, outbox) = mpsc::channel::<Said>(self.queue.stream_rollouts);
        let done = self.done.clone();
        tracing::info!(%actor, "actor connected for episodes");
        let name = format!("episodes of {actor}");
        let carry = async move {
            let _stream = stream;
            let requests = futures::stream::unfold(requests, |mut requests| async move {
                let request = match next_message(&mut requests).await.transpose()? {
                    Ok(request) => EnvironmentRequest::try_from(request).map_err(|error| error.to_string()),
                    Err(status) => Err(status.message().to_owned()),
                };
                Some((request, requests))
            });
            tokio::select! {
                ended = carry_episodes(host, requests, replies.clone()) => match ended {
                    Ok(()) => tracing::info!(%actor, "actor left its episodes"),
                    Err(reason) => {
                        tracing::info!(%actor, reason, "actor's stream of episodes ended");
                        // Nobody listening means that the actor has gone.
                        let _ = replies.try_send(Err(Misbehaved(reason)));
                    }
                },
                () = done.cancelled() => {}
            }
            Ok(())
        };
        self.spawner.spawn(name, OnError::Log, carry).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox).map(message))))
    }
}

/// A reply as it goes over the wire.
fn message<R, T: From<R>>(reply: Result<R, Misbehaved>) -> Result<T, Status> {
    match reply {
        Ok(reply) => Ok(reply.into()),
        Err(Misbehaved(problem)) => Err(Status::invalid_argument(problem)),
    }
}

async fn carry_rollouts(
    registry: &RolloutRegistry,
    actor: &MemberId,
    requests: &mut Streaming<pb::ScoreRequest>,
    replies: &mpsc::Sender<Reply>,
) -> Result<(), Status> {
    while let Some(request) = next_message(requests).await? {
        // The place of the answer comes first: an actor that does not read its answers is not read either.
        let Ok(permit) = replies.clone().reserve_owned().await else { return Ok(()) };
        let identity = identity(&request);
        match (ScoreRequest::try_from(request), identity) {
            (Ok(ScoreRequest::Rollout { rollout, time_left }), _) => {
                registry.receive(rollout, time_left, actor, permit).await;
            }
            (Err(problem), Some(Identity { id, response_tokens })) => {
                // Sent again it would be refused again: this attempt has failed, and the coordinator shall
                // know.
                tracing::warn!(%actor, %id, %problem, "an invalid rollout");
                let invalid = InvalidRollout { id, response_tokens, problem: problem.to_string() };
                registry.receive_invalid(invalid, actor, permit);
            }
            (Ok(ScoreRequest::Hello { .. }), _) => {
                permit.send(Err(Misbehaved("only the first message of a stream is a hello".to_owned())));
                return Ok(());
            }
            (Err(problem), None) => {
                permit.send(Err(Misbehaved(problem.to_string())));
                return Ok(());
            }
        }
    }
    Ok(())
}

/// What identifies a rollout that may be invalid otherwise.
struct Identity {
    id: RolloutId,
    response_tokens: usize,
}

fn identity(request: &pb::ScoreRequest) -> Option<Identity> {
    match request.request.as_ref()? {
        pb::score_request::Request::Rollout(offered) => {
            let rollout = offered.rollout.as_ref()?;
            let id = RolloutId::try_from(rollout.id?).ok()?;
            Some(Identity { id, response_tokens: rollout.response_tokens.len() })
        }
        pb::score_request::Request::Hello(_) => None,
    }
}
