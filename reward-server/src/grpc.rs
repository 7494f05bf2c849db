//! The service for actors: a stream of rollouts up, one answer each down.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use proto::pb::reward_server_server::{RewardServer, RewardServerServer};
use proto::{CALLERS, MAX_MESSAGE_BYTES, pb};
use service::grpc::Router;
use service::{CancellationToken, OnError, Security, Spawner};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::link::reward::ScoreRequest;
use types::{MemberId, RolloutId};

use crate::config::QueueConfig;
use crate::registry::{InvalidRollout, Misbehaved, Reply, RolloutRegistry};

/// How long a new stream may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    registry: RolloutRegistry,
    spawner: Spawner,
    queue: QueueConfig,
    /// One permit for each stream there may be.
    streams: Arc<Semaphore>,
    /// Cancelled when the server has left the run: streams are read no further.
    done: CancellationToken,
}

impl Grpc {
    pub(crate) fn new(
        registry: RolloutRegistry,
        spawner: Spawner,
        queue: QueueConfig,
        done: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(queue.max_streams));
        Self { registry, spawner, queue, streams, done }
    }

    /// The service on a server with our bounds.
    pub(crate) fn router(self, security: &Security) -> Router {
        let service = RewardServerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        service::grpc::server(security, CALLERS).add_service(service)
    }

    /// The actor behind a new stream.
    async fn introduction(&self, requests: &mut Streaming<pb::ScoreRequest>) -> Result<MemberId, Status> {
        let first = match tokio::time::timeout(HELLO_TIMEOUT, requests.next()).await {
            Ok(Some(message)) => message?,
            Ok(None) => return Err(Status::invalid_argument("the stream ended before a hello")),
            Err(_) => return Err(Status::deadline_exceeded(format!("no hello within {HELLO_TIMEOUT:?}"))),
        };
        let ScoreRequest::Hello { run, member } = first.try_into()? else {
            return Err(Status::invalid_argument("the first message of a stream must be a hello"));
        };
        match self.registry.run() {
            None => Err(Status::unavailable("not yet connected to the coordinator")),
            Some(ours) if ours != run => Err(Status::failed_precondition(format!(
                "this reward server works for run {ours}, not for run {run}"
            ))),
            Some(_) => Ok(member),
        }
    }
}

#[tonic::async_trait]
impl RewardServer for Grpc {
    type ScoreStream = Pin<Box<dyn Stream<Item = Result<pb::ScoreReply, Status>> + Send>>;

    async fn score(
        &self,
        request: Request<Streaming<pb::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStream>, Status> {
        let mut requests = request.into_inner();
        let stream = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{} streams are open, the most that queue.max_streams allows; try another reward server, or later",
                self.queue.max_streams
            ))
        })?;
        let actor = self.introduction(&mut requests).await?;
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
}

/// A reply as it goes over the wire.
fn message(reply: Reply) -> Result<pb::ScoreReply, Status> {
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
    while let Some(request) = requests.next().await {
        // The place of the answer comes first: an actor that does not read its answers is not read either.
        let Ok(permit) = replies.clone().reserve_owned().await else { return Ok(()) };
        let request = request?;
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
