//! Weights point to point: how an actor gets its first, and any that it missed.
//!
//! A pull goes on as long as it comes further: a slow link takes the time that it takes. It goes on from
//! another source, at the byte where it is, when it is told one.

use std::collections::TryReserveError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proto::pb;
use proto::pb::weight_source_client::WeightSourceClient;
use service::grpc::Channel;
use service::security::WEIGHTS;
use service::{Backoff, Security};
use tokio::sync::watch;
use tonic::{Code, Status};
use types::{Invalid, ModelDescription, WeightHash};

/// Tries in a row that bring nothing, before a transfer fails. Each goes on where the one before broke off.
const TRY_COUNT: u32 = 5;
/// A source that sends nothing for this long has failed.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);
/// The pauses between tries.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// Why weights could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Nobody answers at the source's address.
    #[error(transparent)]
    Unreachable(Box<dyn std::error::Error + Send + Sync>),
    /// The source refuses, or the stream broke.
    #[error("the source of weights: {}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    /// The source takes part in the connection and sends nothing.
    #[error("the source of weights sent nothing for {SILENCE_TIMEOUT:?}")]
    Silent,
    /// The stream ended before the buffer was whole.
    #[error("the source of weights ended the stream after {at} of {total} bytes")]
    EndedEarly {
        /// Bytes that had come.
        at: usize,
        /// Bytes of the buffer.
        total: usize,
    },
    /// A chunk is not what follows.
    #[error("a chunk of {length} bytes for {offset} came at {at} of {total}")]
    Misplaced {
        /// Bytes of the chunk.
        length: usize,
        /// Where it says that it belongs.
        offset: u64,
        /// Bytes that had come.
        at: usize,
        /// Bytes of the buffer.
        total: usize,
    },
    /// The source describes other weights than the ones asked for.
    #[error("the source of weights describes {theirs} instead of {ours}")]
    OtherWeights {
        /// What was asked for.
        ours: WeightHash,
        /// What it describes.
        theirs: WeightHash,
    },
    /// Whoever ordered the pull has given it up.
    #[error("the pull was given up for another")]
    GivenUp,
    /// There is no memory for the buffer.
    #[error("no memory for {bytes} bytes of weights: {source}")]
    Memory {
        /// Bytes of the buffer.
        bytes: u64,
        /// What the allocator says.
        source: TryReserveError,
    },
    /// The manifest is not usable.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The description is not usable.
    #[error("the source of weights: {0}")]
    Protocol(#[from] proto::ProtocolError),
}

impl PullError {
    /// Whether another try may help: not when a newer version has replaced this one.
    fn is_passing(&self) -> bool {
        match self {
            Self::Status(status) => status.code() != Code::NotFound,
            Self::OtherWeights { .. } | Self::Memory { .. } => false,
            _ => true,
        }
    }
}

/// What is to be pulled, and from where.
#[derive(Debug)]
pub struct PullOrder {
    /// The weights.
    pub hash: WeightHash,
    /// `host:port` of a weight service that has them. The pull goes on from another when this changes, and is
    /// given up when the sender is gone.
    pub source: watch::Receiver<String>,
    /// Grows by the bytes that come.
    pub received_bytes: Arc<AtomicU64>,
    /// What is shown to the source.
    pub security: Security,
}

/// What a pull brought.
#[derive(Debug)]
pub struct PulledWeights {
    /// Configuration, tokenizer and manifest.
    pub description: ModelDescription,
    /// The flat buffer. It is complete, but not yet verified.
    pub buffer: Bytes,
}

/// Pulls weights with their description.
///
/// # Errors
/// When there is no memory, the source no longer has these weights or describes others, five tries in a row
/// bring nothing, or the order is given up.
pub async fn pull(order: PullOrder) -> Result<PulledWeights, PullError> {
    let PullOrder { hash, mut source, received_bytes, security } = order;
    let mut transfer = Transfer { hash, received_bytes, security, begun: None };
    loop {
        let address = source.borrow_and_update().clone();
        tokio::select! {
            whole = transfer.persist(&address) => {
                whole?;
                break;
            }
            changed = source.changed() => changed.map_err(|_| PullError::GivenUp)?,
        }
        tracing::info!(at = transfer.came(), "pull of weights goes on from another source");
    }
    transfer.begun.map(Begun::finish).ok_or(PullError::EndedEarly { at: 0, total: 0 })
}

/// A buffer that is filled from its beginning, over as many streams as it takes.
struct Transfer {
    hash: WeightHash,
    received_bytes: Arc<AtomicU64>,
    security: Security,
    /// From the first description on.
    begun: Option<Begun>,
}

struct Begun {
    description: ModelDescription,
    buffer: Vec<u8>,
    /// Bytes that the buffer has when it is whole.
    total: usize,
}

impl Transfer {
    fn came(&self) -> usize {
        self.begun.as_ref().map_or(0, |begun| begun.buffer.len())
    }

    /// Goes on, over as many streams as it takes, until the buffer is whole. May be dropped at any time: what
    /// has come stays.
    async fn persist(&mut self, source: &str) -> Result<(), PullError> {
        let mut backoff = Backoff::new(FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
        let mut failures = 0;
        loop {
            let before = self.came();
            let Err(error) = self.go_on(source).await else { return Ok(()) };
            failures = if self.came() > before { 1 } else { failures + 1 };
            if failures == TRY_COUNT || !error.is_passing() {
                return Err(error);
            }
            tracing::info!(at = self.came(), source, %error, "pull of weights broke off; going on");
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    /// Goes on where it broke off, with a new stream.
    async fn go_on(&mut self, source: &str) -> Result<(), PullError> {
        let mut client = client(source, &self.security).await?;
        if self.begun.is_none() {
            let request = pb::DescribeRequest { hash: self.hash.0.to_vec() };
            let description: ModelDescription =
                in_time(client.describe(request)).await?.into_inner().try_into()?;
            self.begun = Some(Begun::new(description, self.hash)?);
        }
        let Some(begun) = &mut self.begun else { return Ok(()) };
        let request = pb::PullRequest { hash: self.hash.0.to_vec(), offset: begun.buffer.len() as u64 };
        let mut chunks = in_time(client.pull(request)).await?.into_inner();
        while begun.buffer.len() < begun.total {
            let Some(chunk) = in_time(chunks.message()).await? else {
                return Err(PullError::EndedEarly { at: begun.buffer.len(), total: begun.total });
            };
            begun.add(&chunk)?;
            self.received_bytes.fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Begun {
    fn new(description: ModelDescription, ours: WeightHash) -> Result<Self, PullError> {
        let theirs = description.manifest.hash();
        if theirs != ours {
            return Err(PullError::OtherWeights { ours, theirs });
        }
        let bytes = description.manifest.total_bytes();
        // What does not fit the address space has no memory either.
        let total = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(total).map_err(|source| PullError::Memory { bytes, source })?;
        Ok(Self { description, buffer, total })
    }

    fn add(&mut self, chunk: &pb::WeightChunk) -> Result<(), PullError> {
        let (at, total, length, offset) = (self.buffer.len(), self.total, chunk.data.len(), chunk.offset);
        if offset != at as u64 || length > total - at {
            return Err(PullError::Misplaced { length, offset, at, total });
        }
        self.buffer.extend_from_slice(&chunk.data);
        Ok(())
    }

    fn finish(self) -> PulledWeights {
        PulledWeights { description: self.description, buffer: self.buffer.into() }
    }
}

/// The answer of a source that is not silent for too long.
async fn in_time<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, PullError> {
    let answer = tokio::time::timeout(SILENCE_TIMEOUT, answer).await;
    Ok(answer.map_err(|_| PullError::Silent)??)
}

async fn client(source: &str, security: &Security) -> Result<WeightSourceClient<Channel>, PullError> {
    let connected = service::grpc::connect(source, WEIGHTS, security).await;
    let channel = connected.map_err(|error| PullError::Unreachable(error.into()))?;
    let client = WeightSourceClient::new(channel);
    Ok(client.max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
}
