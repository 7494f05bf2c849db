//! Why weights were not sent or not received.

use std::io;

use tch::Kind;
use types::{BroadcastGroupId, Invalid, MemberId, PolicyVersion};

/// `std::result::Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong at one end of the weight plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command for a group that was never formed here, or has failed.
    #[error("not a member of broadcast group {0}")]
    NotMember(BroadcastGroupId),
    /// A group to form whose list of members lacks this one.
    #[error("{member} is not on the list of broadcast group {group}")]
    NotListed {
        /// This member.
        member: MemberId,
        /// The group.
        group: BroadcastGroupId,
    },
    /// A group of GPUs, of which this member has none.
    #[error("broadcast group {0} goes from GPU to GPU, and this member has none")]
    NoGpu(BroadcastGroupId),
    /// A group that was left while it formed.
    #[error("broadcast group {0} was left")]
    Left(BroadcastGroupId),
    /// A command before the model is known, which the first pull brings.
    #[error("no weights were pulled before")]
    UnknownModel,
    /// A version to broadcast whose snapshot is no longer kept.
    #[error("{0} has been replaced by a newer version")]
    Replaced(PolicyVersion),
    /// A manifest of another network than this end's.
    #[error("the learner's policy has other parameters than this actor's model")]
    OtherModel,
    /// Weights of an element type that no manifest has a word for.
    #[error("weights of element type {0:?} cannot be published")]
    ElementType(Kind),
    /// A manifest, a buffer or an address that is not what it should be; also one whose hash is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A buffer of another size than the network's weights.
    #[error(transparent)]
    Length(#[from] model::buffer::WrongLength),
    /// The group could not be formed, or has failed.
    #[error(transparent)]
    Collective(#[from] collective::Error),
    /// Torch has no memory, or no such device.
    #[error("torch: {0}")]
    Torch(#[from] tch::TchError),
    /// Whoever was to use the weights could not prepare them.
    #[error(transparent)]
    Prepare(Box<dyn std::error::Error + Send + Sync>),
    /// The operating system has no thread left.
    #[error("start the thread {name:?}: {source}")]
    Thread {
        /// Its name.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// More commands wait than there is room for, or the thread is gone.
    #[error("the thread {0:?} does not keep up")]
    Busy(&'static str),
}
