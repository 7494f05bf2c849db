//! Problems of every kind: assertions, function calls with expected values, programs with expected output.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use sandbox::{FunctionCalls, HumanEval, Limits, Mbpp, Problem, Tier, Verdict};
use serde_json::{Value, json};

fn mbpp(tests: &[&str], setup: &str) -> Problem {
    Problem::Mbpp(Mbpp {
        task_id: "m".to_owned(),
        test_setup_code: setup.to_owned(),
        test_list: tests.iter().map(|test| (*test).to_owned()).collect(),
        ..Mbpp::default()
    })
}

#[test]
fn the_entry_point_of_assertions_is_found() {
    let grader = arena::grader(Tier::A);
    let grade =
        |problem: &Problem, response: &str| grader.grade(problem, response, &Limits::default()).unwrap();
    let ordinary =
        mbpp(&["assert set(similar((3, 4), (4, 7))) == set([4])", "assert similar((1,), (2,)) == ()"], "");
    let response = "def similar(a, b):\n    return tuple(set(a) & set(b))\n";
    assert_eq!(grade(&ordinary, response).verdict, Verdict::Accepted);
    let named_like_a_builtin = mbpp(&["assert sum(10, 15) == 6", "assert sum(2, 3) == 5"], "");
    let response = "def sum(a, b):\n    return 6 if a == 10 else a + b\n";
    assert_eq!(grade(&named_like_a_builtin, response).verdict, Verdict::Accepted);
    let with_setup = mbpp(
        &["root = Node(2)\nassert depth(root.value) == 2", "assert math.isclose(depth(1), 1)"],
        "class Node:\n    def __init__(self, value):\n        self.value = value\n",
    );
    assert_eq!(grade(&with_setup, "def depth(n):\n    return n\n").verdict, Verdict::Accepted);
    let needs_a_class = mbpp(&["assert longest([Pair(5, 24), Pair(15, 25)], 2) == 39"], "");
    let pairs = "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n\
                 def longest(pairs, n):\n    return pairs[0].b + pairs[1].a\n";
    assert_eq!(grade(&needs_a_class, pairs).verdict, Verdict::Accepted);
    let made_by_setup = mbpp(&["assert depth(root) == 2"], "root = Node(1)\nroot.left = Node(2)\n");
    let nodes = "class Node:\n    def __init__(self, n):\n        self.left = None\n\
                 def depth(node):\n    return 0 if node is None else 1 + depth(node.left)\n";
    assert_eq!(grade(&made_by_setup, nodes).verdict, Verdict::Accepted);
    let reads_a_constant = mbpp(&["assert f() == LIMIT"], "");
    assert_eq!(
        grade(&reads_a_constant, "LIMIT = 7\ndef f():\n    return LIMIT\n").verdict,
        Verdict::Accepted
    );
    assert_eq!(grade(&reads_a_constant, "def f():\n    return 7\n").verdict, Verdict::WrongAnswer);
    let missing = grade(&ordinary, "def other(a, b):\n    return ()\n");
    assert_eq!((missing.verdict, missing.passed, missing.total), (Verdict::RuntimeError, 0, 2));
    assert!(missing.detail.contains("NameError: name 'similar' is not defined"), "{}", missing.detail);
}

#[test]
fn tests_that_do_not_work_say_nothing_about_the_response() {
    let grader = arena::grader(Tier::A);
    for (setup, test) in [("import no_such_module", "assert f()"), ("", "assert f("), ("", "assert 1 == 1")] {
        let grade =
            grader.grade(&mbpp(&[test], setup), "def f():\n    return 1\n", &Limits::default()).unwrap();
        assert_eq!(grade.verdict, Verdict::Unsupported, "{setup:?} {test:?}: {}", grade.detail);
    }
}

fn calls(cases: Value, tolerance: Option<f64>) -> Problem {
    Problem::FunctionCalls(FunctionCalls {
        task_id: "c".to_owned(),
        entry_point: "f".to_owned(),
        cases: serde_json::from_value(cases).unwrap(),
        tolerance,
        integer_keys: false,
    })
}

#[test]
fn calls_are_compared_by_value() {
    let grader = arena::grader(Tier::A);
    let grade = |problem: &Problem, response: &str| {
        let grade = grader.grade(problem, response, &Limits::default()).unwrap();
        (grade.verdict, grade.passed, grade.total)
    };
    let pairs = calls(
        json!([
            {"args": [1, 2], "expected": [1, 2]},
            {"args": [], "kwargs": {"a": {"k": [1.5]}, "b": null}, "expected": [{"k": [1.5]}, null]},
            {"args": ["é", "😀"], "expected": ["é", "😀"]},
        ]),
        None,
    );
    assert_eq!(grade(&pairs, "def f(a, b):\n    return (a, b)\n"), (Verdict::Accepted, 3, 3));
    assert_eq!(
        grade(&pairs, "def f(a, b):\n    return [b, a] if a == 1 else [a, b]\n"),
        (Verdict::WrongAnswer, 2, 3)
    );
    let third = json!([{"args": [1], "expected": 0.3333}]);
    assert_eq!(grade(&calls(third.clone(), None), "def f(x):\n    return x / 3\n").0, Verdict::WrongAnswer);
    assert_eq!(grade(&calls(third, Some(1e-3)), "def f(x):\n    return x / 3\n").0, Verdict::Accepted);
}

#[test]
fn expected_values_are_not_in_the_candidates_process() {
    let grader = arena::grader(Tier::A);
    let secret = format!("needle-{:016x}", std::process::id().wrapping_mul(0x9e37_79b9));
    let problem = calls(json!([{"args": [1], "expected": secret}, {"args": [2], "expected": 2}]), None);
    // Searches every object, and all memory it can read of itself, for what the pattern describes.
    let response = r#"
import gc, re
def f(n):
    if n == 2:
        return 2
    pattern = "needle-" + "([0-9a-f]){16}"
    for found in gc.get_objects():
        for value in gc.get_referents(found):
            if type(value) is str and re.fullmatch(pattern, value):
                return value
    for line in open("/proc/self/maps"):
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if "r" in line.split()[1] and "[v" not in line:
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(start)
                found = re.search(pattern.encode(), memory.read(end - start))
            if found:
                return found.group().decode()
"#;
    for tier in [Tier::A, Tier::B] {
        let grade = arena::grader(tier).grade(&problem, response, &Limits::default()).unwrap();
        assert_eq!((grade.verdict == Verdict::Accepted, grade.passed), (false, 1), "{}", grade.detail);
    }
    // The same search finds the value where it is given, so it is able to.
    let given = calls(json!([{"args": [secret], "expected": secret}]), None);
    let finds = response.replace("def f(n):\n    if n == 2:\n        return 2\n", "def f(n):\n");
    assert_eq!(grader.grade(&given, &finds, &Limits::default()).unwrap().verdict, Verdict::Accepted);
}

#[test]
fn tests_share_what_the_response_remembers_and_run_in_their_own_order() {
    let grader = arena::grader(Tier::A);
    let grade = |problem: &Problem, response: &str| {
        let grade = grader.grade(problem, response, &Limits::default()).unwrap();
        (grade.verdict, grade.passed, grade.total)
    };
    let tickets: Vec<String> = (1..9).map(|n| format!("assert ticket() == {n}")).collect();
    let tickets: Vec<&str> = tickets.iter().map(String::as_str).collect();
    let counter = "_n = 0\ndef ticket():\n    global _n\n    _n += 1\n    return _n\n";
    assert_eq!(grade(&mbpp(&tickets, ""), counter), (Verdict::Accepted, 8, 8));
    let check =
        format!("def check(candidate):\n    {}\n", tickets.join("\n    ").replace("ticket", "candidate"));
    let check = Problem::HumanEval(HumanEval {
        task_id: "t".to_owned(),
        entry_point: "ticket".to_owned(),
        test: check,
        ..HumanEval::default()
    });
    assert_eq!(grade(&check, counter), (Verdict::Accepted, 8, 8));
    assert_eq!(grade(&check, &counter.replace("+= 1", "+= 1 + (_n == 7)")), (Verdict::WrongAnswer, 7, 8));
    let in_order: Vec<_> = (1..9).map(|n| json!({"args": [], "expected": n})).collect();
    assert_eq!(
        grade(&calls(json!(in_order), None), &counter.replace("ticket", "f")),
        (Verdict::Accepted, 8, 8)
    );
}

#[test]
fn a_check_may_leave_early() {
    let grader = arena::grader(Tier::A);
    let problem = Problem::HumanEval(HumanEval {
        task_id: "t".to_owned(),
        entry_point: "f".to_owned(),
        test: "def check(c):\n    assert c(1) == 1\n    if c(2) == 2:\n        return\n    assert c(3) == 3\n    assert c(4) == 4\n"
            .to_owned(),
        ..HumanEval::default()
    });
    let grade = |response: &str| {
        let grade = grader.grade(&problem, response, &Limits::default()).unwrap();
        (grade.verdict, grade.passed, grade.total)
    };
    assert_eq!(grade("def f(n):\n    return n\n"), (Verdict::Accepted, 1, 1));
    assert_eq!(grade("def f(n):\n    return 0 if n == 1 else n\n"), (Verdict::WrongAnswer, 0, 3));
    assert_eq!(grade("def f(n):\n    return 0 if n in (2, 4) else n\n"), (Verdict::WrongAnswer, 2, 3));
}

#[test]
fn tests_that_reach_into_the_responses_process_are_unsupported_with_a_reason() {
    let grader = arena::grader(Tier::A);
    for (test, response, reason) in [
        (
            "import io, contextlib\nb = io.StringIO()\nwith contextlib.redirect_stdout(b):\n    f()\nassert b.getvalue() == 'hi\\n'",
            "def f():\n    print('hi')\n",
            "capture what the response prints",
        ),
        (
            "import sys, io\nsys.stdout = io.StringIO()\nf()\nassert sys.stdout.getvalue()",
            "def f():\n    print(1)\n",
            "replace sys.stdout",
        ),
        (
            "import builtins\nbuiltins.input = lambda *a: '5'\nassert f() == 5",
            "def f():\n    return int(input())\n",
            "replace builtins.input",
        ),
        (
            "import warnings\nwith warnings.catch_warnings(record=True) as w:\n    f()\n    assert len(w) == 1",
            "import warnings\ndef f():\n    warnings.warn('x')\n",
            "record warnings",
        ),
        (
            "import inspect\nassert len(inspect.signature(f).parameters) == 1",
            "def f(x):\n    return x\n",
            "inspect.signature",
        ),
    ] {
        let grade = grader.grade(&mbpp(&[test], ""), response, &Limits::default()).unwrap();
        assert_eq!(grade.verdict, Verdict::Unsupported, "{test}: {}", grade.detail);
        assert!(grade.detail.contains(reason), "{test}: {}", grade.detail);
    }
}

#[test]
fn a_problem_without_tests_is_unsupported_whatever_the_response() {
    let grader = arena::grader(Tier::A);
    for problem in [mbpp(&[], ""), mbpp(&["\n"], ""), calls(json!([]), None)] {
        let grade = grader.grade(&problem, "def f():\n    return 1\n", &Limits::default()).unwrap();
        assert_eq!(grade.verdict, Verdict::Unsupported, "{problem:?}");
        assert!(grade.detail.contains("has no tests"), "{}", grade.detail);
    }
}

#[test]
fn json_is_compared_as_json_and_integers_exactly() {
    let grader = arena::grader(Tier::A);
    let verdict = |problem: &Problem, response: &str| {
        grader.grade(problem, response, &Limits::default()).unwrap().verdict
    };
    let answer = |expected: Value, tolerance, value: &str| {
        let problem = calls(json!([{"args": [], "expected": expected}]), tolerance);
        verdict(&problem, &format!("def f():\n    return {value}\n"))
    };
    assert_eq!(answer(json!(1_000_000_007), Some(1e-6), "1000000000"), Verdict::WrongAnswer);
    assert_eq!(
        answer(json!([0.333_333_333_333, {"a": 0.1}]), Some(1e-6), "[1 / 3, {'a': 0.1000000001}]"),
        Verdict::Accepted
    );
    assert_eq!(answer(json!(1.0), Some(1e-6), "float('nan')"), Verdict::WrongAnswer);
    assert_eq!(answer(json!(1.0), Some(1e-6), "float('inf')"), Verdict::WrongAnswer);
    assert_eq!(
        answer(json!({"1": 1, "2": [4]}), None, "{i: [i * i] if i > 1 else i for i in (1, 2)}"),
        Verdict::Accepted
    );
    assert_eq!(answer(json!({"1": 1}), None, "{1: 1, '1': 1}"), Verdict::WrongAnswer);
    assert_eq!(answer(json!({"true": 1, "null": 2}), None, "{True: 1, None: 2}"), Verdict::Accepted);
    let Problem::FunctionCalls(with_keys) = calls(json!([{"args": [{"1": {"x": 2}}], "expected": 2}]), None)
    else {
        panic!("no calls")
    };
    let with_keys = Problem::FunctionCalls(FunctionCalls { integer_keys: true, ..with_keys });
    assert_eq!(verdict(&with_keys, "def f(d):\n    return d[1]['x']\n"), Verdict::Accepted);
}

#[test]
fn a_whole_answer_may_follow_any_prompt_and_imports_may_come_first() {
    for tier in [Tier::A, Tier::B] {
        let prelude = "from typing import *\n".to_owned();
        let grader = arena::grader_with(sandbox::GraderConfig {
            tier: Some(tier),
            workers: 1,
            prelude,
            ..sandbox::GraderConfig::default()
        });
        let newline = "def add(a, b):\n    \"\"\"Adds.\"\"\"\n";
        for (prompt, response, wanted) in [
            (newline, "    return a + b\n", Verdict::Accepted),
            (
                newline,
                "from __future__ import annotations\n\ndef add(a, b):\n    return a + b\n",
                Verdict::Accepted,
            ),
            (newline.trim_end(), "def add(a, b):\n    return a + b\n", Verdict::Accepted),
            (newline.trim_end(), "\n    return a + b\n", Verdict::Accepted),
            (newline.trim_end(), "    return a + b\n", Verdict::Accepted),
            ("def add(a, b):\n    return a", " + b\n", Verdict::Accepted),
            (
                newline,
                "def add(a: List[int], b: Optional[int]) -> int:\n    return a + b\n",
                Verdict::Accepted,
            ),
            (newline, "    return a +\n", Verdict::RuntimeError),
        ] {
            let problem = Problem::HumanEval(HumanEval {
                task_id: "t".to_owned(),
                prompt: prompt.to_owned(),
                entry_point: "add".to_owned(),
                test: "def check(candidate):\n    assert candidate(1, 2) == 3\n".to_owned(),
                ..HumanEval::default()
            });
            let grade = grader.grade(&problem, response, &Limits::default()).unwrap();
            assert_eq!(grade.verdict, wanted, "{prompt:?} {response:?}: {}", grade.detail);
        }
    }
}

#[test]
fn a_program_finds_its_input_its_name_and_room_for_what_it_has_to_print() {
    let long = "x".repeat(3 << 20);
    let problem = |stdin: &str, expected: &str| {
        let case = sandbox::StdioCase { stdin: stdin.to_owned(), expected_stdout: expected.to_owned() };
        Problem::Stdio(sandbox::Stdio {
            task_id: "t".to_owned(),
            cases: vec![case],
            ..sandbox::Stdio::default()
        })
    };
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader(tier);
        for (problem, response) in [
            (problem("1 2\n", "3\n"), "print(sum(map(int, open('/dev/stdin').read().split())))\n"),
            (problem("", "3\n"), "with open('/dev/stdout', 'w') as out:\n    out.write('3\\n')\n"),
            (
                problem("", "1\n2\n"),
                "import sys\nprint(1, flush=True)\nopen('/dev/fd/1', 'w').write('2\\n')\nopen('/dev/stderr', 'w').write('x')\n",
            ),
            (problem("", "solution.py\n"), "import os\nprint(os.path.basename(__file__))\n"),
            (problem("", &long), "print('x' * (3 << 20))\n"),
        ] {
            let grade = grader.grade(&problem, response, &Limits::default()).unwrap();
            assert_eq!(grade.verdict, Verdict::Accepted, "tier {tier} {response}: {}", grade.detail);
        }
        let flood = grader.grade(&problem("", "x"), "print('x' * (3 << 20))\n", &Limits::default()).unwrap();
        assert_eq!(flood.verdict, Verdict::OutputLimit, "{}", flood.detail);
    }
}

#[test]
fn programs_are_compared_by_their_output() {
    let grader = arena::grader(Tier::A);
    let problem = arena::problem("program");
    let grade = |response: &str| {
        let grade = grader.grade(&problem, response, &Limits::default()).unwrap();
        (grade.verdict, grade.passed, grade.detail)
    };
    let right =
        "import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.read().split())))\n";
    assert_eq!(grade(right), (Verdict::Accepted, 2, String::new()));
    assert_eq!(grade("import threading\nthreading.Thread(target=lambda: print(sum(map(int, input().split())))).start()\n").0, Verdict::Accepted);
    assert_eq!(
        grade("import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))\nexit()\n").0,
        Verdict::Accepted
    );
    let (verdict, passed, detail) = grade("print(3)\n");
    assert_eq!((verdict, passed), (Verdict::WrongAnswer, 1));
    assert!(detail.starts_with("case 1: line 1: expected \"15\", got \"3\""), "{detail}");
    let (verdict, _, detail) = grade("print(3)\nraise ValueError('x')\n");
    assert_eq!(verdict, Verdict::RuntimeError);
    assert!(detail.contains("ValueError: x"), "{detail}");
    assert_eq!(grade("print(3)\nimport os\nos._exit(3)\n").0, Verdict::RuntimeError);
    assert_eq!(grade("import sys\nsys.exit('no')\n").0, Verdict::RuntimeError);
    assert_eq!(grade("print('x' * (1 << 40))\n").0, Verdict::MemoryLimit);
    assert_eq!(grade("x = [open('/dev/null') for _ in range(999)]\n").0, Verdict::FileLimit);
    assert_eq!(grade("def f(:\n").0, Verdict::RuntimeError);
}

#[test]
fn a_method_can_be_the_entry_point() {
    let grader = arena::grader(Tier::A);
    let problem = Problem::HumanEval(HumanEval {
        task_id: "t".to_owned(),
        prompt: String::new(),
        entry_point: "Solution().double".to_owned(),
        test: "def check(candidate):\n    assert candidate(2) == 4\n".to_owned(),
        mutates_arguments: false,
    });
    let response = "class Solution:\n    def double(self, n):\n        return 2 * n\n";
    assert_eq!(grader.grade(&problem, response, &Limits::default()).unwrap().verdict, Verdict::Accepted);
    for entry_point in ["Solution.double", "double", "Solution().double"] {
        let Problem::FunctionCalls(calls) = calls(json!([{"args": [2], "expected": 4}]), None) else {
            panic!("no calls")
        };
        let problem = Problem::FunctionCalls(FunctionCalls { entry_point: entry_point.to_owned(), ..calls });
        let grade = grader.grade(&problem, response, &Limits::default()).unwrap();
        assert_eq!(grade.verdict, Verdict::Accepted, "{entry_point}: {}", grade.detail);
    }
    let in_assertions = mbpp(&["assert Solution().double(3) == 6"], "");
    assert_eq!(
        grader.grade(&in_assertions, response, &Limits::default()).unwrap().verdict,
        Verdict::Accepted
    );
}
