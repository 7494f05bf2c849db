//! The weight service, for actors that join late or missed a broadcast: point to point, in chunks, from any
//! offset.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::Stream;
use proto::pb::weight_source_server::{WeightSource, WeightSourceServer};
use proto::{CALLERS, pb};
use service::Security;
use service::grpc::Router;
use tonic::{Request, Response, Status};
use types::{ModelDescription, ModelFile, WeightHash};

use crate::snapshots::{Snapshot, Snapshots};

/// Bytes of the buffer in one message: what has come is counted by messages, so that a slow link has to bring
/// one within the time in which a pull without progress is given up.
const CHUNK_BYTES: usize = 256 << 10;

/// How long a ping of this server may take. Its answer waits for what lies in the buffers of the connection:
/// 8 MiB at most, for which a link of 100 kB/s needs 84 seconds. Whether a pull comes further is the
/// coordinator's concern.
const PING_TIMEOUT: Duration = Duration::from_secs(120);

/// Files of a model folder that configuration, tokenizer and chat template are read from.
const MODEL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// A file of the policy's folder is there and cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {path}: {source}")]
pub struct UnreadableFile {
    path: PathBuf,
    source: io::Error,
}

/// Configuration and tokenizer of the policy: from its folder, or as they came from somebody else.
#[derive(Debug, Clone, Default)]
pub struct ModelFiles(Arc<OnceLock<Vec<ModelFile>>>);

impl ModelFiles {
    /// The files of the policy's folder.
    ///
    /// # Errors
    /// Names the file that is there and cannot be read.
    pub fn of_folder(folder: &Path) -> Result<Self, UnreadableFile> {
        let mut files = Vec::new();
        for name in MODEL_FILES {
            let path = folder.join(name);
            match std::fs::read(&path) {
                Ok(content) => {
                    let file = ModelFile::new(name.to_owned(), content);
                    files.push(file.expect("the names above are plain file names"));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(UnreadableFile { path, source }),
            }
        }
        Ok(Self(Arc::new(OnceLock::from(files))))
    }

    /// Makes them known, where nobody has before.
    pub fn set(&self, files: Vec<ModelFile>) {
        self.0.get_or_init(|| files);
    }
}

/// The service: the learner's, or that of an actor that shares what it has.
#[derive(Debug, Clone)]
pub struct WeightService {
    files: ModelFiles,
    snapshots: Snapshots,
}

impl WeightService {
    /// Serves the snapshots with these files.
    pub fn new(files: ModelFiles, snapshots: Snapshots) -> Self {
        Self { files, snapshots }
    }

    /// The service on a server with our bounds.
    pub fn router(self, security: &Security) -> Router {
        let source = WeightSourceServer::new(self);
        let source = source.max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
        service::grpc::server(security, CALLERS)
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .add_service(source)
    }

    fn snapshot(&self, hash: &[u8]) -> Result<Arc<Snapshot>, Status> {
        let found = if hash.is_empty() {
            self.snapshots.newest()
        } else {
            let hash = <[u8; 32]>::try_from(hash)
                .map_err(|_| Status::invalid_argument("hash must have 32 bytes"))?;
            self.snapshots.with_hash(WeightHash(hash))
        };
        let gone = "these weights are not here; a newer version has replaced them";
        found.ok_or_else(|| Status::not_found(gone))
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
        let files =
            self.files.0.get().cloned().ok_or_else(|| Status::unavailable("no model is known yet"))?;
        let description = ModelDescription { files, manifest: snapshot.manifest.clone() };
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
