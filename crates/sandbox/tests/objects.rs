//! What tests do with objects that stay in the response's process: asked where that is safe, a `TypeError`
//! where it would hand over a value of the tests, and never a way out of judgement.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use sandbox::{Grade, Grader, HumanEval, Limits, Problem, Tier, Verdict};

fn check(grader: &Grader, test: &str, response: &str) -> Grade {
    let problem = Problem::HumanEval(HumanEval {
        task_id: "t".to_owned(),
        entry_point: "f".to_owned(),
        test: test.to_owned(),
        ..HumanEval::default()
    });
    grader.grade(&problem, response, &Limits::default()).unwrap()
}

fn accepted(grader: &Grader, test: &str, response: &str) {
    let grade = check(grader, test, response);
    assert_eq!(grade.verdict, Verdict::Accepted, "{}\n{test}\n{response}", grade.detail);
}

fn judged_wrong(grader: &Grader, test: &str, response: &str) {
    let Grade { verdict, detail, .. } = check(grader, test, response);
    let is_judged = matches!(verdict, Verdict::WrongAnswer | Verdict::RuntimeError);
    assert!(is_judged, "{verdict} ({detail})\n{test}\n{response}");
}

const EVERYTHING: &str = "\
class Meta(type):
    def __instancecheck__(cls, value): return True
    def __subclasscheck__(cls, value): return True
class Yes(metaclass=Meta):
    pass
def yes(self, *_): return True
def own(self, *_): return self
for name in 'lt le gt ge eq contains exit bool'.split():
    setattr(Yes, f'__{name}__', yes)
for name in ('add radd sub rsub mul rmul mod rmod pow rpow or ror divmod rdivmod neg pos abs round enter copy deepcopy '
             'getitem await').split():
    setattr(Yes, f'__{name}__', own)
Yes.__hash__ = lambda self: 0
Yes.__float__ = lambda self: 0.5
Yes.__int__ = Yes.__index__ = Yes.__len__ = lambda self: 1
Yes.__format__ = lambda self, form: ''
Yes.__iter__ = Yes.__reversed__ = lambda self: iter([self, self])
async def later(): return Yes()
";

/// What a response may return to be asked instead of judged.
const OBJECTS: &[&str] = &["object()", "sum", "Yes", "Yes()", "(Yes() for _ in 'ab')", "later()"];

/// What tests do with what should be a number, a list or a text.
const USES: &[&str] = &[
    "assert abs(c(1) - 1.5) < 1e-6",
    "assert abs(1.5 - c(1)) < 1e-6",
    "assert c(1) < 2",
    "assert 2 > c(1)",
    "assert math.isclose(c(1), 1.5)",
    "assert float(c(1)) == 1.5",
    "assert int(c(1)) == 15",
    "assert [10, 20, 30][c(1)] == 30",
    "assert round(c(1), 2) == 1.25",
    "assert -c(1) == 2",
    "assert c(1) + 1 == 2",
    "assert 1 + c(1) == 2",
    "assert sum(c(1)) == 2",
    "assert sum([c(1), c(2)]) == 3",
    "assert c(1) % 2 == 0",
    "assert c(1) | {1} == {1}",
    "assert divmod(c(1), 2) == (1, 1)",
    "assert pow(c(1), 2, 5) == 3",
    "assert sorted([c(1), 2]) == [1, 2]",
    "assert max(c(1), 2) == 2",
    "assert 7 in c(1)",
    "assert '7' in c(1)",
    "assert f'{c(1):.2f}' == '1.50'",
    "assert copy.deepcopy(c(1)) == [1]",
    "assert c(1)[0] == c(1)[-1] == 5",
    "with c(1) as opened:\n        assert opened == 5",
    "with c(1) as opened:\n        raise AssertionError('expected 5')",
    "assert asyncio.run(c(1)) == 5",
    "assert pickle.loads(pickle.dumps(c(1))) == 5",
    "assert list(reversed(c(1))) == [2, 1]",
    "assert isinstance(5, c(1)) or issubclass(int, c(2))",
];

#[test]
fn no_object_of_its_own_takes_a_response_out_of_judgement() {
    let graders = [Tier::A, Tier::B].map(arena::grader);
    for (row, object) in OBJECTS.iter().enumerate() {
        let response = format!("{EVERYTHING}def f(x):\n    return {object}\n");
        // Each for itself, because a verdict that judges hides one that does not; the tiers take turns.
        for (column, test) in USES.iter().enumerate() {
            let named = ["asyncio", "copy", "math", "pickle"].into_iter().filter(|name| test.contains(name));
            let imports: String = named.map(|name| format!("import {name}\n")).collect();
            let test = format!("{imports}def check(c):\n    {test}\n");
            judged_wrong(&graders[(row + column) % 2], &test, &response);
        }
    }
}

const MONEY: &str = "\
import asyncio, contextlib, functools
@functools.total_ordering
class Money:
    def __init__(self, cents): self.cents = cents
    def __eq__(self, other): return self.cents == other.cents
    def __lt__(self, other): return self.cents < other.cents
    def __add__(self, other): return Money(self.cents + other.cents)
    def __mul__(self, times): return Money(self.cents * times)
    __rmul__ = __mul__
    def __abs__(self): return Money(abs(self.cents))
    def __float__(self): return self.cents / 100
    def __index__(self): return self.cents
    def __round__(self, digits=0): return round(self.cents / 100, digits)
    def __format__(self, form): return format(self.cents / 100, form)
    def __contains__(self, coin): return coin <= self.cents
    def __iadd__(self, cents):
        self.cents += cents
        return self
class Bag:
    def __init__(self, items): self.items = items
    def __contains__(self, item): return item in self.items
    def __iter__(self): return iter(self.items)
    def __delitem__(self, key): del self.items[key]
    def __reversed__(self): return reversed(self.items)
    def __len__(self): return len(self.items)
async def later(n):
    await asyncio.sleep(0)
    if n < 0: raise ValueError('negative')
    return n + 1
log = []
@contextlib.contextmanager
def logged(kind):
    log.append('in')
    try:
        yield log
    except kind:
        log.append('caught')
    finally:
        log.append('out')
def counter():
    total = 0
    while True:
        total += (yield total) or 1
def f(which, *rest):
    return {'money': lambda: Money(*rest), 'bag': lambda: Bag(*rest), 'later': lambda: later(*rest),
            'logged': lambda: logged(*rest), 'counter': counter, 'log': lambda: log, 'numbers': lambda: iter([1, 2, 3, 4, 5, 6]),
            'sum': lambda: sum(rest[0])}[which]()
";

/// What CPython says is right of it.
const RIGHT: &[&str] = &[
    "assert c('money', 5) == c('money', 5) and c('money', 5) != c('money', 6)",
    "assert [c('money', 5)] == [c('money', 5)] and c('money', 5) in [c('money', 4), c('money', 5)]",
    "assert c('money', 5) < c('money', 6) and max(c('money', 5), c('money', 6)).cents == 6",
    "assert (c('money', 5) + c('money', 6)).cents == 11 and abs(c('money', -5)).cents == 5",
    "assert math.isclose(c('money', 150), 1.5) and round(c('money', 150), 1) == 1.5 and [7, 8][c('money', 1)] == 8",
    "assert f\"{c('money', 150):.2f}\" == '1.50' and copy.deepcopy(c('money', 3)).cents == 3",
    "bag = c('bag', [1, 2, 3])\n    assert 2 in bag and 5 not in bag\n    del bag[0]\n    assert list(reversed(bag)) == [3, 2]",
    "assert asyncio.run(c('later', 3)) == 4",
    "async def both():\n        return await asyncio.gather(c('later', 3), c('later', 4)), await c('later', 5)\n    \
         assert asyncio.run(both()) == ([4, 5], 6)",
    "try:\n        asyncio.run(c('later', -1))\n    except ValueError as error:\n        assert str(error) == 'negative'\n    \
         else:\n        assert False",
    "with c('logged', KeyError) as log:\n        raise KeyError('k')\n    assert c('log') == ['in', 'caught', 'out']",
    "with c('logged', KeyError) as log:\n        assert log == ['in']\n    assert c('log') == ['in', 'out']",
    "steps = c('counter')\n    assert next(steps) == 0 and steps.send(5) == 5 and next(steps) == 6 and steps.send(2) == 8\n    \
         steps.close()\n    assert list(steps) == []",
    "numbers = c('numbers')\n    assert [next(numbers), next(numbers)] == [1, 2] and c('sum', numbers) == 18 and list(numbers) == []",
    // Made by the tests themselves: what is tested is what its class does, with every operand.
    "price = Money(5)\n    price += 2\n    assert (price * 3).cents == (3 * price).cents == 21 and 7 in price and 8 not in price",
];

/// And what is not.
const WRONG: &[&str] = &[
    "assert c('money', 5) == c('money', 6)",
    "assert 2 in c('bag', [1, 3])",
    "assert asyncio.run(c('later', 3)) == 5",
    "with c('logged', KeyError) as log:\n        assert log == []",
    "with c('logged', Exception) as log:\n        log[5]",
    "price = Money(5)\n    assert (price * 3).cents == 16",
];

#[test]
fn what_objects_of_the_response_do_with_each_other_is_asked_of_them() {
    let imports = "import asyncio, copy, math\n";
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader(tier);
        for test in RIGHT {
            accepted(&grader, &format!("{imports}def check(c):\n    {test}\n"), MONEY);
        }
        for test in WRONG {
            judged_wrong(&grader, &format!("{imports}def check(c):\n    {test}\n"), MONEY);
        }
    }
    // Whom an event loop of the tests would have to interleave is for the tests to say, not for the response.
    for test in
        ["async for n in c('later', 1):\n            pass", "await asyncio.wait_for(c('later', 1), 1)"]
    {
        let test =
            format!("{imports}def check(c):\n    async def run():\n        {test}\n    asyncio.run(run())\n");
        for response in [MONEY, "def f(*_):\n    return object()\n"] {
            let grade = check(&arena::grader(Tier::A), &test, response);
            assert_eq!(grade.verdict, Verdict::Unsupported, "{test}: {}", grade.detail);
        }
    }
}

#[test]
fn exceptions_of_the_responses_own_classes_are_caught_by_them() {
    let response = "\
class Refused(ValueError):
    def __init__(self, code, why):
        super().__init__(code)
        self.code, self.why = code, [why]
    def __str__(self): return f'refused {self.code}'
class Worse(Refused): pass
class Other(Exception):
    limit = 3
def f(which):
    if which == 'refused': raise Refused(7, 'no')
    if which == 'worse': raise Worse(8, 'never')
    if which == 'other': raise Other('x')
    if which == 'key': raise KeyError('k')
    return [Refused, Refused(9, 'value')]
";
    let catching = |call: &str, kind: &str, then: &str| {
        format!(
            "def check(c):\n    try:\n        {call}\n    except {kind} as error:\n        assert {then}\n    else:\n        assert False\n"
        )
    };
    let right = [
        catching("c('refused')", "Refused", "error.code == 7 and error.why == ['no'] and str(error) == 'refused 7'"),
        catching("c('worse')", "Refused", "type(error).__name__ == 'Worse' or error.args == (8,)"),
        catching("c('worse')", "ValueError", "isinstance(error, (Worse, Refused)) and error.code == 8"),
        catching("c('other')", "(Refused, Other)", "isinstance(error, Other) and not isinstance(error, Refused)"),
        catching("c('key')", "KeyError", "not isinstance(error, Other) and issubclass(Worse, Worse) and Other.limit == 3"),
        "import unittest\ndef check(c):\n    with unittest.TestCase().assertRaises(Other):\n        c('other')\n".to_owned(),
        "def check(c):\n    kind, value = c('')\n    assert kind is Refused and isinstance(value, kind) and value.code == 9\n    \
         assert not isinstance(value, Other) and Refused(5, 6).code == 5 and c([Refused])[0] is Refused\n"
            .to_owned(),
    ];
    let wrong = [
        catching("c('other')", "Refused", "True"),
        catching("c('key')", "(Refused, Other)", "True"),
        catching("c('refused')", "Refused", "error.code == 8"),
        catching("c('refused')", "Refused", "error.nothing == 8"),
        catching("c('')", "Refused", "True"),
        catching("c('refused')", "f", "True"),
        catching("c('refused')", "f('')[1]", "True"),
    ];
    for tier in [Tier::A, Tier::B] {
        let grader = arena::grader(tier);
        for test in &right {
            accepted(&grader, test, response);
        }
        for test in &wrong {
            judged_wrong(&grader, test, response);
        }
    }
}
