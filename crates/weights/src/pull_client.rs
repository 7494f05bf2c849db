//! Weights point to point: how an actor gets its first, and any that it missed.

use std::collections::TryReserveError;
use std::time::Duration;

use bytes::Bytes;
use proto::pb;
use proto::pb::weight_source_client::WeightSourceClient;
use service::Backoff;
use tonic::Code;
use tonic::transport::Channel;
use types::{Invalid, Manifest, ModelDescription, WeightHash};

/// Tries at a transfer; each goes on where the one before broke off.
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
            _ => true,
        }
    }
}

/// Configuration, tokenizer and the manifest of the weights with this hash, from `host:port`.
///
/// # Errors
/// When the source does not answer, answers nonsense, or no longer has these weights.
pub async fn describe(source: &str, hash: WeightHash) -> Result<ModelDescription, PullError> {
    let mut client = client(source).await?;
    let request = pb::DescribeRequest { hash: hash.0.to_vec() };
    let description = tokio::time::timeout(SILENCE_TIMEOUT, client.describe(request)).await;
    let description = description.map_err(|_| PullError::Silent)??;
    Ok(description.into_inner().try_into()?)
}

/// The flat buffer of the weights with this hash, from `host:port`. It is complete, but not yet verified.
///
/// # Errors
/// When there is no memory, the source no longer has these weights, or the transfer broke off too often.
pub async fn pull(source: &str, manifest: &Manifest) -> Result<Bytes, PullError> {
    let mut transfer = Transfer::new(manifest)?;
    let mut backoff = Backoff::new(FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
    for attempt in 1.. {
        match transfer.go_on(source).await {
            Ok(()) => break,
            Err(error) if attempt == TRY_COUNT || !error.is_passing() => return Err(error),
            Err(error) => {
                let (at, total) = (transfer.buffer.len(), transfer.total);
                tracing::info!(at, total, %error, "pull of weights broke off; going on");
                tokio::time::sleep(backoff.next_pause()).await;
            }
        }
    }
    Ok(transfer.buffer.into())
}

/// A buffer that is filled from its beginning, over as many streams as it takes.
struct Transfer {
    hash: WeightHash,
    buffer: Vec<u8>,
    /// Bytes that the buffer has when it is whole.
    total: usize,
}

impl Transfer {
    fn new(manifest: &Manifest) -> Result<Self, PullError> {
        let bytes = manifest.total_bytes();
        // What does not fit the address space has no memory either.
        let total = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(total).map_err(|source| PullError::Memory { bytes, source })?;
        Ok(Self { hash: manifest.hash(), buffer, total })
    }

    /// Goes on where it broke off, with a new stream.
    async fn go_on(&mut self, source: &str) -> Result<(), PullError> {
        let request = pb::PullRequest { hash: self.hash.0.to_vec(), offset: self.buffer.len() as u64 };
        let mut chunks = client(source).await?.pull(request).await?.into_inner();
        while self.buffer.len() < self.total {
            let chunk = tokio::time::timeout(SILENCE_TIMEOUT, chunks.message()).await;
            match chunk.map_err(|_| PullError::Silent)?? {
                Some(chunk) => self.add(&chunk)?,
                None => return Err(PullError::EndedEarly { at: self.buffer.len(), total: self.total }),
            }
        }
        Ok(())
    }

    fn add(&mut self, chunk: &pb::WeightChunk) -> Result<(), PullError> {
        let (at, total, length, offset) = (self.buffer.len(), self.total, chunk.data.len(), chunk.offset);
        if offset != at as u64 || length > total - at {
            return Err(PullError::Misplaced { length, offset, at, total });
        }
        self.buffer.extend_from_slice(&chunk.data);
        Ok(())
    }
}

async fn client(source: &str) -> Result<WeightSourceClient<Channel>, PullError> {
    let connected = service::grpc::connect(source).await;
    let channel = connected.map_err(|error| PullError::Unreachable(error.into()))?;
    let client = WeightSourceClient::new(channel);
    Ok(client.max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
}
