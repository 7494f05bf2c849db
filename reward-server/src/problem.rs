//! Finds the problem that a prompt's fields describe.
//!
//! A data set's line is a problem in one of the sandbox's shapes, with whatever else the line holds beside
//! it: HumanEval (`prompt`, `entry_point`, `test`), MBPP (`test_list`), a LeetCode contest (`test` is a
//! script over `Solution()`, without an entry point), APPS (`input_output`), LiveCodeBench
//! (`public_test_cases`), or a `kind` of `human_eval`, `mbpp`, `function_calls`, `stdio`. Where the shape's
//! keys would collide with the line's own (a chat prompt has no `prompt` text, say), the problem stands under
//! the key `problem`.

use sandbox::{Mbpp, Problem, competition_problem};
use serde_json::{Map, Value};

use crate::score_error::ScoreError;

/// The problem in `fields`; none where they hold no tests.
pub(crate) fn problem(fields: &Map<String, Value>) -> Result<Option<Problem>, ScoreError> {
    let line = match fields.get("problem") {
        Some(Value::Object(problem)) => problem,
        _ => fields,
    };
    let Some(kind) = kind(line) else { return Ok(None) };
    let parsed = match kind {
        CONTEST => Ok(contest(line)),
        COMPETITION => match competition_problem(line) {
            Ok(Some(problem)) => Ok(problem),
            Ok(None) => return Ok(None),
            Err(error) => Err(error),
        },
        kind => tagged(line, kind),
    };
    let problem =
        parsed.map_err(|error| ScoreError::unsupported(format!("the prompt's {kind} problem: {error}")))?;
    match problem.refusal() {
        Some(refusal) => Err(ScoreError::unsupported(format!("problem {} {refusal}", problem.task_id()))),
        None => Ok(Some(problem)),
    }
}

/// The problem in a line of this kind.
fn tagged(line: &Map<String, Value>, kind: &str) -> Result<Problem, serde_json::Error> {
    let mut known: Map<String, Value> = keys(kind)
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), line.get(*key).filter(|value| !value.is_null())?.clone())))
        .collect();
    if kind == "mbpp" {
        known.insert("test_setup_code".to_owned(), Value::String(mbpp_setup(line)));
    }
    known.insert("task_id".to_owned(), Value::String(task_id(line)));
    known.insert("kind".to_owned(), Value::String(kind.to_owned()));
    serde_json::from_value(Value::Object(known))
}

fn task_id(line: &Map<String, Value>) -> String {
    match line.get("task_id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => "problem".to_owned(),
    }
}

/// The kind of a line of DeepSeek-Coder's contests.
const CONTEST: &str = "contest";
/// The kind of a line of APPS or LiveCodeBench.
const COMPETITION: &str = "competition";

fn contest(line: &Map<String, Value>) -> Problem {
    let test = line.get("test").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mutates_arguments = line.get("mutates_arguments").and_then(Value::as_bool).unwrap_or_default();
    Problem::Mbpp(Mbpp::of_contest(task_id(line), test, mutates_arguments))
}

/// The shape of a line that is a problem.
fn kind(line: &Map<String, Value>) -> Option<&'static str> {
    let named = line.get("kind").and_then(Value::as_str);
    let kinds = ["human_eval", "mbpp", "function_calls", "stdio"];
    match kinds.into_iter().find(|kind| Some(*kind) == named) {
        Some(kind) => Some(kind),
        None if has(line, "test_list") => Some("mbpp"),
        None if has(line, "entry_point") && has(line, "test") => Some("human_eval"),
        None if has(line, "input_output") || has(line, "public_test_cases") => Some(COMPETITION),
        None => line.get("test")?.as_str()?.contains("Solution()").then_some(CONTEST),
    }
}

fn has(line: &Map<String, Value>, key: &str) -> bool {
    line.get(key).is_some_and(|value| !value.is_null())
}

/// The keys that the sandbox reads.
fn keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "human_eval" => &["prompt", "entry_point", "test", "mutates_arguments"],
        "mbpp" => &["test_list", "entry_point", "mutates_arguments", "prelude"],
        "function_calls" => &["entry_point", "cases", "tolerance", "integer_keys"],
        _ => &["cases", "compare", "tolerance"],
    }
}

/// MBPP's set-up code; its sanitised version lists imports apart.
fn mbpp_setup(line: &Map<String, Value>) -> String {
    let imports = line.get("test_imports").and_then(Value::as_array).into_iter().flatten();
    let imports = imports.filter_map(Value::as_str);
    let setup = line.get("test_setup_code").and_then(Value::as_str);
    imports.chain(setup).flat_map(|part| [part, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(line: Value) -> Result<Option<Problem>, ScoreError> {
        let Value::Object(fields) = line else { unreachable!("an object literal") };
        problem(&fields)
    }

    #[test]
    fn every_shape_is_found_among_other_fields() {
        let human_eval = json!({
            "task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c): pass",
            "canonical_solution": "  pass", "difficulty": 3
        });
        assert!(matches!(found(human_eval), Ok(Some(Problem::HumanEval(_)))));
        let mbpp = json!({"task_id": 11, "text": "words", "test_imports": ["import math"], "test_list": ["assert f()"]});
        let Ok(Some(Problem::Mbpp(mbpp))) = found(mbpp) else { panic!("not MBPP") };
        assert_eq!((mbpp.task_id.as_str(), mbpp.test_setup_code.as_str()), ("11", "import math\n"));
        let calls = json!({
            "kind": "function_calls", "prompt": "Write f.", "entry_point": "f",
            "cases": [{"args": [1], "expected": 2}], "split": "train"
        });
        assert!(matches!(found(calls), Ok(Some(Problem::FunctionCalls(_)))));
        let nested = json!({
            "messages": [], "problem": {"kind": "stdio", "cases": [{"stdin": "1", "expected_stdout": "2"}]}
        });
        assert!(matches!(found(nested), Ok(Some(Problem::Stdio(_)))));
        let apps = json!({"problem_id": 1, "question": "Echo.", "input_output": "{\"inputs\": [\"1\"], \"outputs\": [\"1\"]}"});
        assert!(matches!(found(apps), Ok(Some(Problem::Stdio(_)))));
        let broken = found(json!({"problem_id": 1, "input_output": "{\"inputs\": 1}"})).unwrap_err();
        assert_eq!(broken.reason, types::FailReason::Unsupported);
        assert!(broken.detail.contains("competition problem"), "{broken}");
    }

    #[test]
    fn a_contest_is_a_script_over_the_responses_class() {
        let script = "my_solution = Solution()\n\nassert my_solution.f(1) == 2\n";
        let line =
            json!({"task_id": "Weekly/1", "prompt": "words", "test": script, "meta": {"difficulty": "Easy"}});
        let Ok(Some(Problem::Mbpp(contest))) = found(line) else { panic!("not a contest") };
        assert_eq!(
            (contest.task_id.as_str(), contest.test_list.as_slice()),
            ("Weekly/1", [script.to_owned()].as_slice())
        );
        assert!(contest.prelude.contains("from typing import *") && contest.entry_point.is_none());
        assert_eq!(found(json!({"prompt": "2 + 2?", "test": "4"})), Ok(None), "another use of the word");
        assert_eq!(found(json!({"prompt": "2 + 2?", "test": {"x": "Solution()"}})), Ok(None));
    }

    #[test]
    fn a_problem_without_tests_is_refused_by_its_name() {
        let error = found(json!({"task_id": "MB/7", "test_list": [], "entry_point": "f"})).unwrap_err();
        assert_eq!(error.reason, types::FailReason::Unsupported);
        assert!(error.detail.contains("problem MB/7 has no tests"), "{error}");
    }

    #[test]
    fn a_line_without_tests_is_no_problem_and_a_broken_one_is_unsupported() {
        assert_eq!(found(json!({"prompt": "2 + 2?", "label": "4"})), Ok(None));
        assert_eq!(found(json!({"prompt": "x", "kind": "algebra"})), Ok(None));
        let error = found(json!({"kind": "function_calls", "entry_point": "f"})).unwrap_err();
        assert_eq!(error.reason, types::FailReason::Unsupported);
        assert!(error.detail.contains("cases"), "{error}");
        assert!(found(json!({"entry_point": "f", "test": "x"})).unwrap_err().detail.contains("prompt"));
    }
}
