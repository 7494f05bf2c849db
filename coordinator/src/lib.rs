//! The coordinator: prompts, leases, groups, filtration, batches, versions, membership, journal.

pub mod state;
