//! `sluice run`: a recipe's stages on this machine, and the ring among them as supervised child processes.

mod figures;
mod process;
pub(crate) mod progress;
mod ring;
pub(crate) mod stages;
pub(crate) mod summary;
mod supervisor;
mod unit;
