//! One stream to one reward server, kept up as long as the server is listed.

use proto::pb;
use proto::pb::reward_server_client::RewardServerClient;
use service::grpc::Channel;
use service::{Link, LinkEvent, Opening};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use types::MemberId;
use types::link::reward::{ScoreReply, ScoreRequest};

use crate::delivery::{Delivery, DeliveryConfig};

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

/// Serves one server until dropped, or until nobody listens to what happens.
pub(crate) async fn serve(
    server: MemberId,
    address: String,
    config: DeliveryConfig,
    mut rollouts: mpsc::Receiver<Delivery>,
    events: mpsc::Sender<ServerReport>,
) {
    let mut link = Link::new(address, "reward-server", config.security.clone(), score, None);
    loop {
        let reports = link.reports();
        let happened = tokio::select! {
            event = link.next() => event,
            () = send_next(reports, &mut rollouts) => continue,
        };
        let event = match happened {
            LinkEvent::Due => {
                let hello = ScoreRequest::Hello { run: config.run.clone(), member: config.member.clone() };
                match link.connect(hello.into()).await {
                    Some(failed) => failed,
                    None => {
                        // Nothing from before the break may be taken for new.
                        while rollouts.try_recv().is_ok() {}
                        LinkEvent::Due
                    }
                }
            }
            event => event,
        };
        let event = match event {
            LinkEvent::Due => ServerEvent::Connected,
            LinkEvent::Command(reply) => match ScoreReply::try_from(reply) {
                Ok(reply) => ServerEvent::Reply(reply),
                Err(error) => {
                    let _: LinkEvent<()> = link.broke(error.to_string());
                    ServerEvent::Lost(format!("a reply that cannot be understood: {error}"))
                }
            },
            LinkEvent::Lost(reason) | LinkEvent::Refused(reason) | LinkEvent::GaveUp(reason) => {
                ServerEvent::Lost(reason)
            }
        };
        if events.send(ServerReport { server: server.clone(), event }).await.is_err() {
            return;
        }
    }
}

/// Sends the next rollout as soon as there is one and room for it. Never ends without a stream.
async fn send_next(reports: Option<mpsc::Sender<pb::ScoreRequest>>, rollouts: &mut mpsc::Receiver<Delivery>) {
    if let Some(reports) = reports
        && let Ok(place) = reports.reserve().await
        && let Some(Delivery { rollout, deadline }) = rollouts.recv().await
    {
        let time_left = deadline.saturating_duration_since(Instant::now());
        return place.send(ScoreRequest::Rollout { rollout: rollout.as_ref().clone(), time_left }.into());
    }
    std::future::pending().await
}

fn score(channel: Channel, requests: Request<ReceiverStream<pb::ScoreRequest>>) -> Opening<pb::ScoreReply> {
    let mut client = RewardServerClient::new(channel)
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    Box::pin(async move { client.score(requests).await })
}
