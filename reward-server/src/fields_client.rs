//! The fields of prompts (hidden tests, labels), asked of the coordinator when the first response to a prompt
//! is scored, and kept for its siblings. Actors do not have them (docs/decisions.md, D18).

use std::sync::Arc;
use std::time::Duration;

use proto::pb;
use proto::pb::coordinator_client::CoordinatorClient;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use service::grpc::Channel;
use service::{Backoff, Security};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status};
use types::{PromptId, RunId};

use crate::score_error::ScoreError;

/// Bytes of fields that are kept, and how many prompts they are thought to be of.
const KEPT_BYTES: u64 = 64 << 20;
const KEPT_PROMPTS: usize = 16_384;
/// What a prompt without fields takes.
const ENTRY_BYTES: u64 = 64;
/// How long the coordinator may take to answer, and the pauses before it is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// The fields of the run's prompts.
#[derive(Debug)]
pub(crate) struct PromptFields {
    /// `host:port` of the coordinator.
    coordinator: String,
    security: Security,
    client: Mutex<Option<CoordinatorClient<Channel>>>,
    known: Cache<PromptId, Arc<str>, Bytes>,
}

#[derive(Debug, Clone)]
struct Bytes;

impl Weighter<PromptId, Arc<str>> for Bytes {
    fn weight(&self, _: &PromptId, fields: &Arc<str>) -> u64 {
        ENTRY_BYTES + fields.len() as u64
    }
}

impl PromptFields {
    pub(crate) fn new(coordinator: String, security: Security) -> Self {
        let known = Cache::with_weighter(KEPT_PROMPTS, KEPT_BYTES, Bytes);
        Self { coordinator, security, client: Mutex::new(None), known }
    }

    /// The fields of a prompt. Siblings that come together ask once.
    ///
    /// # Errors
    /// When the coordinator does not know the prompt, or does not answer by the deadline.
    pub(crate) async fn of(
        &self,
        run: Option<RunId>,
        prompt: PromptId,
        deadline: Instant,
    ) -> Result<Arc<str>, ScoreError> {
        let run = run.map(String::from).unwrap_or_default();
        let asked = self.known.get_or_insert_async(&prompt, self.ask(run, prompt));
        tokio::time::timeout_at(deadline, asked).await.unwrap_or_else(|_| {
            let coordinator = &self.coordinator;
            Err(ScoreError::overload(format!(
                "the coordinator at {coordinator} did not say the fields of prompt {prompt} in time"
            )))
        })
    }

    /// Asks until there is an answer: a coordinator that is started again comes back.
    async fn ask(&self, run: String, prompt: PromptId) -> Result<Arc<str>, ScoreError> {
        let mut backoff = Backoff::new(FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
        loop {
            let asked = tokio::time::timeout(ANSWER_TIMEOUT, self.ask_once(&run, prompt)).await;
            let status = match asked {
                Ok(Ok(fields)) => return Ok(fields),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {ANSWER_TIMEOUT:?}")),
            };
            if matches!(status.code(), Code::NotFound | Code::FailedPrecondition | Code::Unimplemented) {
                let said = status.message();
                return Err(ScoreError::error(format!("the fields of prompt {prompt}: {said}")));
            }
            tracing::debug!(%prompt, reason = status.message(), "no fields yet");
            *self.client.lock().await = None;
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    async fn ask_once(&self, run: &str, prompt: PromptId) -> Result<Arc<str>, Status> {
        let mut client = self.client().await?;
        let PromptId { epoch, ordinal } = prompt;
        let request = pb::FieldsRequest { run: run.to_owned(), epoch, ordinal };
        Ok(client.fields(request).await?.into_inner().fields.into())
    }

    async fn client(&self) -> Result<CoordinatorClient<Channel>, Status> {
        let mut client = self.client.lock().await;
        if let Some(client) = client.as_ref() {
            return Ok(client.clone());
        }
        let connected = service::grpc::connect(&self.coordinator, "coordinator", &self.security).await;
        let channel = connected.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        let new = CoordinatorClient::new(channel).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        Ok(client.insert(new).clone())
    }
}
