//! The engine against transformers, against slow references, and against itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod backends;
mod determinism;
mod drawing;
mod fixture;
mod generator;
mod grammar;
mod handle;
mod parity;
mod prefix;
mod scheduling;
mod stopping;
mod swapping;
