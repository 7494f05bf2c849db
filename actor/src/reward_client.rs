//! One stream to one reward server, kept up as long as the server is listed.

use std::time::Duration;

use proto::pb;
use proto::pb::reward_server_client::RewardServerClient;
use service::Backoff;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use types::MemberId;
use types::link::reward::{ScoreReply, ScoreRequest};

use crate::delivery::{Delivery, DeliveryConfig};

/// Requests that may wait for the wire.
const REQUEST_CAPACITY: usize = 16;
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// What a stream has to say.
#[derive(Debug)]
pub(crate) struct ServerReport {
    pub(crate) server: MemberId,
    pub(crate) event: ServerEvent,
}

/// What happened on a stream.
#[derive(Debug)]
pub(crate) enum ServerEvent {
    Connected,
    Lost(String),
    Reply(ScoreReply),
}

/// Serves one server until dropped.
pub(crate) async fn serve(
    server: MemberId,
    address: String,
    config: DeliveryConfig,
    mut rollouts: mpsc::Receiver<Delivery>,
    events: mpsc::Sender<ServerReport>,
) {
    let mut backoff = Backoff::new(FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
    loop {
        let reason = match open(&address, &config).await {
            Err(error) => format!("{error:#}"),
            Ok((requests, replies)) => {
                backoff.reset();
                // Nothing from before the break may be taken for new.
                while rollouts.try_recv().is_ok() {}
                let connected = ServerReport { server: server.clone(), event: ServerEvent::Connected };
                if events.send(connected).await.is_err() {
                    return;
                }
                let ended = converse(&server, requests, replies, &mut rollouts, &events).await;
                format!("{ended:#}")
            }
        };
        let lost = ServerReport { server: server.clone(), event: ServerEvent::Lost(reason) };
        if events.send(lost).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

type Requests = mpsc::Sender<pb::ScoreRequest>;

async fn open(
    address: &str,
    config: &DeliveryConfig,
) -> anyhow::Result<(Requests, Streaming<pb::ScoreReply>)> {
    let channel = service::grpc::connect(address).await?;
    let mut client = RewardServerClient::new(channel)
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    let (requests, outgoing) = mpsc::channel(REQUEST_CAPACITY);
    let hello = ScoreRequest::Hello { run: config.run.clone(), member: config.member.clone() };
    requests.send(hello.into()).await?;
    let replies = client.score(ReceiverStream::new(outgoing)).await?;
    Ok((requests, replies.into_inner()))
}

/// Carries rollouts up and replies down until the stream ends; yields why.
async fn converse(
    server: &MemberId,
    requests: Requests,
    mut replies: Streaming<pb::ScoreReply>,
    rollouts: &mut mpsc::Receiver<Delivery>,
    events: &mpsc::Sender<ServerReport>,
) -> anyhow::Error {
    loop {
        tokio::select! {
            Some(Delivery { rollout, deadline }) = rollouts.recv() => {
                let time_left = deadline.saturating_duration_since(Instant::now());
                let request = ScoreRequest::Rollout { rollout: rollout.as_ref().clone(), time_left };
                if requests.send(request.into()).await.is_err() {
                    return anyhow::anyhow!("the stream closed");
                }
            }
            reply = replies.message() => {
                let reply = match reply {
                    Ok(Some(reply)) => ScoreReply::try_from(reply),
                    Ok(None) => return anyhow::anyhow!("the server closed the stream"),
                    Err(status) => return anyhow::anyhow!("{}", status.message()),
                };
                let event = match reply {
                    Ok(reply) => ServerEvent::Reply(reply),
                    Err(error) => return error.into(),
                };
                if events.send(ServerReport { server: server.clone(), event }).await.is_err() {
                    return anyhow::anyhow!("the router is gone");
                }
            }
        }
    }
}
