//! The reward server as its peers see it: real gRPC and HTTP over loopback, tiny random networks, the real
//! sandbox and real Python workers.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

mod determinism;
mod endpoint;
mod episodes;
mod files;
mod grpc;
mod membership;
mod overload;
mod process;
mod programs;
mod python;
mod remote;
mod remote_environment;
mod ring;
mod shapes;
mod stub;
mod tiny;
mod unit_tests;
mod websocket_environment;
mod world;
