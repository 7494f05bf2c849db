//! What the roles say to each other: one module per stream of the ring.
//!
//! A stream begins with a *hello*, and the coordinator answers with a welcome. After that a *report* goes
//! towards the coordinator, a *command* comes from it. Acknowledgements travel backwards on the same streams.
//! The wire form of each is in `proto`.

pub mod actor;
pub mod environment;
pub mod learner;
pub mod reward;
