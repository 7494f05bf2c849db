//! How values of several ranks become one.

/// How to reduce values across ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum; integers wrap around.
    Sum,
    /// Their sum divided by the number of ranks, so that it overflows where the sum does; for floating-point
    /// kinds.
    Mean,
    /// The greatest of the values.
    Max,
    /// The least of the values.
    Min,
}

impl Reduce {
    /// As messages name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Min => "min",
        }
    }

    /// Its number among c10d's `ReduceOp::RedOpType`.
    pub(crate) fn in_c10d(self) -> usize {
        match self {
            Self::Sum => 0,
            Self::Mean => 1,
            Self::Min => 3,
            Self::Max => 4,
        }
    }
}
