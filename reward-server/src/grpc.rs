//! The service for actors: a stream of rollouts up, one answer each down.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use proto::MAX_MESSAGE_BYTES;
use proto::pb;
use proto::pb::reward_server_server::{RewardServer, RewardServerServer};
use service::{CancellationToken, OnError, Spawner};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};
use types::link::reward::ScoreRequest;
use types::{MemberId, RolloutId};

use crate::config::QueueConfig;
use crate::desk::Desk;
use crate::ledger::{Misbehaved, Reply};

/// How long a new stream may take to introduce itself.
const HELLO_TIME_LIMIT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    desk: Desk,
    spawner: Spawner,
    queue: QueueConfig,
    /// One permit for each stream there may be.
    streams: Arc<Semaphore>,
    /// Cancelled when the server has left the run: streams are read no further.
    done: CancellationToken,
}

impl Grpc {
    pub(crate) fn new(desk: Desk, spawner: Spawner, queue: QueueConfig, done: CancellationToken) -> Self {
        let streams = Arc::new(Semaphore::new(queue.max_streams));
        Self { desk, spawner, queue, streams, done }
    }

    /// The service on a server with our bounds.
    pub(crate) fn router(self) -> Router {
        let service = RewardServerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        service::grpc::server().add_service(service)
    }

    /// The actor behind a new stream.
    async fn introduction(&self, requests: &mut Streaming<pb::ScoreRequest>) -> Result<MemberId, Status> {
        let first = match tokio::time::timeout(HELLO_TIME_LIMIT, requests.next()).await {
            Ok(Some(message)) => message?,
            Ok(None) => return Err(Status::invalid_argument("the stream ended before a hello")),
            Err(_) => return Err(Status::deadline_exceeded(format!("no hello within {HELLO_TIME_LIMIT:?}"))),
        };
        let ScoreRequest::Hello { run, member } = first.try_into()? else {
            return Err(Status::invalid_argument("the first message of a stream must be a hello"));
        };
        match self.desk.run() {
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
        let (desk, done) = (self.desk.clone(), self.done.clone());
        tracing::info!(%actor, "actor connected");
        let name = format!("stream of {actor}");
        let carry = async move {
            let _stream = stream;
            tokio::select! {
                ended = carry_rollouts(&desk, &actor, &mut requests, &replies) => match ended {
                    Ok(()) => tracing::info!(%actor, "actor left"),
                    Err(status) => tracing::info!(%actor, reason = status.message(), "actor's stream ended"),
                },
                () = done.cancelled() => {}
            }
            Ok(())
        };
        self.spawner.spawn(name, OnError::Log, carry).await;
        let message = |reply: Reply| match reply {
            Ok(reply) => Ok(pb::ScoreReply::from(reply)),
            Err(Misbehaved(problem)) => Err(Status::invalid_argument(problem)),
        };
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox).map(message))))
    }
}

async fn carry_rollouts(
    desk: &Desk,
    actor: &MemberId,
    requests: &mut Streaming<pb::ScoreRequest>,
    replies: &mpsc::Sender<Reply>,
) -> Result<(), Status> {
    while let Some(request) = requests.next().await {
        // The place of the answer comes first: an actor that does not read its answers is not read either.
        let Ok(answer) = replies.clone().reserve_owned().await else { return Ok(()) };
        let request = request?;
        let id = rollout_id(&request);
        match (ScoreRequest::try_from(request), id) {
            (Ok(ScoreRequest::Rollout { rollout, time_left }), _) => {
                desk.receive(rollout, time_left, actor, answer).await;
            }
            (Err(problem), Some((id, tokens))) => {
                // Sent again it would be refused again: this attempt has failed, and the coordinator shall know.
                tracing::warn!(%actor, %id, %problem, "an invalid rollout");
                desk.refuse_invalid((id, tokens), problem.to_string(), actor, answer);
            }
            (Ok(ScoreRequest::Hello { .. }), _) => {
                answer.send(Err(Misbehaved("only the first message of a stream is a hello".to_owned())));
                return Ok(());
            }
            (Err(problem), None) => {
                answer.send(Err(Misbehaved(problem.to_string())));
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The id and length of a rollout that may be invalid otherwise.
fn rollout_id(request: &pb::ScoreRequest) -> Option<(RolloutId, usize)> {
    match request.request.as_ref()? {
        pb::score_request::Request::Rollout(offered) => {
            let rollout = offered.rollout.as_ref()?;
            Some((RolloutId::try_from(rollout.id?).ok()?, rollout.response_tokens.len()))
        }
        pb::score_request::Request::Hello(_) => None,
    }
}
