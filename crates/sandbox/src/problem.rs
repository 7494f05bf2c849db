//! The kinds of problem a response can be graded on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A problem with its hidden tests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Problem {
    /// A prompt to complete and a `check(candidate)` (OpenAI's HumanEval).
    HumanEval(HumanEval),
    /// Assertions that call a function by its name (Google's MBPP).
    Mbpp(Mbpp),
    /// Arguments and expected values of a function.
    FunctionCalls(FunctionCalls),
    /// Inputs and expected outputs of a whole program.
    Stdio(Stdio),
}

impl Problem {
    /// The problem's name.
    pub fn task_id(&self) -> &str {
        match self {
            Self::HumanEval(problem) => &problem.task_id,
            Self::Mbpp(problem) => &problem.task_id,
            Self::FunctionCalls(problem) => &problem.task_id,
            Self::Stdio(problem) => &problem.task_id,
        }
    }

    /// The program that a response makes: HumanEval's prompt with the response appended, as OpenAI's harness
    /// has it (so a response that repeats the whole function works too); otherwise the response itself.
    pub(crate) fn program(&self, response: &str) -> String {
        match self {
            Self::HumanEval(problem) => format!("{}{response}", problem.prompt),
            Self::Mbpp(_) | Self::FunctionCalls(_) | Self::Stdio(_) => response.to_owned(),
        }
    }
}

/// A function to complete (Chen et al. 2021, arXiv 2107.03374).
///
/// The test runs in the tester's process. The prompt is executed there too, so helpers that it defines are in
/// reach; the entry point's name, and `candidate`, are bound to the response's function in the other process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HumanEval {
    /// The problem's name, such as `HumanEval/0`.
    pub task_id: String,
    /// Imports, helpers, signature and docstring; the response continues it.
    pub prompt: String,
    /// The function under test.
    pub entry_point: String,
    /// Defines `check(candidate)`. Assertions directly in its body count as tests of their own and run in a
    /// seeded order; everything else runs in place.
    pub test: String,
    /// Whether the tests look at arguments that the function changed *and* at a value it returned. Changes
    /// are always seen where the function returns `None`, as in-place functions do. They are hidden from the
    /// tests otherwise, because a response could change an argument that the test compares with later.
    #[serde(default)]
    pub mutates_arguments: bool,
}

/// A function described in words (Austin et al. 2021, arXiv 2108.07732).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mbpp {
    /// The problem's name.
    pub task_id: String,
    /// Executed before the tests, in the tester's process.
    #[serde(default)]
    pub test_setup_code: String,
    /// Assertions, one test each, run in a seeded order.
    pub test_list: Vec<String>,
    /// The function under test; found from the assertions where not given. Where they need more of the
    /// response than one function, for instance a class, the problem is `unsupported`.
    #[serde(default)]
    pub entry_point: Option<String>,
    /// As in [`HumanEval::mutates_arguments`].
    #[serde(default)]
    pub mutates_arguments: bool,
}

/// A function with arguments and expected values in JSON. A returned tuple equals the list that JSON has for
/// it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionCalls {
    /// The problem's name.
    pub task_id: String,
    /// The function under test.
    pub entry_point: String,
    /// The calls, one test each, made in a seeded order.
    pub cases: Vec<CallCase>,
    /// Relative and absolute tolerance of numbers; exact where not given.
    #[serde(default)]
    pub tolerance: Option<f64>,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallCase {
    /// Positional arguments.
    pub args: Vec<Value>,
    /// Named arguments.
    #[serde(default)]
    pub kwargs: BTreeMap<String, Value>,
    /// What the function has to return; never in the candidate's process.
    pub expected: Value,
}

/// A program that reads stdin and writes stdout. The output is compared outside every guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stdio {
    /// The problem's name.
    pub task_id: String,
    /// The runs, one test each, in a seeded order.
    pub cases: Vec<StdioCase>,
    /// What counts as the same output.
    #[serde(default)]
    pub compare: Compare,
}

/// One run of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdioCase {
    /// What the program reads.
    pub stdin: String,
    /// What it has to write.
    pub expected_stdout: String,
}

/// When two outputs are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// Line by line without trailing white space, and without empty lines at the end.
    #[default]
    Lines,
    /// Byte by byte.
    Exact,
}

impl Compare {
    /// Whether `got` is an acceptable output.
    pub(crate) fn same(self, got: &[u8], expected: &[u8]) -> bool {
        match self {
            Self::Exact => got == expected,
            Self::Lines => lines(got).eq(lines(expected)),
        }
    }
}

fn lines(output: &[u8]) -> impl Iterator<Item = &[u8]> {
    output.trim_ascii_end().split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_forgive_trailing_space_and_nothing_else() {
        let same = |a: &str, b: &str| Compare::Lines.same(a.as_bytes(), b.as_bytes());
        assert!(same("1 2 \r\n3\n\n", "1 2\n3"));
        assert!(same("", "\n"));
        assert!(!same("1  2", "1 2"));
        assert!(!same("1\n\n2", "1\n2"));
        assert!(!same(" 1", "1"));
        assert!(!Compare::Exact.same(b"1\n", b"1"));
    }

    #[test]
    fn a_problem_is_read_by_its_kind_and_unknown_fields_are_refused() {
        let text = r#"{"kind":"function_calls","task_id":"t","entry_point":"f","cases":[{"args":[1],"expected":2}]}"#;
        let problem: Problem = serde_json::from_str(text).unwrap();
        assert_eq!(problem.task_id(), "t");
        let again = serde_json::to_string(&problem).unwrap();
        assert_eq!(serde_json::from_str::<Problem>(&again).unwrap(), problem);
        let misspelt = text.replace("expected", "expectd");
        assert!(serde_json::from_str::<Problem>(&misspelt).unwrap_err().to_string().contains("expectd"));
    }
}
