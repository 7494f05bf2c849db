//! Which part of a response is the program.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which part of a response is the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Extract {
    /// The fenced block that defines what the tests call; the whole answer where no block is fenced. What
    /// stands in front of `</think>` is no part of the answer.
    #[default]
    CodeBlock,
    /// The whole response.
    Whole,
}
