//! The sluice command.
