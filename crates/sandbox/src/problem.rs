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

    /// What a response continues: HumanEval's prompt, as OpenAI's harness has it. A response that repeats the
    /// whole function works too.
    pub(crate) fn prompt(&self) -> &str {
        match self {
            Self::HumanEval(problem) => &problem.prompt,
            Self::Mbpp(_) | Self::FunctionCalls(_) | Self::Stdio(_) => "",
        }
    }

    /// What runs before a response.
    pub(crate) fn prelude(&self) -> &str {
        match self {
            Self::Mbpp(problem) => &problem.prelude,
            Self::HumanEval(_) | Self::FunctionCalls(_) | Self::Stdio(_) => "",
        }
    }

    /// Why nothing can be graded with this problem. One without tests would accept everything.
    pub fn refusal(&self) -> Option<&'static str> {
        let is_blank = |tests: &str| tests.trim().is_empty();
        let refusal = match self {
            Self::HumanEval(problem) => (is_blank(&problem.test), "has no tests: `test` is empty"),
            Self::Mbpp(problem) => (
                problem.test_list.iter().all(|test| is_blank(test)),
                "has no tests: `test_list` has no assertion",
            ),
            Self::FunctionCalls(problem) => (problem.cases.is_empty(), "has no tests: `cases` is empty"),
            Self::Stdio(problem) => (problem.cases.is_empty(), "has no tests: `cases` is empty"),
        };
        refusal.0.then_some(refusal.1)
    }
}

/// A function to complete (Chen et al. 2021, arXiv 2107.03374).
///
/// The test runs in the tester's process. The prompt is executed there too, so helpers that it defines are in
/// reach; the entry point's name, and `candidate`, are bound to the response's function in the other process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HumanEval {
    /// The problem's name, such as `HumanEval/0`.
    pub task_id: String,
    /// Imports, helpers, signature and docstring; the response continues it.
    pub prompt: String,
    /// The function under test.
    pub entry_point: String,
    /// Defines `check(candidate)`. Assertions directly in its body count as tests of their own, and one that
    /// fails does not keep the next from running.
    pub test: String,
    /// Whether the tests look at arguments that the function changed *and* at a value it returned. Changes
    /// are always seen where the function returns `None`, as in-place functions do. They are hidden from the
    /// tests otherwise, because a response could change an argument that the test compares with later.
    #[serde(default)]
    pub mutates_arguments: bool,
}

/// A function described in words (Austin et al. 2021, arXiv 2108.07732).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mbpp {
    /// The problem's name.
    pub task_id: String,
    /// Executed before the tests, in the tester's process.
    #[serde(default)]
    pub test_setup_code: String,
    /// Assertions, one test each, run in this order.
    pub test_list: Vec<String>,
    /// Runs before the response, and in the tester's process too: imports and classes that both take for
    /// granted.
    #[serde(default)]
    pub prelude: String,
    /// The function under test; found from the assertions where not given. What else they need of the
    /// response (a class, a constant, a helper) they get by its name.
    #[serde(default)]
    pub entry_point: Option<String>,
    /// As in [`HumanEval::mutates_arguments`].
    #[serde(default)]
    pub mutates_arguments: bool,
}

/// What LeetCode's editor has imported, as the files of its problems expect.
const LEETCODE_PRELUDE: &str = "\
import collections, datetime, functools, heapq, itertools, math, random, re, string
from typing import *
from functools import *
from collections import *
from itertools import *
from heapq import *
from bisect import *
from string import *
from operator import *
from math import *
inf = float('inf')
";

impl Mbpp {
    /// A problem of DeepSeek-Coder's file of LeetCode contests (arXiv 2401.14196): `test` is a script over an
    /// object of the response's class `Solution`.
    pub fn of_contest(task_id: String, test: String, mutates_arguments: bool) -> Self {
        let prelude = LEETCODE_PRELUDE.to_owned();
        Self { task_id, test_list: vec![test], prelude, mutates_arguments, ..Self::default() }
    }
}

/// A function with arguments and expected values in JSON. A returned value equals what JSON makes of it: a
/// tuple is a list, and a key that is a number is its text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionCalls {
    /// The problem's name.
    pub task_id: String,
    /// The function under test.
    pub entry_point: String,
    /// The calls, one test each, made in this order.
    pub cases: Vec<CallCase>,
    /// Relative and absolute tolerance of numbers with a fraction; exact where not given. Two integers are
    /// always compared exactly.
    #[serde(default)]
    pub tolerance: Option<f64>,
    /// Whether keys of arguments that are written as integers stand for integers, which JSON has no keys for.
    #[serde(default)]
    pub integer_keys: bool,
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stdio {
    /// The problem's name.
    pub task_id: String,
    /// The runs, one test each, in this order.
    pub cases: Vec<StdioCase>,
    /// What counts as the same output.
    #[serde(default)]
    pub compare: Compare,
    /// Relative and absolute tolerance of numbers with a fraction; exact where not given. Two integers are
    /// always compared exactly.
    #[serde(default)]
    pub tolerance: Option<f64>,
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
    /// Word by word, whatever white space lies between.
    Tokens,
    /// Byte by byte.
    Exact,
}

impl Compare {
    /// Whether `got` is an acceptable output.
    pub(crate) fn same(self, got: &[u8], expected: &[u8], tolerance: Option<f64>) -> bool {
        match self {
            Self::Exact => got == expected,
            Self::Tokens => same_words(got, expected, tolerance),
            Self::Lines if tolerance.is_none() => lines(got).eq(lines(expected)),
            Self::Lines => {
                lines(got).count() == lines(expected).count()
                    && lines(got).zip(lines(expected)).all(|(a, b)| a == b || same_words(a, b, tolerance))
            }
        }
    }
}

/// Whether two texts are the same word by word.
fn same_words(got: &[u8], expected: &[u8], tolerance: Option<f64>) -> bool {
    let [mut got, mut expected] =
        [got, expected].map(|text| text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()));
    loop {
        match (got.next(), expected.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b || tolerance.is_some_and(|tolerance| close(a, b, tolerance)) => {}
            _ => return false,
        }
    }
}

/// Whether two words are numbers, one of them with a fraction, that differ by no more than the tolerance.
fn close(got: &[u8], expected: &[u8], tolerance: f64) -> bool {
    let is_integer = |word: &[u8]| word.iter().all(|byte| byte.is_ascii_digit() || b"+-".contains(byte));
    if is_integer(got) && is_integer(expected) {
        return false;
    }
    let [got, expected] = [got, expected].map(|word| {
        let number = std::str::from_utf8(word).ok()?.parse::<f64>().ok()?;
        number.is_finite().then_some(number)
    });
    let (Some(got), Some(expected)) = (got, expected) else { return false };
    (got - expected).abs() <= tolerance * expected.abs().max(1.0)
}

fn lines(output: &[u8]) -> impl Iterator<Item = &[u8]> {
    output.trim_ascii_end().split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_forgive_trailing_space_and_nothing_else() {
        let same = |a: &str, b: &str| Compare::Lines.same(a.as_bytes(), b.as_bytes(), None);
        assert!(same("1 2 \r\n3\n\n", "1 2\n3"));
        assert!(same("", "\n"));
        assert!(!same("1  2", "1 2"));
        assert!(!same("1\n\n2", "1\n2"));
        assert!(!same(" 1", "1"));
        assert!(!Compare::Exact.same(b"1\n", b"1", None));
    }

    #[test]
    fn words_and_numbers_with_a_fraction_are_forgiven_where_the_problem_says_so() {
        let tokens = |a: &str, b: &str| Compare::Tokens.same(a.as_bytes(), b.as_bytes(), None);
        assert!(tokens("1  2\n\n3", " 1 2 3\n") && !tokens("1 2", "1 2 3") && !tokens("12", "1 2"));
        for compare in [Compare::Lines, Compare::Tokens] {
            let close = |a: &str, b: &str| compare.same(a.as_bytes(), b.as_bytes(), Some(1e-6));
            assert!(close("0.333333", "0.333333333333") && close("2.0\nx", "2\nx") && close("1e-9", "0.0"));
            assert!(!close("1000000000", "1000000007"), "integers are exact");
            assert!(!close("0.3333", "0.333333333333") && !close("nan", "nan1") && !close("inf", "1.0"));
        }
        assert!(!Compare::Lines.same(b"0.5 1", b"0.5\n1", Some(1e-6)), "lines stay lines");
    }

    #[test]
    fn a_problem_without_tests_is_refused() {
        for text in [
            r#"{"kind":"function_calls","task_id":"t","entry_point":"f","cases":[]}"#,
            r#"{"kind":"stdio","task_id":"t","cases":[]}"#,
            r#"{"kind":"mbpp","task_id":"t","test_list":[],"entry_point":"f"}"#,
            r#"{"kind":"mbpp","task_id":"t","test_list":[" "],"entry_point":"f"}"#,
            r#"{"kind":"human_eval","task_id":"t","prompt":"","test":"\n","entry_point":"f"}"#,
        ] {
            let problem: Problem = serde_json::from_str(text).unwrap();
            assert!(problem.refusal().is_some_and(|refusal| refusal.starts_with("has no tests")), "{text}");
        }
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
