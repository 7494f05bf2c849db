//! Domain data of Sluice with their invariants.
