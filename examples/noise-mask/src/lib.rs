//! Noise masks that a policy draws while a classifier is pre-trained: "Policy Gradient-Driven Noise Mask"
//! (Yavuz and Yang, arXiv 2406.14568), measured against what it could be mistaken for.
//!
//! A policy network looks at an image and gives each cell of a grid a Beta distribution ([`beta`],
//! [`mask_policy`]); a mask drawn from it is multiplied into the image; the classifier's loss is the reward
//! of the score-function gradient ([`losses`]). Then the policy is thrown away and the classifier fine-tuned
//! without masks ([`training`]). [`study`] does so with and without what the method consists of, with several
//! seeds, and [`report`] says what came of it. docs/noise-mask.md holds the result.
//!
//! Everything is a function of the seed: splits and the order of images come from streams of their own, so
//! that the methods of one seed share them and the classifier's first weights, and their differences are
//! paired.

pub mod beta;
pub mod images;
pub mod losses;
pub mod mask_policy;
pub mod report;
pub mod study;
pub mod training;

mod classifier;
mod method;
mod probe;
mod scores;
