//! Honest programs of every style are accepted, and the values that tests and programs exchange arrive as
//! they were.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use arena::Program;
use sandbox::{Grade, Grader, HumanEval, Limits, Problem, Tier, Verdict};

fn every_honest_program_is_accepted(tier: Tier) {
    let grader = arena::grader(tier);
    let limits = Limits { processes: 64, ..Limits::default() };
    let mut wrong = Vec::new();
    for name in arena::programs("honest") {
        let program = Program::load("honest", &name);
        let grade = grader.grade(&program.problem, &program.source, &limits).unwrap();
        if grade.verdict != Verdict::Accepted {
            wrong.push((name, grade));
        }
    }
    assert!(wrong.is_empty(), "tier {tier}: {wrong:#?}");
}

#[test]
fn every_honest_program_is_accepted_in_tier_a() {
    every_honest_program_is_accepted(Tier::A);
}

#[test]
fn every_honest_program_is_accepted_in_tier_b() {
    every_honest_program_is_accepted(Tier::B);
}

fn check(grader: &Grader, test: &str, response: &str) -> Grade {
    let problem = Problem::HumanEval(HumanEval {
        task_id: "t".to_owned(),
        prompt: String::new(),
        entry_point: "f".to_owned(),
        test: test.to_owned(),
        mutates_arguments: false,
    });
    grader.grade(&problem, response, &Limits::default()).unwrap()
}

fn accepted(grader: &Grader, test: &str, response: &str) {
    let grade = check(grader, test, response);
    assert_eq!(grade.verdict, Verdict::Accepted, "{}\n{test}\n{response}", grade.detail);
}

/// Literals of every type that may cross, and nests of them.
const VALUES: &[&str] = &[
    "None",
    "True",
    "False",
    "0",
    "-1",
    "2**64",
    "-(2**200)",
    "10**5000",
    "-(1 << 20000)",
    "0.1",
    "-0.0",
    "1e308",
    "float('inf')",
    "float('-inf')",
    "5e-324",
    "''",
    "'a\\x00b'",
    "'\\ud800 lone'",
    "'\\U0001f600 \\u202e'",
    "b''",
    "bytes(range(256))",
    "1j",
    "complex(float('inf'), -0.0)",
    "[]",
    "()",
    "{}",
    "set()",
    "frozenset()",
    "[[], [[]], ([],)]",
    "(1, (2, (3,)))",
    "{1: 'a', 'b': (2,), (3, 4): {5: [6]}, None: True}",
    "{1, 'a', (2, 3), frozenset({4}), b'x', None}",
    "frozenset({frozenset({1}), ()})",
    "[True, 1, 1.0, '1']",
    "list(range(1000))",
    "['x' * 1000] * 1000",
    "[0.5, float('inf')]",
    "[1, 10**4000]",
    "{i: [i] for i in range(500)}",
    "[[1, 2], [3, 4]]",
];

#[test]
fn every_builtin_value_crosses_unchanged_both_ways() {
    let grader = arena::grader(Tier::A);
    let mut test = String::from("def check(candidate):\n");
    for value in VALUES {
        // `repr` tells apart what `==` does not: -0.0 and 0.0, True and 1, a tuple and a list inside.
        test.push_str(&format!(
            "    there = {value}\n    back = candidate(there)\n    assert type(back) is type(there)\n    \
             assert back == there, 'value'\n    \
             assert type(there) in (int, set, frozenset, dict) or repr(back) == repr(there), 'form'\n"
        ));
    }
    accepted(&grader, &test, "def f(x):\n    return x\n");
}

#[test]
fn what_equals_a_builtin_value_crosses_as_one() {
    let grader = arena::grader(Tier::A);
    let response = "\
import collections, enum
class Mine(dict):
    pass
class Number(enum.IntEnum):
    TWO = 2
def f(which):
    return {
        'counter': collections.Counter('aab'),
        'default': collections.defaultdict(list, {1: [2]}),
        'ordered': collections.OrderedDict([(1, 2)]),
        'named': collections.namedtuple('P', 'x y')(1, 2),
        'mine': Mine(a=1),
        'enum': [Number.TWO],
    }[which]
";
    let test = "\
def check(candidate):
    assert candidate('counter') == {'a': 2, 'b': 1}
    assert candidate('default') == {1: [2]}
    assert candidate('ordered') == {1: 2}
    assert candidate('named') == (1, 2)
    assert candidate('mine') == {'a': 1}
    assert candidate('enum') == [2]
";
    accepted(&grader, test, response);
}

#[test]
fn an_object_of_the_response_is_unequal_to_everything_and_one_of_the_tests_is_unsupported() {
    let grader = arena::grader(Tier::A);
    let from_response =
        check(&grader, "def check(c):\n    assert c(1) == 1\n", "def f(x):\n    return object()\n");
    assert_eq!(from_response.verdict, Verdict::WrongAnswer, "{}", from_response.detail);
    for value in ["object()", "[lambda: 1]", "check"] {
        let from_tests =
            check(&grader, &format!("def check(c):\n    assert c({value})\n"), "def f(x):\n    return 1\n");
        assert_eq!(from_tests.verdict, Verdict::Unsupported, "{value}: {}", from_tests.detail);
    }
    // A test that swallows the exception does not hide it.
    let swallowed = check(
        &grader,
        "def check(c):\n    try:\n        c(object())\n    except BaseException:\n        pass\n",
        "def f(x):\n    return 1\n",
    );
    assert_eq!(swallowed.verdict, Verdict::Unsupported);
}

#[test]
fn values_of_the_standard_library_are_what_they_are_in_one_process() {
    let grader = arena::grader(Tier::A);
    let response = "\
import array, collections, datetime, decimal, enum, fractions, itertools
class Level(str, enum.Enum):
    LOW = 'low'
class Tree:
    def __init__(self, value):
        self.value, self.children = value, []
    def add(self, child):
        self.children.append(child)
        return self
def f(which, *rest):
    return {
        'generator': lambda: (n * n for n in range(4)),
        'endless': itertools.count,
        'map': lambda: map(str, [1, 2]),
        'range': lambda: range(3),
        'keys': lambda: {1: 2, 3: 4}.keys(),
        'values': lambda: {1: 2, 3: 4}.values(),
        'items': lambda: {1: 2}.items(),
        'deque': lambda: collections.deque([1, 2], 3),
        'counter': lambda: collections.Counter('aab'),
        'point': lambda: collections.namedtuple('P', 'x y')(1, 2),
        'fraction': lambda: fractions.Fraction(1, 3),
        'decimal': lambda: decimal.Decimal('0.10'),
        'date': lambda: datetime.date(2024, 2, 29),
        'moment': lambda: datetime.datetime(2024, 2, 29, 1, 2, 3, tzinfo=datetime.timezone.utc),
        'bytearray': lambda: bytearray(b'ab'),
        'array': lambda: array.array('i', [1, 2]),
        'level': lambda: [Level.LOW],
        'type': lambda: int,
        'tree': lambda: Tree(5).add(Tree(6)),
        'closure': lambda: (lambda n: n + 1),
        'echo': lambda: rest[0],
    }[which]()
";
    let test = "\
import types, itertools
from collections import deque, Counter, OrderedDict
from fractions import Fraction
from decimal import Decimal
from datetime import date, datetime, timezone
def check(c):
    assert list(c('generator')) == [0, 1, 4, 9] and c('generator') != [0, 1, 4, 9]
    assert isinstance(c('generator'), types.GeneratorType)
    assert list(itertools.islice(c('endless'), 3)) == [0, 1, 2]
    assert list(c('map')) == ['1', '2']
    assert c('range') == range(3) and list(c('range')) == [0, 1, 2]
    assert c('keys') == {1, 3} and list(c('values')) == [2, 4] and list(c('items')) == [(1, 2)]
    assert c('deque') == deque([1, 2]) and c('deque').maxlen == 3
    assert c('counter').most_common(1) == [('a', 2)]
    assert c('point') == (1, 2) and c('point').y == 2
    assert c('fraction') == Fraction(1, 3) and c('decimal') == Decimal('0.1')
    assert c('date') == date(2024, 2, 29)
    assert c('moment') == datetime(2024, 2, 29, 1, 2, 3, tzinfo=timezone.utc)
    assert c('bytearray') == b'ab' and list(c('array')) == [1, 2] and c('level') == ['low']
    assert c('type') is int
    tree = c('tree')
    assert tree.value == 5 and tree.children[0].value == 6 and len(tree.children) == 1
    assert c('closure')(2) == 3
    for value in (range(3), deque([1]), Fraction(1, 2), Decimal('1.5'), date(2024, 1, 1), bytearray(b'x'), int,
                  Counter('ab'), OrderedDict([(1, 2)]), ...):
        assert c('echo', value) == value, value
    assert list(c('echo', iter([1, 2]))) == [1, 2]
    assert c('echo', tree).value == 5
";
    for tier in [Tier::A, Tier::B] {
        accepted(&arena::grader(tier), test, response);
    }
    let without_tests = check(&grader, "def check(c):\n    pass\n", response);
    assert_eq!(without_tests.verdict, Verdict::Unsupported, "{}", without_tests.detail);
}

#[test]
fn an_object_of_the_response_can_do_what_its_class_can() {
    let response = "\
import types, collections
class Bare: pass
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
class Bag:
    def __len__(self): return 2
    def __iter__(self): return iter('ab')
    def __call__(self): return 5
class generator:
    def __iter__(self): return self
    def __next__(self): raise StopIteration
class Refused(Exception): pass
async def later(): return 3
def refuse(): raise Refused('no')
def f(which):
    return {
        'object': object, 'bare': Bare, 'point': lambda: Point(1), 'bag': Bag, 'generator': generator,
        'function': lambda: f, 'class': lambda: Bare, 'later': later, 'refuse': refuse,
        'default': lambda: collections.defaultdict(list, a=[1]),
    }[which]()
";
    // What CPython says of each in one process.
    let right = [
        "not callable(c('object')) and not callable(c('bare')) and callable(c('bag')) and c('bag')() == 5",
        "not isinstance(c('bare'), Iterable) and isinstance(c('bag'), Iterable) and list(c('bag')) == ['a', 'b']",
        "not isinstance(c('bare'), Sized) and len(c('bag')) == 2 and not hasattr(c('bare'), '__len__')",
        "not inspect.isgenerator(c('generator')) and list(c('generator')) == []",
        "isinstance(c('function'), types.FunctionType) and isinstance(c('class'), type)",
        "type(c('bag')).__name__ == 'Bag' and isinstance(c('class')(), c('class')) and not isinstance(1, c('class'))",
        "c('default')['new'] == [] and c('default') == {'a': [1]}",
        "c('bare') != c('bare') and c('function') == c('function')",
        "c('point') == c('point') and asyncio.run(c('later')) == 3",
    ];
    let imports = "import asyncio, inspect, types\nfrom collections.abc import Iterable, Sized\n";
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader(tier);
        for assertion in right {
            accepted(&grader, &format!("{imports}def check(c):\n    assert {assertion}\n"), response);
        }
        let catches = "def check(c):\n    try:\n        c('refuse')\n    except Refused:\n        pass\n    else:\n        assert False\n";
        accepted(&grader, catches, response);
    }
}

#[test]
fn rarer_values_and_identity_are_what_they_are_in_one_process() {
    let response = "\
import datetime, ipaddress, math, pathlib, random, uuid
class Point:
    origin = (0, 0)
    def __init__(self, x): self.x = x
    @classmethod
    def at(cls, x): return cls(x)
only = Point(0)
def steps():
    yield 1
    return 'end'
def f(which, *rest):
    return {
        'uuid': lambda: uuid.UUID(int=5), 'address': lambda: ipaddress.ip_address('10.0.0.1'),
        'network': lambda: {ipaddress.ip_network('10.0.0.0/8'): 1}, 'path': lambda: pathlib.Path('a') / 'b',
        'slice': lambda: slice(1, None, 2), 'view': lambda: memoryview(b'ab'), 'nan': lambda: [math.nan],
        'other nan': lambda: [float('nan')], 'zone': lambda: datetime.timezone(datetime.timedelta(hours=2)),
        'steps': steps, 'echo': lambda: rest[0], 'only': lambda: only, 'fresh': lambda: Point(0), 'none': lambda: None,
        'draw': lambda: [random.random(), random.randrange(1000)],
    }[which]()
";
    let right = [
        "c('uuid') == uuid.UUID(int=5) and c('address') == ipaddress.IPv4Address('10.0.0.1')",
        "c('network') == {ipaddress.ip_network('10.0.0.0/8'): 1} and c('path') == pathlib.Path('a/b')",
        "c('slice') == slice(1, None, 2) and c('view') == b'ab' and [1, 2, 3, 4][c('slice')] == [2, 4]",
        "c('nan') == [math.nan] and c('other nan') != [math.nan] and c('nan')[0] != c('nan')[0]",
        "c('zone').utcoffset(None).seconds == 7200",
        "all(c('echo', v) == v for v in (uuid.UUID(int=7), slice(1), memoryview(b'x'), pathlib.PurePosixPath('a')))",
        "returned(c('steps')) == 'end'",
        "c('only') is c('only') and c('only') is not c('fresh') and c('none') is c('none')",
        "type(c('echo', 1)) is int and c('echo', [1]) is not (1,) and c('echo', [1]) is not [2]",
        "seeded(5) == (c('draw'), random.seed(5), c('draw'))[2]",
    ];
    // Which of two equal values is which cannot be told from here.
    let unserved = ["c('echo', ONE) is ONE", "c('echo', ONE) is not ONE"];
    let imports = "import ipaddress, math, pathlib, random, uuid\nONE = [1]\n\
        def returned(steps):\n    return (yield from steps)\n\
        def run(g):\n    try:\n        while True: next(g)\n    except StopIteration as end:\n        return end.value\n\
        returned = (lambda inner: lambda steps: run(inner(steps)))(returned)\n\
        def seeded(s):\n    r = random.Random(s)\n    return [r.random(), r.randrange(1000)]\n";
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader(tier);
        for assertion in right {
            accepted(&grader, &format!("{imports}def check(c):\n    assert {assertion}\n"), response);
        }
        for assertion in unserved {
            let test = format!("{imports}def check(c):\n    assert {assertion}\n");
            let grade = check(&grader, &test, response);
            assert_eq!(grade.verdict, Verdict::Unsupported, "{assertion}: {}", grade.detail);
        }
        for refused in [
            "os.environ['A'] = '1'",
            "os.environ.update(A='1')",
            "warnings.simplefilter('error')",
            "decimal.getcontext().prec = 5",
        ] {
            let test = format!(
                "import decimal, os, warnings\ndef check(c):\n    {refused}\n    assert c('none') is None\n"
            );
            let grade = check(&grader, &test, response);
            assert_eq!(grade.verdict, Verdict::Unsupported, "{refused}: {}", grade.detail);
        }
        let reads =
            "import os\ndef check(c):\n    assert os.environ.get('A') is None and c('none') is None\n";
        accepted(&grader, reads, response);
        of_a_class(&grader, response);
    }
}

/// The entry point may be a class.
fn of_a_class(grader: &Grader, response: &str) {
    let problem = Problem::HumanEval(HumanEval {
        task_id: "t".to_owned(),
        prompt: String::new(),
        entry_point: "Point".to_owned(),
        test: "def check(c):\n    assert isinstance(c(1), c) and not isinstance(1, c) and c(1).x == 1\n    \
               assert c.at(3).x == 3 and c.origin == (0, 0) and not hasattr(c, 'nothing')\n"
            .to_owned(),
        mutates_arguments: false,
    });
    let grade = grader.grade(&problem, response, &Limits::default()).unwrap();
    assert_eq!(grade.verdict, Verdict::Accepted, "{}", grade.detail);
}

#[test]
fn exceptions_cross_as_their_builtin_types() {
    let grader = arena::grader(Tier::A);
    let response = "\
class Special(KeyError):
    pass
class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(a)
def f(which):
    if which == 0: raise ValueError('zero', 0)
    if which == 1: raise Special('one')
    if which == 2: raise FileNotFoundError(2, 'no file')
    if which == 3: raise Odd(1, 2)
    if which == 4: return [][1]
    if which == 5: assert False, 'five'
    if which == 6: raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')
";
    let test = "\
def check(candidate):
    for which, kind in enumerate([ValueError, KeyError, OSError, Exception, IndexError, AssertionError, UnicodeError]):
        try:
            candidate(which)
        except kind as error:
            if which == 0: assert error.args == ('zero', 0)
            if which == 2: assert error.errno == 2 and isinstance(error, FileNotFoundError)
        else:
            assert False, which
";
    accepted(&grader, test, response);
    let unexpected =
        check(&grader, "def check(c):\n    assert c(0) == 1\n    assert c(9) is None\n", response);
    assert_eq!((unexpected.verdict, unexpected.passed, unexpected.total), (Verdict::RuntimeError, 1, 2));
    assert!(unexpected.detail.contains("ValueError: ('zero', 0)"), "{}", unexpected.detail);
}

#[test]
fn what_ends_loops_and_programs_never_reaches_a_test() {
    let grader = arena::grader(Tier::A);
    let test = "def check(c):\n    try:\n        list(map(c, [1]))\n    except Exception:\n        pass\n    assert False\n";
    for error in ["SystemExit(0)", "KeyboardInterrupt()", "GeneratorExit()"] {
        let expects_anything =
            "def check(c):\n    try:\n        c(1)\n    except BaseException:\n        pass\n";
        let grade = check(&grader, expects_anything, &format!("def f(x):\n    raise {error}\n"));
        assert_eq!(grade.verdict, Verdict::RuntimeError, "{error}: {}", grade.detail);
    }
    assert_eq!(check(&grader, test, "def f(x):\n    raise StopIteration\n").verdict, Verdict::WrongAnswer);
}

#[test]
fn changed_arguments_are_seen_where_a_function_works_in_place() {
    let grader = arena::grader(Tier::A);
    let test = "\
def check(candidate):
    numbers, table, kinds = [3, 1, 2], {'a': [1]}, {1}
    inner = table['a']
    assert candidate(numbers, table, kinds) is None
    assert numbers == [1, 2, 3] and table == {'a': [1, 2], 'b': 0} and kinds == {1, 2}
    assert inner == [1, 2], 'an inner list is the same object afterwards'
";
    let response = "def f(n, t, k):\n    n.sort(); t['a'].append(2); t['b'] = 0; k.add(2)\n";
    accepted(&grader, test, response);

    let returns_too = "def f(n):\n    n.sort()\n    return len(n)\n";
    let looks_at_both = "def check(c):\n    n = [2, 1]\n    assert c(n) == 2\n    assert n == [1, 2]\n";
    assert_eq!(check(&grader, looks_at_both, returns_too).verdict, Verdict::WrongAnswer);
    let problem = Problem::HumanEval(HumanEval {
        task_id: "t".to_owned(),
        prompt: String::new(),
        entry_point: "f".to_owned(),
        test: looks_at_both.to_owned(),
        mutates_arguments: true,
    });
    assert_eq!(grader.grade(&problem, returns_too, &Limits::default()).unwrap().verdict, Verdict::Accepted);
}

#[test]
fn large_values_cross_up_to_the_limit() {
    let grader = arena::grader(Tier::A);
    accepted(
        &grader,
        "def check(c):\n    assert c(10**6) == list(range(10**6))\n    assert len(c(10)) == 10\n",
        "def f(n):\n    return list(range(n))\n",
    );
    let problem = arena::problem("increment");
    let limits = Limits { value_bytes: 1000, ..Limits::default() };
    let grade = grader.grade(&problem, "def solve(n):\n    return 'x' * 2000\n", &limits).unwrap();
    assert_eq!(grade.verdict, Verdict::OutputLimit, "{}", grade.detail);
}

#[test]
fn a_test_that_cannot_be_loaded_says_nothing_about_the_response() {
    let grader = arena::grader(Tier::A);
    let grade = check(
        &grader,
        "import no_such_module\ndef check(c):\n    assert c(1)\n",
        "def f(x):\n    return 1\n",
    );
    assert_eq!(grade.verdict, Verdict::Unsupported, "{}", grade.detail);
}
