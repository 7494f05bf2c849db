//! Problems of programming competitions as two data sets publish them: APPS (Hendrycks et al. 2021, arXiv
//! 2105.09938), whose `input_output` is JSON in a text, and LiveCodeBench (Jain et al. 2024, arXiv
//! 2403.07974), whose hidden cases are JSON, or that pickled, compressed and in Base64.
//!
//! Of the pickle only a text is read; nothing in it is run.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Error, Map, Value};

use crate::problem::{CallCase, Compare, FunctionCalls, Problem, Stdio, StdioCase};

/// The most that hidden cases may be once they are unpacked.
const CASES_LIMIT_BYTES: u64 = 1 << 30;
/// How far numbers with a fraction may be apart, as the data sets' own graders have it.
const TOLERANCE: f64 = 1e-6;

/// The problem in a line of APPS or LiveCodeBench; none where it is of neither.
///
/// # Errors
/// What is wrong with the line's cases.
pub fn competition_problem(line: &Map<String, Value>) -> Result<Option<Problem>, Error> {
    if let Some(cases) = line.get("input_output") {
        return apps(task_id(line), cases).map(Some);
    }
    if line.contains_key("public_test_cases") {
        return live_code_bench(task_id(line), line).map(Some);
    }
    Ok(None)
}

fn task_id(line: &Map<String, Value>) -> String {
    let id = ["task_id", "problem_id", "question_id", "id"].into_iter().find_map(|key| line.get(key));
    id.map_or_else(|| "problem".to_owned(), |id| id.as_str().map_or_else(|| id.to_string(), str::to_owned))
}

/// A value that stands in the line as it is, or as JSON in a text; an empty text is none.
fn nested<T: DeserializeOwned + Default>(value: &Value) -> Result<T, Error> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(T::default()),
        Value::String(text) => serde_json::from_str(text),
        value => T::deserialize(value),
    }
}

/// What APPS calls `input_output`.
#[derive(Default, Deserialize)]
struct InputOutput {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// The function under test; a whole program without one.
    fn_name: Option<String>,
}

fn apps(task_id: String, cases: &Value) -> Result<Problem, Error> {
    let InputOutput { inputs, outputs, fn_name } = nested(cases)?;
    if inputs.len() != outputs.len() {
        return Err(Error::custom(format!("{} inputs for {} outputs", inputs.len(), outputs.len())));
    }
    let Some(entry_point) = fn_name else {
        let pairs = inputs.iter().zip(&outputs);
        let cases = pairs
            .map(|(input, output)| Ok(StdioCase { stdin: text(input)?, expected_stdout: text(output)? }));
        return Ok(program(task_id, cases.collect::<Result<_, Error>>()?, Compare::Tokens));
    };
    // What a function returns stands in a list of its own, but not in every problem.
    let is_wrapped = outputs.iter().all(|output| output.as_array().is_some_and(|list| list.len() == 1));
    let cases = inputs.into_iter().zip(outputs).map(|(input, output)| match (input, output) {
        (Value::Array(args), Value::Array(mut list)) if is_wrapped => Ok(call(args, list.remove(0))),
        (Value::Array(args), output) => Ok(call(args, output)),
        (input, _) => Err(Error::custom(format!("{input} is no list of arguments"))),
    });
    let cases = cases.collect::<Result<_, Error>>()?;
    Ok(function(task_id, entry_point, cases, Some(TOLERANCE)))
}

/// A text, or one that is given by its lines.
fn text(value: &Value) -> Result<String, Error> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(lines) => Ok(lines.iter().map(text).collect::<Result<Vec<_>, _>>()?.join("\n")),
        other => Err(Error::custom(format!("{other} is no text"))),
    }
}

/// A case of LiveCodeBench.
#[derive(Deserialize)]
struct Case {
    input: String,
    output: String,
    testtype: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Stdin,
    Functional,
}

#[derive(Default, Deserialize)]
struct Metadata {
    func_name: Option<String>,
}

fn live_code_bench(task_id: String, line: &Map<String, Value>) -> Result<Problem, Error> {
    let mut cases: Vec<Case> = line.get("public_test_cases").map_or_else(|| Ok(Vec::new()), nested)?;
    cases.extend(line.get("private_test_cases").map_or_else(|| Ok(Vec::new()), hidden)?);
    let kind = cases.first().map_or(Kind::Stdin, |case| case.testtype);
    if cases.iter().any(|case| case.testtype != kind) {
        return Err(Error::custom("has cases of a function and cases of a program"));
    }
    if kind == Kind::Stdin {
        let cases = cases
            .into_iter()
            .map(|Case { input, output, .. }| StdioCase { stdin: input, expected_stdout: output });
        return Ok(program(task_id, cases.collect(), Compare::Lines));
    }
    let metadata: Metadata = line.get("metadata").map_or_else(|| Ok(Metadata::default()), nested)?;
    let entry_point = metadata
        .func_name
        .ok_or_else(|| Error::custom("metadata: has no func_name for its functional cases"))?;
    let cases = cases.iter().map(|case| {
        let lines = case.input.lines().filter(|line| !line.trim().is_empty());
        let args = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(call(args, serde_json::from_str(&case.output)?))
    });
    Ok(function(task_id, entry_point, cases.collect::<Result<_, Error>>()?, None))
}

/// Cases that are hidden: JSON, or packed so that no crawler finds them.
fn hidden(value: &Value) -> Result<Vec<Case>, Error> {
    let Value::String(text) = value else { return nested(value) };
    if text.trim().is_empty() || text.trim_start().starts_with('[') {
        return nested(value);
    }
    let compressed = STANDARD.decode(text.trim()).map_err(|error| unreadable(&error))?;
    let mut pickle = Vec::new();
    let mut decoder = ZlibDecoder::new(&compressed[..]).take(CASES_LIMIT_BYTES + 1);
    decoder.read_to_end(&mut pickle).map_err(|error| unreadable(&error))?;
    if pickle.len() as u64 > CASES_LIMIT_BYTES {
        return Err(unreadable(&format!("more than {CASES_LIMIT_BYTES} bytes")));
    }
    let text = pickled_text(&pickle).ok_or_else(|| unreadable(&"a pickle of something else than a text"))?;
    serde_json::from_str(text)
}

fn unreadable(problem: &dyn std::fmt::Display) -> Error {
    Error::custom(format!("private_test_cases: {problem}"))
}

/// The text that a pickle (protocol 2 to 5) consists of.
fn pickled_text(pickle: &[u8]) -> Option<&str> {
    const PROTOCOL: u8 = 0x80;
    const FRAME: u8 = 0x95;
    let mut rest = pickle.strip_prefix(&[PROTOCOL])?.get(1..)?;
    if rest.first() == Some(&FRAME) {
        rest = rest.get(9..)?;
    }
    // The operations for a text, by the width of its length: SHORT_BINUNICODE, BINUNICODE, BINUNICODE8.
    let (operation, rest) = rest.split_first()?;
    let width = match operation {
        0x8c => 1,
        b'X' => 4,
        0x8d => 8,
        _ => return None,
    };
    let (length, rest) = rest.split_at_checked(width)?;
    let length = length.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (text, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    // It is kept for later (MEMOIZE, BINPUT 0), and then comes the end.
    matches!(rest, [0x94, b'.'] | [b'q', 0, b'.'] | [b'.']).then(|| std::str::from_utf8(text).ok())?
}

fn program(task_id: String, cases: Vec<StdioCase>, compare: Compare) -> Problem {
    Problem::Stdio(Stdio { task_id, cases, compare, tolerance: Some(TOLERANCE) })
}

fn function(task_id: String, entry_point: String, cases: Vec<CallCase>, tolerance: Option<f64>) -> Problem {
    Problem::FunctionCalls(FunctionCalls { task_id, entry_point, cases, tolerance, integer_keys: true })
}

fn call(args: Vec<Value>, expected: Value) -> CallCase {
    CallCase { args, kwargs: std::collections::BTreeMap::new(), expected }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(line: &Value) -> Result<Option<Problem>, Error> {
        competition_problem(line.as_object().unwrap())
    }

    #[test]
    fn programs_of_apps_are_compared_by_words() {
        let cases = json!({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7", ""]]}).to_string();
        let line = json!({"problem_id": 7, "question": "Add.", "solutions": "[]", "input_output": cases});
        let Some(Problem::Stdio(stdio)) = read(&line).unwrap() else { panic!("no program") };
        assert_eq!(
            (stdio.task_id.as_str(), stdio.compare, stdio.tolerance),
            ("7", Compare::Tokens, Some(1e-6))
        );
        assert_eq!(stdio.cases[1], StdioCase { stdin: "3\n4".into(), expected_stdout: "7\n".into() });
        let line = json!({"problem_id": 7, "input_output": ""});
        assert!(read(&line).unwrap().unwrap().refusal().is_some(), "a problem without tests is one");
        let line = json!({"problem_id": 7, "input_output": "{\"inputs\": [\"1\"], \"outputs\": []}"});
        assert!(read(&line).unwrap_err().to_string().contains("1 inputs for 0 outputs"));
        let line = json!({"input_output": {"inputs": [1], "outputs": ["1"]}});
        assert!(read(&line).unwrap_err().to_string().contains("1 is no text"));
    }

    #[test]
    fn functions_of_apps_have_their_values_in_a_list_of_one_or_not() {
        let expected = |outputs: Value| {
            let cases = json!({"inputs": [[1, {"2": 3}], [4, {}]], "outputs": outputs, "fn_name": "f"});
            let line = json!({"id": "interview/1", "input_output": cases.to_string()});
            let Some(Problem::FunctionCalls(calls)) = read(&line).unwrap() else { panic!("no function") };
            assert_eq!((calls.entry_point.as_str(), calls.integer_keys), ("f", true));
            assert_eq!(calls.cases[0].args, [json!(1), json!({"2": 3})]);
            calls.cases.into_iter().map(|case| case.expected).collect::<Vec<_>>()
        };
        assert_eq!(expected(json!([[5], [6]])), [json!(5), json!(6)]);
        assert_eq!(expected(json!([[[5]], [[6]]])), [json!([5]), json!([6])]);
        assert_eq!(expected(json!([5, 6])), [json!(5), json!(6)]);
        assert_eq!(expected(json!([[5], [6, 7]])), [json!([5]), json!([6, 7])]);
    }

    /// `base64.b64encode(zlib.compress(pickle.dumps(text, protocol)))` of the case "2\n" to "4\n".
    const PACKED: [&str; 2] = [
        "eJxrYIqwYGBgiK5WyswrKC1RslJQMorJU9JRUMovLYEKmEAESlKLS0oqC1JBQsUlKZl5SrWxhQx6AGHlEx8=",
        "eJxrYJlqwwABPRbR1UqZeQWlJUpWCkpGMXlKOgpK+aUlUAETiEBJanFJSWVBKkiouCQlM0+pNnaKHgCVcRRJ",
    ];

    #[test]
    fn cases_of_live_code_bench_are_public_and_packed() {
        let public = r#"[{"input": "1\n", "output": "2\n", "testtype": "stdin"}]"#;
        let plain = r#"[{"input": "2\n", "output": "4\n", "testtype": "stdin"}]"#;
        for private in [PACKED[0], PACKED[1], plain] {
            let line = json!({"question_id": "abc301_a", "question_content": "Double.", "starter_code": "",
                "public_test_cases": public, "private_test_cases": private, "metadata": "{}"});
            let Some(Problem::Stdio(stdio)) = read(&line).unwrap() else { panic!("no program") };
            assert_eq!((stdio.task_id.as_str(), stdio.compare), ("abc301_a", Compare::Lines));
            let inputs: Vec<&str> = stdio.cases.iter().map(|case| case.stdin.as_str()).collect();
            assert_eq!(inputs, ["1\n", "2\n"], "{private}");
        }
        for broken in ["eJw=", "not base 64", "e30=", &PACKED[0][..40]] {
            let line = json!({"public_test_cases": public, "private_test_cases": broken});
            let error = read(&line).unwrap_err().to_string();
            assert!(error.contains("private_test_cases"), "{error}");
        }
    }

    #[test]
    fn functions_of_live_code_bench_take_a_line_for_each_argument() {
        let case =
            json!([{"input": "[1, 2]\n3\n", "output": "{\"a\": [6]}", "testtype": "functional"}]).to_string();
        let mut line = json!({"question_id": "2727", "public_test_cases": case, "private_test_cases": "",
            "metadata": "{\"func_name\": \"total\"}"});
        let Some(Problem::FunctionCalls(calls)) = read(&line).unwrap() else { panic!("no function") };
        assert_eq!((calls.entry_point.as_str(), calls.tolerance), ("total", None));
        assert_eq!(calls.cases[0].args, [json!([1, 2]), json!(3)]);
        assert_eq!(calls.cases[0].expected, json!({"a": [6]}));
        line["metadata"] = json!("{}");
        assert!(read(&line).unwrap_err().to_string().contains("func_name"));
        assert!(read(&json!({"prompt": "x"})).unwrap().is_none());
    }

    #[test]
    fn a_pickle_of_anything_else_is_none() {
        for other in [
            &b"\x80\x04]\x94."[..],
            b"\x80\x02X\x05\x00\x00\x00ab.",
            b"\x80",
            b"",
            b"\x80\x04\x8c\x01a\x94R.",
        ] {
            assert_eq!(pickled_text(other), None, "{other:?}");
        }
        assert_eq!(pickled_text(b"\x80\x04\x8c\x01a\x94."), Some("a"));
    }
}
