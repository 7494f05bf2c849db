//! Asks a coordinator how its run is doing.

use std::time::Duration;

use coordinator::Status;
use proto::pb;
use proto::pb::observer_client::ObserverClient;
use tonic::transport::Channel;

/// Longest wait for an answer.
const STATUS_TIMEOUT: Duration = Duration::from_millis(400);

/// A view of one coordinator.
#[derive(Debug)]
pub(crate) struct Observer {
    address: String,
    client: Option<ObserverClient<Channel>>,
}

impl Observer {
    /// Observes the coordinator at `host:port`; connects when first asked.
    pub(crate) fn new(address: String) -> Self {
        Self { address, client: None }
    }

    /// How the run is doing; none while the coordinator does not answer.
    pub(crate) async fn status(&mut self) -> Option<Status> {
        let answer = tokio::time::timeout(STATUS_TIMEOUT, self.ask()).await.ok().flatten();
        if answer.is_none() {
            self.client = None;
        }
        answer
    }

    async fn ask(&mut self) -> Option<Status> {
        if self.client.is_none() {
            self.client = Some(ObserverClient::new(service::grpc::connect(&self.address).await.ok()?));
        }
        let client = self.client.as_mut()?;
        let reply = client.status(pb::StatusRequest {}).await.ok()?;
        serde_json::from_str(&reply.into_inner().json).ok()
    }
}
