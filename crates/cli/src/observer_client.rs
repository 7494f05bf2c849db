//! Asks a coordinator how its run is doing.

use std::time::Duration;

use coordinator::Status;
use coordinator::state::StepRecord;
use proto::pb::observer_client::ObserverClient;
use proto::{MAX_MESSAGE_BYTES, pb};
use service::Security;
use service::grpc::Channel;
use tonic::Code;

/// Longest wait for an answer.
const STATUS_TIMEOUT: Duration = Duration::from_millis(400);
/// The same where steps are asked for, of which there may be a megabyte.
const STEPS_TIMEOUT: Duration = Duration::from_secs(5);

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
        let request = pb::StatusRequest::default();
        Some(self.ask_within(STATUS_TIMEOUT, request).await?.0)
    }

    /// How the run is doing, and its steps after a batch, of the last 1,000; none while the coordinator does
    /// not answer. One of an older release tells no steps.
    pub(crate) async fn look(&mut self, after: u64) -> Option<(Status, Vec<StepRecord>)> {
        self.ask_within(STEPS_TIMEOUT, pb::StatusRequest { steps_after: Some(after) }).await
    }

    async fn ask_within(
        &mut self,
        timeout: Duration,
        request: pb::StatusRequest,
    ) -> Option<(Status, Vec<StepRecord>)> {
        let answer = tokio::time::timeout(timeout, self.ask(request)).await.ok().flatten();
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

    async fn ask(&mut self, request: pb::StatusRequest) -> Option<(Status, Vec<StepRecord>)> {
        (self.refusal, self.has_answered) = (None, false);
        if self.client.is_none() {
            let channel = service::grpc::connect(&self.address, "coordinator", &self.security).await.ok()?;
            self.client = Some(ObserverClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES));
        }
        match self.client.as_mut()?.status(request).await {
            Ok(reply) => {
                self.has_answered = true;
                let pb::StatusReply { json, steps_json } = reply.into_inner();
                let steps = serde_json::from_str(&steps_json).unwrap_or_default();
                Some((serde_json::from_str(&json).ok()?, steps))
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
