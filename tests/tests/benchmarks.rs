//! `sluice eval --benchmark` to the end, on files in the benchmarks' own shapes: a policy that has learned
//! some of their answers by heart is asked in both forms.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::binary;

/// A policy that knows what it is shown, and a comparison that is judged as the ring is told to.
const RECIPE: &str = r#"
name = "benchmarks"
seed = 5

[[stages]]
name = "tokenizer"
[stages.tokenizer]
data = ["{recipe}/demonstrations.jsonl"]
vocab_size = 600
output = "{output}/tokenizer"

[[stages]]
name = "sft"
[stages.sft]
data = "{recipe}/demonstrations.jsonl"
output = "{output}/sft"
[stages.sft.init]
tokenizer = "{output}/tokenizer"
hidden_size = 48
intermediate_size = 96
layers = 2
heads = 2
kv_heads = 2
max_positions = 512
[stages.sft.training]
epochs = 12
batch_size = 16
[stages.sft.optimizer]
lr = 4e-3

[[stages]]
name = "eval"
[stages.eval]
problems = "{recipe}/chat.jsonl"
policies = [{ name = "SFT", model = "{output}/sft" }]
n = 1
output = "{output}/eval"
[stages.eval.sampling]
max_new_tokens = 64

[reward_server.sandbox.grader]
prelude = "from typing import *"
"#;

const TEMPLATE: &str = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

const STUB: &str = "def add(a, b):\n    \"\"\"Adds.\"\"\"\n";
const CHECK: &str = "def check(candidate):\n    assert candidate(1, 2) == 3\n";

fn chat(question: &str) -> String {
    format!("<user>{question}\n<assistant>")
}

/// A line of MBPP for a function of this name.
fn mbpp(task_id: u64, name: &str, operator: &str) -> Value {
    let code = format!("def {name}(a, b):\r\n  return a {operator} b");
    json!({"task_id": task_id, "text": format!("Write {name}."), "code": code, "test_setup_code": "",
        "test_list": [format!("assert {name}(4, 2) == {}", if operator == "-" { 2 } else { 6 })], "challenge_test_list": []})
}

fn asked(name: &str, result: u8) -> String {
    format!(
        "You are an expert Python programmer, and here is your task: Write {name}. Your code should pass these \
         tests:\n\nassert {name}(4, 2) == {result}"
    )
}

/// A benchmark's file, and by form what a policy is asked first and what it has learned to answer.
struct Case {
    benchmark: &'static str,
    lines: Vec<Value>,
    completion: [String; 2],
    chat: [String; 2],
}

fn cases() -> Vec<Case> {
    let human_eval = |number: usize, test: &str| {
        json!({"task_id": format!("HumanEval/{number}"), "prompt": STUB, "entry_point": "add",
            "canonical_solution": "    return a + b\n", "test": test})
    };
    let query = "Write Solution.add, which adds.";
    let leetcode = |name: &str, query: &str, expected: u8| {
        json!({"task_id": name, "prompt": "from typing import *\n\n", "completion": "", "entry_point": "Solution().add",
            "query": query, "meta": {}, "test": format!("def check(candidate):\n    assert candidate(a=1, b=2) == {expected}\n")})
    };
    let shots = [("sub", "-", 2), ("mul", "- -", 6), ("plus", "+", 6)];
    let mut shown: Vec<Value> =
        shots.iter().zip(2..).map(|((name, operator, _), id)| mbpp(id, name, operator)).collect();
    shown.extend([mbpp(1, "other", "+"), mbpp(11, "add", "+"), mbpp(511, "train", "+")]);
    let example = |(name, operator, result): &(&str, &str, u8)| {
        [asked(name, *result), format!("def {name}(a, b):\n  return a {operator} b")]
    };
    let completion: String = shots
        .iter()
        .map(example)
        .map(|[question, code]| format!("{question}\n[BEGIN]\n{code}\n[DONE]\n\n"))
        .collect();
    let turns: String = shots
        .iter()
        .map(example)
        .map(|[question, code]| format!("<user>{question}\n<assistant>```python\n{code}\n```\n"))
        .collect();
    let function =
        "Complete the following Python function. Answer with the whole function in one block of code.";
    let whole = "def add(a, b):\n    return a + b\n";
    // Runs with the recipe's prelude alone.
    let annotated = "def add(a: Optional[int], b):\n    return a + b\n";
    let typed = "class Solution:\n    def add(self, a: Optional[int], b):\n        return a + b\n";
    let fenced = |code: &str| format!("Here:\n```python\n{code}```\nIt adds.");
    let sum = "How much are 2 and 3?";
    vec![
        Case {
            benchmark: "humaneval",
            lines: vec![human_eval(0, CHECK), human_eval(1, &CHECK.replace("== 3", "== 4"))],
            // What follows a stop text is none of the answer.
            completion: [STUB.to_owned(), "    return a + b\n\ndef add(a):\n    return 7\n".to_owned()],
            chat: [chat(&format!("{function}\n\n```python\n{}\n```", STUB.trim_end())), fenced(annotated)],
        },
        Case {
            benchmark: "mbpp",
            lines: shown,
            completion: [
                format!("{completion}{}\n[BEGIN]\n", asked("add", 6)),
                format!("{whole}[DONE]\n\nassert add(1, 1) == 3\n"),
            ],
            chat: [format!("{turns}{}", chat(&asked("add", 6))), fenced(whole)],
        },
        Case {
            benchmark: "leetcode",
            lines: vec![leetcode("add", query, 3), leetcode("add-wrong", query, 4)],
            completion: [
                format!("{query}\n\n### Answer\n```python\n"),
                format!("{typed}\n```\n```python\nclass Solution:\n    pass\n```\n"),
            ],
            chat: [chat(query), fenced(typed)],
        },
        Case {
            benchmark: "gsm8k",
            lines: vec![
                json!({"question": sum, "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}),
                json!({"question": sum, "answer": "#### 6"}),
            ],
            completion: [
                format!("Question: {sum}\nAnswer: Let's think step by step."),
                " 2 and 3 are 5.\n#### 5\nQuestion: How much is 7?".to_owned(),
            ],
            chat: [
                chat(&format!("{sum}\n\nThink step by step, and put the final answer into \\boxed{{}}.")),
                "They are \\boxed{5}.".to_owned(),
            ],
        },
    ]
}

fn write(path: &Path, rows: impl Iterator<Item = Value>) {
    fs::write(path, rows.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

fn sluice(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("sluice").unwrap());
    command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive").stdin(Stdio::null());
    command.args(arguments).output().unwrap()
}

fn run(folder: &Path, more: &[&str]) {
    let recipe = folder.join("recipe.toml");
    let output = format!("output={}", folder.join("run").display());
    let output = sluice(&[&["run", recipe.to_str().unwrap(), "--set", &output], more].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}

/// The share of problems that the comparison's policy solves.
fn solved(folder: &Path, stage: &str) -> f64 {
    let report = fs::read_to_string(folder.join("run").join(stage).join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    report["rows"][0]["pass_at_1_greedy"]["mean"].as_f64().unwrap()
}

/// A policy that has learned every answer by heart; its folder.
fn learned(folder: &Path, cases: &[Case]) -> PathBuf {
    let pairs: Vec<&[String; 2]> = cases.iter().flat_map(|case| [&case.completion, &case.chat]).collect();
    let demonstrations = (0..40).flat_map(|_| &pairs);
    write(
        &folder.join("demonstrations.jsonl"),
        demonstrations.map(|[prompt, response]| json!({"prompt": prompt, "response": response})),
    );
    // The comparison asks as the chat form does, in a text.
    let of_chat = |case: &Case| {
        let mut line = case.lines[0].clone();
        line["query"] = json!(case.chat[0]);
        line
    };
    write(&folder.join("chat.jsonl"), [of_chat(&cases[0]), of_chat(&cases[2])].into_iter());
    fs::write(folder.join("recipe.toml"), RECIPE).unwrap();
    run(folder, &[]);
    folder.join("run/sft")
}

fn eval(policy: &Path, problems: &Path, case: &Case, more: &[&str]) -> Value {
    let config = problems.with_file_name("recipe.toml");
    let (policy, problems) = (policy.to_str().unwrap(), problems.to_str().unwrap());
    let arguments =
        ["eval", "--model", policy, "--problems", problems, "--benchmark", case.benchmark, "--json"];
    let judged = ["--max-new-tokens", "64", "--config", config.to_str().unwrap()];
    let output = sluice(&[&arguments[..], &judged, more].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {more:?}: {said}", case.benchmark);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asks a benchmark in a form, once greedily with and without naming the form, once sampled.
fn is_asked_and_judged(folder: &Path, policy: &Path, case: &Case, with_template: bool) {
    let problems = folder.join(format!("{}.jsonl", case.benchmark));
    // One that does not fit into the model, which is named and not left out in silence.
    let mut lines = case.lines.clone();
    if case.benchmark == "humaneval" {
        let mut long = lines[0].clone();
        long["task_id"] = json!("HumanEval/long");
        long["prompt"] = json!(format!("# {}\n{STUB}", "x y ".repeat(600)));
        lines.push(long);
    }
    write(&problems, lines.into_iter());
    let (form, answers) = if with_template { ("chat", &case.chat) } else { ("completion", &case.completion) };
    let drawn = folder.join("drawn.jsonl");
    let forms: &[&[&str]] = &[&[], &["--form", form]];
    for more in forms {
        let said =
            eval(policy, &problems, case, &[more, &["--output", drawn.to_str().unwrap()][..]].concat());
        let (asked, rate) = if case.benchmark == "mbpp" { (1, 1.0) } else { (2, 0.5) };
        let what = format!("{} {form} {more:?}: {said}", case.benchmark);
        assert_eq!(said["pass"]["pass@1"], rate, "{what}\n{}", fs::read_to_string(&drawn).unwrap());
        assert_eq!(said["problems"], asked, "{what}");
        let bounds: [f64; 2] = serde_json::from_value(said["interval_95"]["pass@1"].clone()).unwrap();
        assert!(bounds[0] < rate && rate <= bounds[1] && bounds[0] > 0.0, "{what}");
        let long: &[&str] = if case.benchmark == "humaneval" { &["HumanEval/long"] } else { &[] };
        assert_eq!(
            said["left_out"],
            json!({"without_samples": long, "overloaded": [], "not_served": []}),
            "{what}"
        );
        let text = fs::read_to_string(&drawn).unwrap();
        assert_eq!(text.lines().count(), asked, "{what}");
        let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let completion = first["completion"].as_str().unwrap();
        assert!(answers[1].starts_with(completion.trim_end()) && !completion.is_empty(), "{what}: {first}");
        assert_eq!((&first["verdict"], &first["passed"]), (&json!("accepted"), &json!(true)), "{what}");
    }
    let sampled = ["--n", "3", "--k", "1,2", "--temperature", "0.1", "--output", drawn.to_str().unwrap()];
    let said = eval(policy, &problems, case, &sampled);
    let lines = fs::read_to_string(&drawn).unwrap().lines().count();
    assert_eq!(lines, 3 * said["problems"].as_u64().unwrap() as usize, "{said}");
    let rate = |k: &str| said["pass"][k].as_f64().unwrap();
    assert!(rate("pass@1") > 0.0 && rate("pass@1") <= rate("pass@2"), "{}: {said}", case.benchmark);
}

#[test]
fn every_benchmark_is_asked_and_judged_in_both_forms_and_stages_obey_the_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let cases = cases();
    let policy = learned(folder, &cases);
    // Fenced answers, one of which needs the prelude: taken and run as the recipe's sandbox says.
    assert_eq!(solved(folder, "eval"), 1.0);
    run(folder, &["--redo-from", "eval", "--set", "reward_server.sandbox.extract=whole"]);
    assert_eq!(solved(folder, "eval"), 0.0, "a fenced answer is no program as a whole");
    run(folder, &["--redo-from", "eval", "--set", "reward_server.sandbox.grader.prelude="]);
    assert_eq!(
        solved(folder, "eval"),
        0.5,
        "LeetCodeDataset's lines bring the names with them, HumanEval's do not"
    );

    for with_template in [false, true] {
        if with_template {
            fs::write(policy.join("chat_template.jinja"), TEMPLATE).unwrap();
        }
        for case in &cases {
            is_asked_and_judged(folder, &policy, case, with_template);
        }
    }

    // Another file than the benchmark's says so, and a k of more responses than there are.
    let problems = folder.join("gsm8k.jsonl");
    let (policy, problems) = (policy.to_str().unwrap(), problems.to_str().unwrap());
    for (benchmark, more, words) in [("humaneval", "--n=1", "gsm8k.jsonl:1: "), ("gsm8k", "--k=2", "--n 2")] {
        let arguments = ["eval", "--model", policy, "--problems", problems, "--benchmark", benchmark, more];
        let output = sluice(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(words), "{benchmark} {more}: {said}");
    }
}
