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
        entry_point: None,
        mutates_arguments: false,
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
    let needs_a_class = mbpp(&["assert longest([Pair(5, 24), Pair(15, 25)], 2) == 1"], "");
    let judged = grade(&needs_a_class, "class Pair: ...\ndef longest(pairs, n):\n    return 1\n");
    assert_eq!(judged.verdict, Verdict::Unsupported);
    assert!(judged.detail.contains("besides longest the tests use Pair"), "{}", judged.detail);
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
fn the_order_of_tests_depends_on_the_seed_and_the_verdict_does_not() {
    let cases: Vec<_> = (0..8).map(|n| json!({"args": [n], "expected": n})).collect();
    let problem = calls(json!(cases), None);
    // Writes the order of its calls to stderr by failing with it.
    let response = "seen = []\ndef f(n):\n    seen.append(n)\n    if len(seen) == 8:\n        raise ValueError(seen)\n    return n\n";
    let order = |seed: u64| {
        let config = sandbox::GraderConfig {
            seed,
            workers: 1,
            tier: Some(Tier::A),
            ..sandbox::GraderConfig::default()
        };
        let grader = arena::grader_with(config);
        let run = || grader.grade(&problem, response, &Limits::default()).unwrap();
        let (first, second) = (run(), run());
        assert_eq!((first.verdict, first.passed, first.total), (Verdict::RuntimeError, 7, 8));
        assert_eq!(first.detail, second.detail, "the same seed gives the same order");
        first.detail
    };
    assert_ne!(order(1), order(2));
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
    let in_assertions = mbpp(&["assert Solution().double(3) == 6"], "");
    assert_eq!(
        grader.grade(&in_assertions, response, &Limits::default()).unwrap().verdict,
        Verdict::Accepted
    );
}
