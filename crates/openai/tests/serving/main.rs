//! The HTTP interface, spoken to as any client would: over a socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fixture;
mod http;
mod script;
mod structured;
mod tokens;
