//! Collective communication: the c10d bridge with Gloo and NCCL.
