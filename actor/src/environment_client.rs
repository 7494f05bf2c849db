//! One stream of episodes to one reward server, kept up as long as the server is listed.

use proto::pb;
use proto::pb::reward_server_client::RewardServerClient;
use service::grpc::Channel;
use service::{Link, LinkEvent, Opening, Security};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use types::link::environment::{EnvironmentReply, EnvironmentRequest};
use types::{MemberId, RunId};

/// What a stream has to say.
#[derive(Debug)]
pub(crate) struct StreamReport {
    pub(crate) server: MemberId,
    pub(crate) event: StreamEvent,
}

/// What happened on a stream.
#[derive(Debug)]
pub(crate) enum StreamEvent {
    Connected,
    Lost(String),
    Reply(EnvironmentReply),
}

/// Who plays episodes, for which run.
#[derive(Debug, Clone)]
pub(crate) struct Player {
    pub(crate) run: RunId,
    pub(crate) member: MemberId,
    pub(crate) security: Security,
}

/// Serves one server until dropped, or until nobody listens to what happens.
pub(crate) async fn play(
    server: MemberId,
    address: String,
    player: Player,
    mut requests: mpsc::Receiver<EnvironmentRequest>,
    events: mpsc::Sender<StreamReport>,
) {
    let mut link = Link::new(address, "reward-server", player.security.clone(), environment, None);
    loop {
        let reports = link.reports();
        let happened = tokio::select! {
            event = link.next() => event,
            () = send_next(reports, &mut requests) => continue,
        };
        let event = match happened {
            LinkEvent::Due => {
                let (run, member) = (player.run.clone(), player.member.clone());
                match link.connect(EnvironmentRequest::Hello { run, member }.into()).await {
                    Some(failed) => failed,
                    None => {
                        // No episode outlives its stream.
                        while requests.try_recv().is_ok() {}
                        LinkEvent::Due
                    }
                }
            }
            event => event,
        };
        let event = match event {
            LinkEvent::Due => StreamEvent::Connected,
            LinkEvent::Command(reply) => match EnvironmentReply::try_from(reply) {
                Ok(reply) => StreamEvent::Reply(reply),
                Err(error) => {
                    let _: LinkEvent<()> = link.broke(error.to_string());
                    StreamEvent::Lost(format!("a reply that cannot be understood: {error}"))
                }
            },
            LinkEvent::Lost(reason) | LinkEvent::Refused(reason) | LinkEvent::GaveUp(reason) => {
                StreamEvent::Lost(reason)
            }
        };
        if events.send(StreamReport { server: server.clone(), event }).await.is_err() {
            return;
        }
    }
}

/// Sends the next request as soon as there is one and room for it. Never ends without a stream.
async fn send_next(
    reports: Option<mpsc::Sender<pb::EnvironmentRequest>>,
    requests: &mut mpsc::Receiver<EnvironmentRequest>,
) {
    if let Some(reports) = reports
        && let Ok(place) = reports.reserve().await
        && let Some(request) = requests.recv().await
    {
        return place.send(request.into());
    }
    std::future::pending().await
}

fn environment(
    channel: Channel,
    requests: Request<ReceiverStream<pb::EnvironmentRequest>>,
) -> Opening<pb::EnvironmentReply> {
    let mut client = RewardServerClient::new(channel)
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    Box::pin(async move { client.environment(requests).await })
}
