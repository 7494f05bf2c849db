//! Asks a coordinator how its run is doing.

use std::time::Duration;

use coordinator::Status;
use proto::pb;
use proto::pb::observer_client::ObserverClient;
use service::Security;
use service::grpc::Channel;
use tonic::Code;

/// Longest wait for an answer.
const STATUS_TIMEOUT: Duration = Duration::from_millis(400);

/// A view of one coordinator.
#[derive(Debug)]
pub(crate) struct Observer {
    address: String,
    security: Security,
    client: Option<ObserverClient<Channel>>,
    /// Why it would not say, where it would not.
    refusal: Option<String>,
    /// It has answered the last question, whatever it said.
    has_answered: bool,
}

impl Observer {
    /// Observes the coordinator at `host:port`; connects when first asked.
    pub(crate) fn new(address: String, security: Security) -> Self {
        Self { address, security, client: None, refusal: None, has_answered: false }
    }

    /// How the run is doing; none while the coordinator does not answer.
    pub(crate) async fn status(&mut self) -> Option<Status> {
        let answer = tokio::time::timeout(STATUS_TIMEOUT, self.ask()).await.ok().flatten();
        if answer.is_none() {
            self.client = None;
        }
        answer
    }

    /// Why the coordinator refused the last question, if it did.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether the coordinator has answered the last question, be it with a refusal.
    pub(crate) fn has_answered(&self) -> bool {
        self.has_answered
    }

    async fn ask(&mut self) -> Option<Status> {
        (self.refusal, self.has_answered) = (None, false);
        if self.client.is_none() {
            let channel = service::grpc::connect(&self.address, "coordinator", &self.security).await.ok()?;
            self.client = Some(ObserverClient::new(channel));
        }
        match self.client.as_mut()?.status(pb::StatusRequest {}).await {
            Ok(reply) => {
                self.has_answered = true;
                serde_json::from_str(&reply.into_inner().json).ok()
            }
            Err(status) => {
                let refused = matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied);
                self.has_answered = refused;
                self.refusal = refused.then(|| status.message().to_owned());
                None
            }
        }
    }
}
