//! Collective communication between processes: PyTorch's own c10d behind safe types.
//!
//! ```
//! use std::time::Duration;
//!
//! use collective::{Backend, GlooAddress, GroupConfig, ProcessGroup, Reduce, Store};
//! use tch::Tensor;
//!
//! # fn main() -> collective::Result<()> {
//! // One process hosts the store; the others say `Store::connect("its address", port, timeout)`.
//! let timeout = Duration::from_secs(30);
//! let store = Store::serve("127.0.0.1", 0, timeout)?;
//! let group = ProcessGroup::new(
//!     &store,
//!     GroupConfig {
//!         name: "ranks".to_owned(),
//!         rank: 0,
//!         world_size: 1,
//!         backend: Backend::Gloo(GlooAddress::TowardsStore),
//!         timeout,
//!         join_timeout: timeout,
//!     },
//! )?;
//! let mut gradient = Tensor::from_slice(&[0.5f32, -1.0]);
//! group.all_reduce(&mut gradient, Reduce::Mean)?;
//! assert_eq!(gradient, Tensor::from_slice(&[0.5f32, -1.0]));
//! # Ok(())
//! # }
//! ```
//!
//! A [`Store`] is the meeting point, a key-value server that one process hosts. A [`ProcessGroup`] connects
//! ranks that met there and runs collective operations on [`tch::Tensor`]s: over Gloo on CPU tensors, and
//! with the feature `cuda` over NCCL on CUDA tensors. A [`Work`] is an operation under way.
//!
//! Five operations, each for a use: `broadcast` and `broadcast_bytes` carry weights and commands from one
//! rank to all; `all_reduce` adds up gradients and what a step measured; `reduce_scatter` and
//! `all_gather_into` do the same by parts, for a sharded optimizer (ZeRO) today and for tensor parallelism,
//! which splits a layer's sums the same way. There is no point-to-point transfer and no barrier: what travels
//! between two processes travels over gRPC. An [`AbortHandle`] has no user in the roles yet. It stays because
//! a broadcast has to end when the coordinator says so (`docs/decisions.md`, D16), and no other thread can
//! end what a rank waits for.
//!
//! Invariants:
//! 1. Every call ends by its deadline or within about a second after it; dropping anything ends within a few
//!    seconds. [`AbortHandle::abort`] ends every pending operation from another thread.
//! 2. A failure is an [`Error`] that names the operation, its number, the group, the ranks and, where it can
//!    be known, the member that is missing. It ends the group on every member: later calls return
//!    [`Error::Dead`]. The store survives, and the next group takes the next name.
//! 3. Over Gloo, ranks that do not launch the same operation on the same shape and kind never exchange a byte
//!    of it (operations are tagged with their number and 24 bits of a hash of what they are); they get an
//!    error that says how they differ. NCCL has no tags: there such ranks get the same error if the operation
//!    hangs, and unspecified values if it does not.
//! 4. No C++ exception and no panic leaves this crate.
//!
//! The way of an operation: [`group`](ProcessGroup) checks the tensors, notes the operation under its number
//! (`progress`), and launches it in C++ (`ffi`, `bridge/`); [`Work::wait`] waits for it. Only when something
//! fails does the store come in: `diagnosis` announces the end of the group there, `watcher` on every other
//! member answers with how far that member is, and the answers, or their absence, become the error.
//!
//! What opening a store changes in the libtorch of this process: warnings are no longer logged, unless
//! `TORCH_CPP_LOG_LEVEL` is set, since c10d logs one with a stack trace for every closed connection; c10d's
//! flight recorder is off, since it is not safe with groups on several threads. Joining a group over NCCL
//! also turns off c10d's habit of ending the process when an operation fails.
//!
//! Nothing here is authenticated or encrypted: stores and groups belong on loopback or a private network.

mod checks;
mod deadline;
mod diagnosis;
mod error;
mod ffi;
mod group;
mod join;
mod membership;
mod operations;
mod progress;
mod reduce;
mod store;
mod watcher;
mod work;

pub use error::{Error, Fault, Peer, PeerState, Result};
pub use group::{AbortHandle, ProcessGroup};
pub use join::{Backend, GlooAddress, GroupConfig};
pub use reduce::Reduce;
pub use store::Store;
pub use work::Work;
