//! Tests of the whole: architecture, end to end, chaos. What several of them need stands here.
