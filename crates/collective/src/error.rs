//! What can go wrong, and what is known about it.

use std::fmt;
use std::time::Duration;

/// `std::result::Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a store or a process group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store refused a call, or its server is gone.
    #[error("store {address}: {operation} {key:?}: {reason}")]
    Store {
        /// `host:port` of the server.
        address: String,
        /// The call, such as `get`.
        operation: &'static str,
        /// The key it was about; several are joined by commas.
        key: String,
        /// What c10d says.
        reason: String,
    },
    /// A key did not appear, or the server did not answer, in time.
    #[error("store {address}: {operation} {key:?}: {reason} after {waited:?}")]
    StoreTimeout {
        /// `host:port` of the server.
        address: String,
        /// The call, such as `get`.
        operation: &'static str,
        /// The key it was about; several are joined by commas.
        key: String,
        /// What did not happen.
        reason: &'static str,
        /// How long the call waited.
        waited: Duration,
    },
    /// Not all members of a new group came, or they could not connect to each other, before `join_timeout`.
    #[error("group {group:?}: rank {rank} of {world_size} could not join after {waited:?}: {reason}")]
    Join {
        /// Name of the group.
        group: String,
        /// This process's rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// How long this rank waited.
        waited: Duration,
        /// Ranks that never came; empty when all came but could not connect.
        missing: Vec<usize>,
        /// What did not happen.
        reason: String,
    },
    /// The arguments make no sense; nothing was started, and the group goes on.
    #[error("{operation} of group {group:?}: {reason}")]
    Invalid {
        /// Name of the group, or of the store key.
        group: String,
        /// The call that was refused.
        operation: &'static str,
        /// What is wrong with its arguments.
        reason: String,
    },
    /// An operation missed its deadline. The group is dead.
    #[error("{0}")]
    Timeout(Box<Fault>),
    /// An operation failed, in most cases because a member died or ended the group. The group is dead.
    #[error("{0}")]
    Lost(Box<Fault>),
    /// [`AbortHandle::abort`](crate::AbortHandle::abort) was called here. The group is dead.
    #[error("{0}")]
    Aborted(Box<Fault>),
    /// The group had ended before this call.
    #[error(
        "group {group:?}: rank {rank} of {world_size} cannot {operation}: the group has ended: {cause}{}",
        silence(silent)
    )]
    Dead {
        /// Name of the group.
        group: String,
        /// This process's rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// The call that was refused.
        operation: String,
        /// What ended the group.
        cause: String,
        /// Ranks that did not answer when the others were asked.
        silent: Vec<usize>,
    },
}

/// Says which ranks are silent, if any.
fn silence(ranks: &[usize]) -> String {
    ranks.iter().map(|rank| format!("; {}", Peer { rank: *rank, state: PeerState::Silent })).collect()
}

impl Error {
    /// What is known about a failed operation: for [`Timeout`](Error::Timeout), [`Lost`](Error::Lost) and
    /// [`Aborted`](Error::Aborted).
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Timeout(fault) | Self::Lost(fault) | Self::Aborted(fault) => Some(fault),
            _ => None,
        }
    }

    /// Ranks without which the group could not be formed or go on, in ascending order; empty when that is not
    /// known.
    pub fn missing(&self) -> Vec<usize> {
        match self {
            Self::Join { missing, .. } | Self::Dead { silent: missing, .. } => missing.clone(),
            _ => self.fault().map(Fault::missing).unwrap_or_default(),
        }
    }
}

/// A failed operation.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Name of the group.
    pub group: String,
    /// This process's rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// The operation with its arguments, such as `all_reduce sum Float [10]`.
    pub operation: String,
    /// The operation's number in the group, from 1; the same on every rank.
    pub sequence: u64,
    /// From launching the operation to the failure; finding out about the peers is not counted.
    pub waited: Duration,
    /// What happened on this rank.
    pub reason: String,
    /// What the other ranks said when asked, in ascending order of rank. Empty when they were not asked, or
    /// the store could not be reached.
    pub peers: Vec<Peer>,
}

impl Fault {
    /// The ranks that kept the operation from completing: those that are silent, aborted or gone. When there
    /// are none, those that never arrived.
    pub fn missing(&self) -> Vec<usize> {
        let gone =
            self.ranks(|state| matches!(state, PeerState::Silent | PeerState::Aborted(_) | PeerState::Left));
        if gone.is_empty() { self.ranks(|state| matches!(state, PeerState::Behind(_))) } else { gone }
    }

    /// The ranks of peers in a state that `wanted` accepts.
    fn ranks(&self, wanted: impl Fn(&PeerState) -> bool) -> Vec<usize> {
        self.peers.iter().filter(|peer| wanted(&peer.state)).map(|peer| peer.rank).collect()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, rank, world_size, operation, sequence, waited, reason, peers } = self;
        write!(
            f,
            "{operation} #{sequence} of group {group:?} failed on rank {rank} of {world_size} after {waited:.3?}: {reason}"
        )?;
        for peer in peers.iter().filter(|peer| peer.state != PeerState::Present) {
            write!(f, "; {peer}")?;
        }
        Ok(())
    }
}

/// Another member of a group at the time of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its rank in the group.
    pub rank: usize,
    /// What it was doing.
    pub state: PeerState,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} {}", self.rank, self.state)
    }
}

/// What a member was doing when an operation failed on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It had launched the operation as well.
    Present,
    /// It did not answer: dead, stopped, or cut off.
    Silent,
    /// It had not launched the operation yet. The last one it had launched, if any.
    Behind(Option<String>),
    /// It had launched another operation, or other shapes, under the same number.
    Differs(String),
    /// Its group was aborted there, for the reason given.
    Aborted(String),
    /// It had dropped the group.
    Left,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => write!(f, "takes part"),
            Self::Silent => write!(f, "does not answer (dead, stopped or cut off)"),
            Self::Behind(Some(last)) => write!(f, "never arrived (its last operation was {last})"),
            Self::Behind(None) => write!(f, "never arrived (it has launched no operation)"),
            Self::Differs(operation) => write!(f, "launched {operation} instead"),
            Self::Aborted(reason) => write!(f, "was aborted: {reason}"),
            Self::Left => write!(f, "has left the group"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_as_a_sentence_and_counts_the_missing() {
        let peer = |rank, state| Peer { rank, state };
        let error = Error::Timeout(Box::new(Fault {
            group: "group-3".into(),
            rank: 0,
            world_size: 4,
            operation: "all_reduce sum Float [10]".into(),
            sequence: 17,
            waited: Duration::from_secs(3),
            reason: "deadline passed".into(),
            peers: vec![
                peer(1, PeerState::Present),
                peer(2, PeerState::Silent),
                peer(3, PeerState::Behind(Some("broadcast 0 Float [1] #16".into()))),
            ],
        }));
        assert_eq!(
            error.to_string(),
            "all_reduce sum Float [10] #17 of group \"group-3\" failed on rank 0 of 4 after 3.000s: deadline passed; \
             rank 2 does not answer (dead, stopped or cut off); \
             rank 3 never arrived (its last operation was broadcast 0 Float [1] #16)"
        );
        assert_eq!(error.missing(), [2], "rank 3 may yet have come");
        let Error::Timeout(mut fault) = error else { unreachable!() };
        fault.peers.remove(1);
        assert_eq!(fault.missing(), [3]);
    }
}
