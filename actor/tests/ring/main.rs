//! The actor in a ring of which everybody else is the test: coordinator, reward servers and learner over
//! loopback gRPC.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agents;
mod delivery;
mod engine_stub;
mod episodes;
mod external;
mod grpc;
mod leaving;
mod pages;
mod weights;
mod world;
