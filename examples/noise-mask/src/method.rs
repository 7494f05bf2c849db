//! What is compared: the method, and each of its parts without the others.

use std::fmt;

use serde::Serialize;

/// How a classifier is pre-trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// Plain cross-entropy.
    NoMask,
    /// Cross-entropy times ln(cells): what the paper's loss does to the classifier's step size, without
    /// masks.
    NoMaskScaled,
    /// Masks from Beta distributions that nobody trains.
    RandomMasks,
    /// The same, and the loss times ln(cells).
    RandomMasksScaled,
    /// Masks from the policy, by the paper's loss.
    Paper,
    /// Masks from the policy, by REINFORCE with a baseline; plain cross-entropy for the classifier.
    Reinforce,
}

impl Method {
    /// All of them; the first is what the others are compared with.
    pub(crate) const ALL: [Self; 6] = [
        Self::NoMask,
        Self::NoMaskScaled,
        Self::RandomMasks,
        Self::RandomMasksScaled,
        Self::Paper,
        Self::Reinforce,
    ];

    /// Whether images are masked while the classifier is pre-trained.
    pub(crate) fn masks(self) -> bool {
        !matches!(self, Self::NoMask | Self::NoMaskScaled)
    }

    /// Whether a policy learns the masks.
    pub(crate) fn learns(self) -> bool {
        matches!(self, Self::Paper | Self::Reinforce)
    }

    /// Whether the classifier's loss is multiplied by the constant ln(cells).
    pub(crate) fn scales(self) -> bool {
        matches!(self, Self::NoMaskScaled | Self::RandomMasksScaled)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoMask => "no mask",
            Self::NoMaskScaled => "no mask, loss × ln(cells)",
            Self::RandomMasks => "random masks",
            Self::RandomMasksScaled => "random masks, loss × ln(cells)",
            Self::Paper => "learned masks, the paper's loss",
            Self::Reinforce => "learned masks, REINFORCE",
        })
    }
}
