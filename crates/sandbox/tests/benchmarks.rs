//! MBPP and LeetCodeDataset: what plain CPython accepts is accepted here, and what it rejects is not.
//!
//! A sample here; all of both with `SLUICE_ALL_PROBLEMS=1`.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;
#[path = "support/mutants.rs"]
mod mutants;
#[path = "support/problems.rs"]
mod problems;

use std::collections::BTreeMap;

use mutants::{agree, mutants, oracle};
use problems::{file, in_parallel};
use sandbox::{Grade, GraderConfig, HumanEval, Limits, Mbpp, Problem, Record, Tier, Verdict};

/// Every problem, or each so many-th of them.
fn sample(name: &str, step: usize) -> Vec<Record> {
    let step = if std::env::var_os("SLUICE_ALL_PROBLEMS").is_some() { 1 } else { step };
    file(name).into_iter().step_by(step).collect()
}

fn grades(tier: Tier, records: &[(Record, String)]) -> Vec<Grade> {
    let grader = arena::grader_with(GraderConfig { tier: Some(tier), ..GraderConfig::default() });
    in_parallel(records, |(record, response)| {
        // One of MBPP takes 3 s.
        let limits = Limits { cpu: std::time::Duration::from_secs(5), ..Limits::default() };
        grader.grade(&record.problem, response, &limits).unwrap()
    })
}

/// The references of a file; asserts that all are accepted.
fn references_are_accepted(tier: Tier, records: Vec<Record>) {
    let records: Vec<(Record, String)> = records
        .into_iter()
        .map(|record| {
            let reference = record.reference.clone().unwrap();
            (record, reference)
        })
        .collect();
    let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for ((record, _), grade) in records.iter().zip(grades(tier, &records)) {
        *counts.entry(grade.verdict).or_default() += 1;
        let task_id = record.problem.task_id();
        if grade.verdict != Verdict::Accepted {
            wrong.push((task_id.to_owned(), grade));
        }
    }
    println!("tier {tier}: {counts:?}");
    assert!(wrong.is_empty(), "tier {tier}, {} of {}: {wrong:#?}", wrong.len(), records.len());
}

#[test]
fn every_reference_of_leetcode_is_accepted_in_both_tiers() {
    assert_eq!(file("LeetCodeDataset-v0.1.0-test.jsonl.gz").len(), 175);
    for tier in [Tier::A, Tier::B] {
        references_are_accepted(tier, sample("LeetCodeDataset-v0.1.0-test.jsonl.gz", 1));
    }
}

#[test]
fn every_reference_of_mbpp_is_accepted_in_both_tiers() {
    assert_eq!(file("MBPP.jsonl.gz").len(), 974);
    for tier in [Tier::A, Tier::B] {
        references_are_accepted(tier, sample("MBPP.jsonl.gz", 6));
    }
}

#[test]
fn what_leetcode_has_is_imported_unless_the_host_has_its_own() {
    let test = "def check(candidate):\n    assert candidate([3, 1, 2]) == [1, 2, 3]\n";
    let leetcode = Problem::HumanEval(HumanEval {
        entry_point: "Solution().f".to_owned(),
        test: test.to_owned(),
        ..HumanEval::default()
    });
    let contest = "my_solution = Solution()\nassert my_solution.f([3, 1, 2]) == [1, 2, 3]\n".to_owned();
    let contest = Problem::Mbpp(Mbpp::of_contest("c".to_owned(), contest, false));
    let response = "from sortedcontainers import SortedDict, SortedList, SortedSet\n\
                    class Solution:\n    def f(self, x):\n        \
                    assert SortedSet(x)[0] == 1 and SortedDict.fromkeys(x).peekitem()[0] == 3\n        \
                    return list(SortedList(x))\n";
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("sortedcontainers.py");
    std::fs::write(&package, "SortedDict = SortedSet = None\ndef SortedList(x):\n    return 'own'\n")
        .unwrap();
    for path in [folder.path(), &package] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    for (tier, cold) in [(Tier::A, false), (Tier::B, false), (Tier::B, true)] {
        let verdict = |import_paths: &[&std::path::Path], problem: &Problem, response: &str| {
            let import_paths = import_paths.iter().map(|path| path.to_path_buf()).collect();
            let config = GraderConfig { tier: Some(tier), cold, import_paths, ..GraderConfig::default() };
            arena::grader_with(config).grade(problem, response, &Limits::default()).unwrap()
        };
        for problem in [&leetcode, &contest] {
            let found = verdict(&[], problem, response);
            assert_eq!(found.verdict, Verdict::Accepted, "tier {tier}, cold {cold}: {}", found.detail);
            let absent = response.replace("sortedcontainers", "nothing_at_all");
            assert_eq!(verdict(&[], problem, &absent).verdict, Verdict::RuntimeError);
        }
        let hosts_own = response
            .replace(
                "        assert SortedSet(x)[0] == 1 and SortedDict.fromkeys(x).peekitem()[0] == 3\n",
                "",
            )
            .replace("list(SortedList(x))", "[1, 2, 3] if SortedList(x) == 'own' else None");
        let hosts_own = verdict(&[folder.path()], &leetcode, &hosts_own);
        assert_eq!(hosts_own.verdict, Verdict::Accepted, "tier {tier}, cold {cold}: {}", hosts_own.detail);
    }
}

/// All that a response reaches through the finder of packages is the packages.
#[test]
fn the_finder_of_packages_shows_a_response_nothing_of_ours() {
    let test = "def check(candidate):\n    assert candidate() == ['sortedcontainers']\n".to_owned();
    let problem = Problem::HumanEval(HumanEval { entry_point: "f".to_owned(), test, ..HumanEval::default() });
    let response = "import sys\ndef f():\n    names = sys.meta_path[-1].find_spec.__globals__\n    \
                    assert not {'parts', 'native', 'blueprint_fd'} & set(names), names\n    \
                    return sorted({name.split('.')[0] for name in names['package_code']})\n";
    let grade =
        arena::grader_with(GraderConfig::default()).grade(&problem, response, &Limits::default()).unwrap();
    assert_eq!(grade.verdict, Verdict::Accepted, "{}", grade.detail);
}

/// A method that returns nothing, one that returns its own object, and a class of another name are wrong.
#[test]
fn no_wrong_answer_to_a_leetcode_problem_is_accepted() {
    let records = sample("LeetCodeDataset-v0.1.0-test.jsonl.gz", 3);
    let mut wrong = Vec::new();
    for record in &records {
        let reference = record.reference.as_deref().unwrap();
        let Problem::HumanEval(HumanEval { entry_point, .. }) = &record.problem else { panic!("{record:?}") };
        let method = entry_point.rsplit('.').next().unwrap();
        let nothing =
            format!("class Solution:\n    def {method}(self, *args, **kwargs):\n        return None\n");
        let object =
            format!("class Solution:\n    def {method}(self, *args, **kwargs):\n        return self\n");
        wrong.extend(
            [nothing, object, reference.replace("class Solution", "class Other")]
                .map(|response| (record.clone(), response)),
        );
    }
    for ((record, response), grade) in wrong.iter().zip(grades(Tier::A, &wrong)) {
        let task_id = record.problem.task_id();
        assert_ne!(grade.verdict, Verdict::Accepted, "{task_id}\n{response}");
        assert!(grade.verdict.judges_response(), "{task_id}: {} {}\n{response}", grade.verdict, grade.detail);
    }
}

#[test]
fn verdicts_on_edited_references_of_leetcode_are_those_of_cpython() {
    let records = sample("LeetCodeDataset-v0.1.0-test.jsonl.gz", 12);
    edited_references(&records, |record, mutant| {
        let Problem::HumanEval(problem) = &record.problem else { panic!("{record:?}") };
        format!("{}\n{mutant}\n{}\ncheck({})\n", problem.prompt, problem.test, problem.entry_point)
    });
}

#[test]
fn verdicts_on_edited_references_of_mbpp_are_those_of_cpython() {
    let records = sample("MBPP.jsonl.gz", 16);
    edited_references(&records, |record, mutant| {
        let Problem::Mbpp(problem) = &record.problem else { panic!("{record:?}") };
        format!("{}\n{mutant}\n{}\n", problem.test_setup_code, problem.test_list.join("\n"))
    });
}

/// Edits of references are accepted where CPython accepts the program that the problem makes of one, and
/// judged; the tiers take turns.
fn edited_references(records: &[Record], program: impl Fn(&Record, &str) -> String) {
    let cases: Vec<(Record, String)> = records
        .iter()
        .flat_map(|record| mutants(record).into_iter().map(move |mutant| (record.clone(), mutant)))
        .collect();
    let programs: Vec<String> = cases.iter().map(|(record, mutant)| program(record, mutant)).collect();
    let halves: Vec<&[String]> = programs.chunks(programs.len().div_ceil(2)).collect();
    let expected = in_parallel(&halves, |half| oracle(half)).concat();
    let of_tier =
        |tier: usize| -> Vec<(Record, String)> { cases.iter().skip(tier).step_by(2).cloned().collect() };
    let graded = [(Tier::A, 0), (Tier::B, 1)].map(|(tier, first)| grades(tier, &of_tier(first)));
    for (at, ((record, mutant), expected)) in cases.iter().zip(&expected).enumerate() {
        let grade = &graded[at % 2][at / 2];
        let task_id = record.problem.task_id();
        let said = format!("{task_id}: {} ({})\n{mutant}", grade.verdict, grade.detail);
        assert!(agree(grade.verdict, *expected), "{expected:?}: {said}");
        assert!(grade.verdict.judges_response() || *expected == Some(true), "{expected:?}: {said}");
    }
    println!(
        "{} edited references, {} of them right",
        cases.len(),
        expected.iter().filter(|right| **right == Some(true)).count()
    );
}

const NODES: &str = "\
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next

class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right

class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return (self.x, self.y) == (other.x, other.y)

    def __hash__(self):
        return hash((self.x, self.y))

def chain(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head

def values_of(head):
    values, seen = [], set()
    while head and id(head) not in seen:
        seen.add(id(head))
        values.append(head.val)
        head = head.next
    return values
";

fn nodes(test: &str) -> Problem {
    Problem::HumanEval(HumanEval {
        task_id: "nodes".to_owned(),
        prompt: NODES.to_owned(),
        entry_point: "Solution().solve".to_owned(),
        test: format!("def check(candidate):\n{test}"),
        ..HumanEval::default()
    })
}

fn solution(body: &str) -> String {
    format!("class Solution:\n    def solve(self, *given):\n{body}")
}

const REVERSE: &str = "        head, before = given[0], None\n        while head:\n            head.next, before, head = before, head, head.next\n        return before\n";

/// Name, test, method body, whether it is right.
const NODE_CASES: [(&str, &str, &str, bool); 13] = [
    ("a list is reversed", "    assert values_of(candidate(chain([1, 2, 3]))) == [3, 2, 1]\n", REVERSE, true),
    (
        "a long list takes no recursion",
        "    assert values_of(candidate(chain(range(30000)))) == list(range(30000))[::-1]\n",
        REVERSE,
        true,
    ),
    (
        "a list is made",
        "    assert values_of(candidate([1, 2])) == [1, 2]\n    assert candidate([]) is None\n",
        "        head = None\n        for value in reversed(given[0]):\n            head = ListNode(value, head)\n        return head\n",
        true,
    ),
    (
        "a cycle stays one",
        "    a = chain([1, 2])\n    a.next.next = a\n    b = candidate(a)\n    assert b is a and b.next.next is b\n",
        "        assert given[0].next.next is given[0]\n        return given[0]\n",
        true,
    ),
    (
        "the same node comes back as itself",
        "    root = TreeNode(1, TreeNode(2), TreeNode(3))\n    assert candidate(root, root.right) is root.right\n    assert candidate(root, root) is root\n",
        "        return given[1]\n",
        true,
    ),
    (
        "a tree is changed in place",
        "    root = TreeNode(1, TreeNode(2), TreeNode(3))\n    left = root.left\n    candidate(root)\n    assert root.right is left and root.left.val == 3 and root.val == 1\n    assert left.left.val == 9\n",
        "        root = given[0]\n        root.left, root.right = root.right, root.left\n        root.right.left = TreeNode(9)\n",
        true,
    ),
    (
        "what is done beside a value is hidden",
        "    head = chain([3, 1, 2])\n    assert candidate(head) == sum(values_of(head))\n",
        "        given[0].val, given[0].next = 0, None\n        return 0\n",
        false,
    ),
    (
        "and so is what is done to the value",
        "    head = chain([3, 1, 2])\n    assert values_of(candidate(head)) == sorted(values_of(head))\n",
        "        given[0].val, given[0].next = 0, None\n        return given[0]\n",
        false,
    ),
    (
        "a class that compares itself does so by the tests' code",
        "    assert candidate(1) == Point(1, 2)\n    assert candidate(3) != Point(1, 2)\n    assert candidate(Point(1, 2)) == Point(1, 2)\n",
        "        made = {1: Point(1, 2), 3: Point(5, 5)}\n        return made[given[0]] if type(given[0]) is int else given[0]\n",
        true,
    ),
    (
        "and not by the response's",
        "    assert candidate(1) == Point(1, 2)\n",
        "        Point.__eq__ = lambda self, other: True\n        return Point(0, 0)\n",
        false,
    ),
    (
        "a checker that nobody imported is the standard library's",
        "    assert isclose(candidate(1), 2.0)\n    assert math.isclose(candidate(1), 2.0)\n",
        "        global isclose, math\n        isclose = lambda a, b: True\n        math = ListNode()\n        math.isclose = isclose\n        return 1.0\n",
        false,
    ),
    (
        "equality is the tests' class's",
        "    assert candidate(chain([1])) == chain([1])\n",
        "        class ListNode:\n            def __eq__(self, other):\n                return True\n        return ListNode()\n",
        false,
    ),
    (
        "lists of nodes",
        "    assert [values_of(head) for head in candidate([chain([1]), chain([2, 3])])] == [[2, 3], [1]]\n",
        "        return given[0][::-1]\n",
        true,
    ),
];

#[test]
fn objects_of_the_problems_classes_cross_by_their_fields() {
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader(tier);
        for (name, test, body, right) in NODE_CASES {
            let grade = grader.grade(&nodes(test), &solution(body), &Limits::default()).unwrap();
            let wanted = if right { Verdict::Accepted } else { Verdict::WrongAnswer };
            assert_eq!(grade.verdict, wanted, "{name}: {}", grade.detail);
        }
        // Who repeats the class in a whole answer has another one under the same name.
        let whole = format!("{NODES}\n{}", solution(REVERSE));
        let test = "    assert values_of(candidate(chain([1, 2, 3]))) == [3, 2, 1]\n";
        assert_eq!(
            grader.grade(&nodes(test), &whole, &Limits::default()).unwrap().verdict,
            Verdict::Accepted
        );
    }
}

fn script(test: &str) -> Problem {
    Problem::Mbpp(Mbpp { task_id: "script".to_owned(), test_list: vec![test.to_owned()], ..Mbpp::default() })
}

#[test]
fn contests_and_class_designs_are_scripts_over_the_responses_class() {
    let contest = "my_solution = Solution()\n\ntest_input = { \"n\": 4, \"m\": [1, 2] }\nassert my_solution.f(**test_input) == 7\n\n\
                   test_input = { \"n\": 0, \"m\": [] }\nassert my_solution.f(**test_input) == 0\n";
    let design = "queue = Queue(2)\nassert queue.push(1) is None\nqueue.push(2)\nassert queue.pop() == 1\nassert queue.pop() == 2\n\
                  assert queue.pop() == -1 and queue.size == 0\n";
    let queue = "class Queue:\n    def __init__(self, most):\n        self.most, self.items, self.size = most, [], 0\n    \
                 def push(self, item):\n        self.items.append(item)\n        self.size += 1\n    def pop(self):\n        \
                 if not self.items:\n            return -1\n        self.size -= 1\n        return self.items.pop(0)\n";
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader(tier);
        let grade = |problem: &Problem, response: &str| {
            let grade = grader.grade(problem, response, &Limits::default()).unwrap();
            (grade.verdict, grade.passed, grade.total, grade.detail)
        };
        let right = "class Solution:\n    def f(self, n, m):\n        return n + sum(m)\n";
        assert_eq!(grade(&script(contest), right), (Verdict::Accepted, 2, 2, String::new()));
        let half = "class Solution:\n    def f(self, n, m):\n        return n\n";
        let (verdict, passed, total, detail) = grade(&script(contest), half);
        assert_eq!((verdict, passed, total), (Verdict::WrongAnswer, 1, 2), "{detail}");
        assert_eq!(grade(&script(contest), "def f(n, m):\n    return n + sum(m)\n").0, Verdict::RuntimeError);
        assert_eq!(grade(&script(design), queue).0, Verdict::Accepted);
        let (verdict, passed, total, detail) = grade(&script(design), &queue.replace("pop(0)", "pop()"));
        assert_eq!((verdict, passed, total), (Verdict::WrongAnswer, 2, 4), "{detail}");
    }
}
