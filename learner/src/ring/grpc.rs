//! The weight service for actors that join late or missed a broadcast: point to point, in chunks, from any offset.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context as _;
use futures::Stream;
use proto::pb;
use proto::pb::weight_source_server::{WeightSource, WeightSourceServer};
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};
use types::{ModelDescription, ModelFile, WeightHash};

use super::snapshots::{Snapshot, Snapshots};

/// Bytes of one message.
const CHUNK_BYTES: usize = 1 << 20;

/// Files of a model folder that an actor needs beside the weights.
const FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct WeightService {
    files: Arc<Vec<ModelFile>>,
    snapshots: Snapshots,
}

impl WeightService {
    /// Serves the snapshots, with configuration and tokenizer from the policy's folder.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn new(folder: &Path, snapshots: Snapshots) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for name in FILES {
            let path = folder.join(name);
            if path.exists() {
                let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                files.push(ModelFile::new(name.to_owned(), content)?);
            }
        }
        Ok(Self { files: Arc::new(files), snapshots })
    }

    /// The service on a server with our bounds.
    pub(crate) fn router(self) -> Router {
        let source = WeightSourceServer::new(self);
        let source = source.max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
        service::grpc::server().add_service(source)
    }

    fn snapshot(&self, hash: &[u8]) -> Result<Arc<Snapshot>, Status> {
        let found = if hash.is_empty() {
            self.snapshots.newest()
        } else {
            let hash = <[u8; 32]>::try_from(hash)
                .map_err(|_| Status::invalid_argument("hash must have 32 bytes"))?;
            self.snapshots.with_hash(WeightHash(hash))
        };
        found
            .ok_or_else(|| Status::not_found("these weights are not here; a newer version has replaced them"))
    }
}

#[tonic::async_trait]
impl WeightSource for WeightService {
    type PullStream = Pin<Box<dyn Stream<Item = Result<pb::WeightChunk, Status>> + Send>>;

    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::ModelDescription>, Status> {
        let snapshot = self.snapshot(&request.into_inner().hash)?;
        let description =
            ModelDescription { files: self.files.as_ref().clone(), manifest: snapshot.manifest.clone() };
        Ok(Response::new(description.into()))
    }

    async fn pull(&self, request: Request<pb::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let pb::PullRequest { hash, offset } = request.into_inner();
        let snapshot = self.snapshot(&hash)?;
        let total = snapshot.buffer.len();
        let offset = usize::try_from(offset).ok().filter(|offset| *offset <= total);
        let start = offset.ok_or_else(|| Status::out_of_range(format!("the buffer has {total} bytes")))?;
        let chunks = (start..total).step_by(CHUNK_BYTES).map(move |from| {
            let data = snapshot.buffer.slice(from..total.min(from + CHUNK_BYTES));
            Ok(pb::WeightChunk { offset: from as u64, data })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }
}
