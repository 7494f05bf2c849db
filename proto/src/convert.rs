//! Conversions between `pb` and domain types: `From` on the way out, validating `TryFrom` on the way in.

mod actor;
pub(crate) mod batch;
mod data;
mod learner;
mod reward;
