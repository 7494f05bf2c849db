//! The learner's stream to the coordinator, in domain terms.

use std::time::Duration;

use proto::pb::coordinator_client::CoordinatorClient;
use proto::{LearnerCommands, pb};
use service::grpc::Channel;
use service::{Link, LinkEvent, Opening, Security};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport};

/// The link of the learner.
#[derive(Debug)]
pub(crate) struct CoordinatorLink {
    link: Link<pb::LearnerReport, pb::LearnerCommand>,
    /// Joins the parts of batches.
    commands: LearnerCommands,
    /// Why the last try to connect failed, until `next` has said so.
    failure: Option<LinkEvent<LearnerCommand>>,
}

impl CoordinatorLink {
    /// A link to `host:port` that gives up after `timeout` without a stream.
    pub(crate) fn new(address: String, security: Security, timeout: Duration) -> Self {
        let link = Link::new(address, "coordinator", security, learn, Some(timeout));
        Self { link, commands: LearnerCommands::default(), failure: None }
    }

    /// Whether a stream is open.
    pub(crate) fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// Waits for what happens next. The future may be dropped at any time.
    pub(crate) async fn next(&mut self) -> LinkEvent<LearnerCommand> {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        loop {
            let event = self.link.next().await;
            let LinkEvent::Command(message) = event else {
                return event.and_then(|_| LinkEvent::Lost("a command that was none".to_owned()));
            };
            match self.commands.push(message) {
                Ok(Some(command)) => return LinkEvent::Command(command),
                Ok(None) => {}
                Err(error) => {
                    return self.link.broke(format!("a command that cannot be understood: {error}"));
                }
            }
        }
    }

    /// Opens a stream with this hello. What goes wrong is the next event.
    pub(crate) async fn connect(&mut self, hello: LearnerHello) {
        self.commands = LearnerCommands::default();
        self.failure = self.link.connect(hello.into()).await;
    }

    /// Sends a report. Without a stream it is dropped: the next hello says everything that matters.
    pub(crate) async fn report(&mut self, report: LearnerReport) {
        self.link.report(report.into()).await;
    }
}

fn learn(
    channel: Channel,
    reports: Request<ReceiverStream<pb::LearnerReport>>,
) -> Opening<pb::LearnerCommand> {
    let mut client = CoordinatorClient::new(channel)
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    Box::pin(async move { client.learn(reports).await })
}
