//! What the server tells `sluice-sandbox-init` about the zygote to build: the first message on the control
//! socket, as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One zygote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZygoteSpec {
    /// Whether to build namespaces and a root file system of its own (tier A) or to stay in the server's
    /// (tier B).
    pub namespaces: bool,
    /// The interpreter, an absolute path without symbolic links.
    pub interpreter: PathBuf,
    /// Files and folders a guest may read: the standard library, shared objects, configured import paths.
    pub reads: Vec<PathBuf>,
    /// Where [`ZygoteSpec::interpreter`] looks for what the server configured beside its standard library.
    pub import_paths: Vec<PathBuf>,
    /// User and group id of guests, where the server may change its own; otherwise guests keep the server's.
    pub guest_ids: Option<(u32, u32)>,
    /// The server's process id: a helper whose parent is another process was orphaned and ends.
    pub server_pid: u32,
    /// Whether to import the usual standard library before the first fork.
    pub warm: bool,
}
