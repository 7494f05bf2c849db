//! Which part of a response is the program, and what every program begins with.

use serde::{Deserialize, Serialize};

/// From a response to a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProgramConfig {
    /// Which part of a response is the program.
    pub extract: Extract,
    /// Python that stands in front of every program, such as `from typing import *`. None where empty.
    pub prelude: String,
}

/// Which part of a response is the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extract {
    /// The fenced block that defines what the tests call; the whole answer where no block is fenced. What
    /// stands in front of `</think>` is no part of the answer.
    #[default]
    CodeBlock,
    /// The whole response.
    Whole,
}
