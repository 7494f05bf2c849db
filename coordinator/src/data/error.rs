//! What can be wrong with a data set.

use std::path::{Path, PathBuf};

use service::BadInput;
use types::{Invalid, MAX_FIELDS_BYTES};

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] BadInput),
    /// The file is not what its name says.
    #[error("cannot read {path} as a table: {problem}")]
    Table {
        /// The file.
        path: PathBuf,
        /// What the reader of such tables says.
        problem: String,
    },
    /// A row cannot be used.
    #[error("{place}: {problem}")]
    Row {
        /// File and line, or file and row.
        place: String,
        /// What is wrong.
        problem: RowProblem,
    },
    /// There are no prompts, or too many.
    #[error("{path}: {count} prompts, must be 1 to {most}", most = u32::MAX)]
    Count {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
    },
}

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
pub enum RowProblem {
    /// A line is no JSON, or no object.
    #[error("is not a JSON object: {0}")]
    NoObject(serde_json::Error),
    /// It has no prompt, or several.
    #[error(
        "must have exactly one of prompt (text), messages (a list) or tokens (ids); it has {has}; other names are mapped: \
         coordinator.data.columns = {{prompt = \"question\"}} in a recipe, --column prompt=question on a command line"
    )]
    NoPrompt {
        /// The names that it has.
        has: String,
    },
    /// A column that `columns` names is not there.
    #[error("has no {column}, which columns name; it has {has}")]
    NoColumn {
        /// The column.
        column: String,
        /// The names that it has.
        has: String,
    },
    /// Nobody says anything.
    #[error("has a chat without a message: the policy would be asked nothing")]
    NoMessages,
    /// Token ids are none.
    #[error("tokens must be a list of token ids")]
    NoTokenIds,
    /// It is too large to travel.
    #[error("has {bytes} bytes, at most {MAX_FIELDS_BYTES} travel with a prompt")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The prompt is none.
    #[error("{}", .0.problem)]
    Invalid(Invalid),
}

impl Error {
    pub(super) fn table(path: &Path, problem: impl ToString) -> Self {
        Self::Table { path: path.to_owned(), problem: problem.to_string() }
    }
}

impl RowProblem {
    pub(super) fn at(self, place: &str) -> Error {
        Error::Row { place: place.to_owned(), problem: self }
    }
}
