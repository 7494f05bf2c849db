//! Why an engine cannot be made or cannot go on.

use types::PolicyVersion;

/// Why an engine cannot be made or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is unusable.
    #[error("the engine's configuration is not usable: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The network is not one that generates.
    #[error("{0} has a scalar head, which draws no tokens; give a causal language model")]
    Head(String),
    /// The backend does not run this network.
    #[error(
        "the native backend supports heads of up to 512 elements, the model has {0}; leave backend at \"auto\""
    )]
    HeadDim(i64),
    /// The system did not give memory or threads.
    #[error("the system refused {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: std::io::Error,
    },
    /// Weights could not be read.
    #[error(transparent)]
    Read(Box<dyn std::error::Error + Send + Sync>),
    /// New weights do not belong to the network that runs.
    #[error("the new weights are of another network or element type than those the engine was made with")]
    Weights,
    /// New weights are older than those in use.
    #[error("weights of {new} cannot follow those of {current}: versions never go back")]
    Version {
        /// In use.
        current: PolicyVersion,
        /// Offered.
        new: PolicyVersion,
    },
    /// Torch refused an operation. The engine cannot be used any more.
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
    /// A bug in the engine. It cannot be used any more.
    #[error("the engine panicked: {0}")]
    Panicked(String),
    /// The engine's thread does not answer any more.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
