//! `sluice run`: a recipe's stages on this machine, and the ring among them as supervised child processes.

mod observer_client;
mod process;
mod progress;
pub(crate) mod recipe;
pub(crate) mod ring;
mod stage;
pub(crate) mod stages;
mod supervisor;

pub(crate) use observer_client::Observer;
