//! The weight plane: how a policy's weights come from the learner to whoever generates with them. Both ends
//! of the protocol lie here side by side, so that neither can change without the other.
//!
//! ```text
//!  learner                                                         actor
//!  trainer --buffer--> publisher (a thread) ==broadcast==> receiver (a thread) --prepared weights--> engine
//!                           | snapshots                        ^ whole buffers
//!                           v                                  |
//!                      weight service (gRPC) ----chunks----> pull, and a weight service for others
//! ```
//!
//! The coordinator decides who is in a broadcast group and who pulls; this crate connects them. Members of a
//! group receive a version together, while the learner trains the next one. When one of them has stopped the
//! coordinator ends the group, and nobody waits for the timeout. Everybody else, and every late joiner, pulls
//! the same buffer point to point.
//!
//! | waits for              | unblocked by                  | bound                                     |
//! |------------------------|-------------------------------|-------------------------------------------|
//! | a group to form        | its last member, on a thread  | `timeout`; then the group has failed      |
//! | a chunk of a broadcast | the slowest member, `leave`   | `timeout`; then the group has failed      |
//! | a chunk of a pull      | the source, or another one    | silence of 20 s; then it is tried again   |
//!
//! Invariants:
//! 1. Nobody is handed weights unless every hash of their manifest is right. What is in use meanwhile is
//!    untouched.
//! 2. A group in which anything failed is gone, here at once and for the others within a second; the next one
//!    has another number.
//! 3. A snapshot is immutable. A transfer of it goes on when a newer version comes.
//!
//! Nothing here is authenticated or encrypted (see `collective`); hashes guard against damage, not against
//! malice.

mod broadcast;
mod error;
mod group;
mod grpc;
mod leaving;
mod manifest;
mod publisher;
mod pull_client;
mod receiver;
mod snapshots;
mod worker;

pub use error::{Error, Result};
pub use group::{GroupEvent, Member};
pub use grpc::{ModelFiles, UnreadableFile, WeightService};
pub use publisher::{PublishEvent, Publisher, PublisherConfig};
pub use pull_client::{PullError, PullOrder, PulledWeights, pull};
pub use receiver::{Prepare, ReceiveEvent, Receiver, ReceiverConfig};
pub use snapshots::{Snapshot, Snapshots};
