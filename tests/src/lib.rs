//! Tests of the whole: end to end, architecture, chaos.
