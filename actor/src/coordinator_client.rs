//! The actor's stream to the coordinator, in domain terms.

use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use service::grpc::Channel;
use service::{Link, LinkEvent, Opening, Security};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use types::link::actor::{ActorCommand, ActorHello, ActorReport};

/// The link of an actor.
#[derive(Debug)]
pub(crate) struct CoordinatorLink(Link<pb::ActorReport, pb::ActorCommand>);

impl CoordinatorLink {
    /// A link to `host:port` that gives up after `timeout` without a stream.
    pub(crate) fn new(address: String, security: Security, timeout: Duration) -> Self {
        Self(Link::new(address, "coordinator", security, act, Some(timeout)))
    }

    /// Whether a stream is open.
    pub(crate) fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    /// Waits for what happens next. The future may be dropped at any time.
    pub(crate) async fn next(&mut self) -> LinkEvent<ActorCommand> {
        let event = self.0.next().await;
        event.and_then(|command| match ActorCommand::try_from(command) {
            Ok(command) => LinkEvent::Command(command),
            Err(error) => self.0.broke(format!("a command that cannot be understood: {error}")),
        })
    }

    /// Opens a stream with this hello. Yields what went wrong, if anything did.
    pub(crate) async fn connect(&mut self, hello: ActorHello) -> Option<LinkEvent<ActorCommand>> {
        self.0.connect(hello.into()).await
    }

    /// Sends a report. Without a stream it is dropped: the next hello says everything that matters.
    pub(crate) async fn report(&mut self, report: ActorReport) {
        self.0.report(report.into()).await;
    }
}

fn act(channel: Channel, reports: Request<ReceiverStream<pb::ActorReport>>) -> Opening<pb::ActorCommand> {
    let mut client = CoordinatorClient::new(channel)
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    Box::pin(async move { client.act(reports).await })
}
