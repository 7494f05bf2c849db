//! Weights point to point from the learner: how an actor gets its first, and any that it missed (design D6).

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use proto::pb;
use proto::pb::weight_source_client::WeightSourceClient;
use service::Backoff;
use tonic::transport::Channel;
use types::{Manifest, ModelDescription, WeightHash};

/// Tries at a transfer; each goes on where the one before broke off.
const TRIES: u32 = 5;
/// A stream that brings nothing for this long is broken off.
const SILENCE: Duration = Duration::from_secs(20);

/// Configuration, tokenizer and the manifest of the weights with this hash.
///
/// # Errors
/// When the learner does not answer, answers nonsense, or no longer has these weights.
pub(crate) async fn describe(source: &str, hash: WeightHash) -> anyhow::Result<ModelDescription> {
    let mut client = client(source).await?;
    let request = pb::DescribeRequest { hash: hash.0.to_vec() };
    let description = tokio::time::timeout(SILENCE, client.describe(request)).await;
    let description = description.context("the learner does not describe its model")??;
    Ok(description.into_inner().try_into()?)
}

/// Writes a described model's files, so that the ordinary readers can read them.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn write_files(folder: &Path, description: &ModelDescription) -> anyhow::Result<()> {
    for file in &description.files {
        let path = folder.join(&file.name);
        std::fs::write(&path, &file.content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The flat buffer of the weights with this hash. It is complete, but not yet verified.
///
/// # Errors
/// When the learner no longer has them, or the transfer broke off too often.
pub(crate) async fn pull(source: &str, manifest: &Manifest) -> anyhow::Result<Bytes> {
    let total = usize::try_from(manifest.total_bytes()?)?;
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(total).context("no memory for the weights")?;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    for attempt in 1..=TRIES {
        match pull_from(source, manifest.hash, total, &mut buffer).await {
            Ok(()) => return Ok(buffer.into()),
            Err(error) if attempt == TRIES || is_gone(&error) => return Err(error),
            Err(error) => {
                tracing::info!(
                    at = buffer.len(),
                    total,
                    error = format!("{error:#}"),
                    "pull broke off; going on"
                );
                tokio::time::sleep(backoff.next_pause()).await;
            }
        }
    }
    anyhow::bail!("the transfer broke off {TRIES} times")
}

/// Whether another try cannot help: a newer version has replaced this one.
fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<tonic::Status>().is_some_and(|status| status.code() == tonic::Code::NotFound)
}

async fn pull_from(source: &str, hash: WeightHash, total: usize, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
    let request = pb::PullRequest { hash: hash.0.to_vec(), offset: buffer.len() as u64 };
    let mut chunks = client(source).await?.pull(request).await?.into_inner();
    while buffer.len() < total {
        let chunk =
            tokio::time::timeout(SILENCE, chunks.message()).await.context("the learner fell silent")??;
        let pb::WeightChunk { offset, data } = chunk.context("the stream ended early")?;
        anyhow::ensure!(offset == buffer.len() as u64, "a chunk for {offset} came at {}", buffer.len());
        anyhow::ensure!(data.len() <= total - buffer.len(), "more bytes than the manifest says");
        buffer.extend_from_slice(&data);
    }
    Ok(())
}

async fn client(source: &str) -> anyhow::Result<WeightSourceClient<Channel>> {
    let channel = service::grpc::connect(source).await?;
    let client = WeightSourceClient::new(channel);
    Ok(client.max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
}
