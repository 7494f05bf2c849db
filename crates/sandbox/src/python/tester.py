"""The trusted side: holds the tests and the expected values, questions the candidate, reports the verdict.

Descriptors: 3 the job (JSON), 4 replies of the candidate, 5 requests to it, 6 reports. Every report carries the job's
nonce, which the candidate's process has never held.
"""

import builtins
import json
import math
import random
import re
import sys
from binascii import a2b_base64, b2a_base64
from marshal import dumps, loads
from posix import _exit, close, fstat, pread, write

from sluice import suite
from sluice.remote import Unserved, identical
from sluice.session import GradingEnded, Session, describe, short

JOB, REPORTS = 3, 6
# Compiled tests longer than this are not worth sending back and forth.
COMPILED_TESTS_LIMIT = 1 << 20
# Python around a call in C costs a fresh guest some pages for each function.
scan, quote = json.JSONDecoder().scan_once, json.encoder.encode_basestring_ascii


# Which failure stands for all of them.
RANKS = {"wrong_answer": 0, "unsupported": 2}


class Tally:
    """What passed, what did not, and why."""

    def __init__(self, session):
        self.session = session
        self.passed, self.total = 0, 0
        # Index, verdict and detail of each failure.
        self.failures = []

    def run(self, tests):
        """Runs each of `tests` in turn, because they may share what the response remembers; a failure does not keep the
        others from running."""
        for index, test in enumerate(tests):
            self.attempt(test, index)

    def attempt(self, test, index=0):
        """Runs one test and counts it."""
        try:
            test()
        except GradingEnded:
            raise
        except BaseException as error:
            self.failed(error, index)
        else:
            self.passed += 1
        if self.session.ended is not None:
            raise GradingEnded(*self.session.ended)

    def failed(self, error, index):
        raised = self.session.raised
        self.session.describing = True
        if isinstance(error, Unserved):
            failure = "unsupported", "the tests use " + str(error)
        elif raised is not None and raised[0] is error:
            failure = raised[1], describe(error, raised[2])
        else:
            failure = "wrong_answer", describe(error) + self.last_call()
        self.session.describing = False
        self.failures.append((index, *failure))

    def last_call(self):
        """What a failed assertion was most likely about."""
        if not self.session.last:
            return ""
        name, arguments, value = self.session.last
        return " [%s(%s) returned %s]" % (name, ", ".join(map(short, arguments)), short(value))

    def block_passed(self):
        self.passed += 1

    def whole(self, check, *arguments):
        """Runs a function whose assertions report themselves."""
        try:
            check(*arguments)
        except GradingEnded:
            raise
        except BaseException as error:
            self.failed(error, self.total)
        else:
            # One that came to its end without a failure has passed, wherever it left.
            if not self.failures:
                self.total = self.passed = max(self.passed, 1)

    def result(self):
        # Independent of the order in which they ran: wrong answers first, then the earliest test. What a test
        # could not be told decides only where no other test has judged the response.
        failures = sorted(self.failures, key=lambda item: (RANKS.get(item[1], 1), item[0]))
        if failures:
            return failures[0][1:]
        if self.session.unserved is not None:
            return "unsupported", "the tests use " + self.session.unserved
        if self.session.calls == 0:
            return "unsupported", "the tests call nothing of the response"
        return ("accepted", "") if self.passed >= self.total else ("wrong_answer", "not all tests ran")


def namespace(name):
    module = type(sys)(name)
    sys.modules[name] = module
    return module.__dict__


def run_check(job, compiled, session, tally):
    """HumanEval: `check(candidate)`, with the prompt's own definitions in reach."""
    prompt, tests, tally.total, needs, classes, is_driven, refusal = compiled
    if refusal:
        refuse(session, refusal)
    names = namespace("tests")
    exec(prompt, names)
    if type(names.get(job["entry_point"])) is type:
        classes = [*classes, job["entry_point"]]
    session.expect(classes, is_driven)
    session.know_classes(names, "tests")
    proxy = session.proxy(job["entry_point"])
    names[job["entry_point"]] = proxy
    if needs:
        bind(session, names, needs)
    names.update({suite.GROUP: tally.run, suite.BLOCK: tally.block_passed, suite.IDENTICAL: identical})
    exec(tests, names)
    names[job["entry_point"]] = proxy
    if tally.total == 0:
        tally.total = 1
        tally.attempt(lambda: names["check"](proxy))
        return
    tally.whole(names["check"], proxy)


def refuse(session, refusal):
    session.fail("unsupported", "the tests " + refusal)


# What tests use as if it were imported, because the response's author was expected to. A checker such as `isclose` must
# not be the response's.
USUAL = tuple(map(__import__, "math collections itertools functools typing operator heapq bisect copy statistics".split()))


def bind(session, names, needs):
    """Asks the response for what the tests name, nobody has defined and the standard library has not."""
    for name in needs:
        if name in names or hasattr(builtins, name):
            continue
        owner = next((module for module in USUAL if hasattr(module, name)), None)
        if name in sys.stdlib_module_names:
            names[name] = __import__(name)
        elif owner is not None:
            names[name] = getattr(owner, name)
        else:
            session.look_up(names, name)


def run_asserts(job, compiled, session, tally):
    """MBPP: assertions that call the entry point by its name."""
    codes, modules, points, tests, assertions, classes, is_driven, refusal = compiled
    if refusal:
        refuse(session, refusal)
    tally.total = assertions or len(tests)
    if not points:
        session.fail("unsupported", "the tests call no function of the response")
    session.expect(classes, is_driven)
    names = namespace("tests")
    prelude, setup = codes
    exec(prelude, names)
    bind(session, names, points[1:])
    exec(setup, names)
    session.know_classes(names, "tests")
    for name in modules:
        names[name] = __import__(name)
    names[points[0]] = session.proxy(points[0])
    names.update({suite.GROUP: tally.run, suite.BLOCK: tally.block_passed, suite.IDENTICAL: identical})
    if assertions:
        exec(tests[0], names)
        tally.whole(names[suite.SCRIPT])
        return
    tally.run([lambda code=code: exec(code, names) for code in tests])


def run_cases(job, compiled, session, tally):
    """Arguments and expected values."""
    proxy, tolerance = session.proxy(job["entry_point"]), job["tolerance"]
    read = integer_keys if job["integer_keys"] else lambda value: value

    def case(item):
        got = proxy(*read(item["args"]), **{name: read(value) for name, value in item["kwargs"].items()})
        if not same(got, item["expected"], tolerance):
            raise AssertionError("expected %s, got %s" % (short(item["expected"]), short(got)))

    tally.run([lambda item=item: case(item) for item in job["cases"]])


def integer_keys(value):
    """A value from JSON whose keys are integers where they are written as such."""
    if type(value) is list:
        return list(map(integer_keys, value))
    if type(value) is dict:
        return {int(key) if INTEGER(key) else key: integer_keys(item) for key, item in value.items()}
    return value


INTEGER = re.compile("-?[0-9]+").fullmatch


def json_key(key):
    """What JSON makes of the key of a dictionary."""
    kind = type(key)
    if kind is bool or key is None:
        return {True: "true", False: "false", None: "null"}[key]
    return repr(key) if kind in (int, float) else key


def same(got, expected, tolerance):
    """Equality with a value that came from JSON, which knows lists but no tuples, and keys that are text."""
    if type(got) is tuple and type(expected) is list:
        got = list(got)
    if type(got) is list and type(expected) is list:
        return len(got) == len(expected) and all(same(a, b, tolerance) for a, b in zip(got, expected))
    if type(got) is dict and type(expected) is dict:
        keyed = {json_key(key): item for key, item in got.items()}
        return (
            len(keyed) == len(got)
            and keyed.keys() == expected.keys()
            and all(same(keyed[key], expected[key], tolerance) for key in expected)
        )
    # Integers are exact, however many digits they have.
    if tolerance and type(got) in (int, float) and type(expected) in (int, float) and float in (type(got), type(expected)):
        return got == expected or math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    return got == expected


KINDS = {"check": run_check, "asserts": run_asserts, "cases": run_cases}


def compiled_tests(job):
    """The tests in compiled form: from an earlier run of the same problem, or made now and reported for later ones.

    It is reported before a single byte of the candidate has been read, so nothing of a response can be in it.
    """
    if job["compiled_tests"]:
        return loads(a2b_base64(job["compiled_tests"]))
    compiled = suite.prepare(job)
    code = b2a_base64(dumps(compiled), newline=False)
    if compiled is not None and len(code) <= COMPILED_TESTS_LIMIT:
        report(job, '"compiled_tests":"%s"' % code.decode("ascii"))
    return compiled


def report(job, content):
    """One line of JSON to the server: the nonce, and `content` as the rest of the object."""
    data = memoryview(b'{"nonce":%s,%s}\n' % (quote(job["nonce"]).encode("ascii"), content.encode("ascii")))
    while data:
        data = data[write(REPORTS, data) :]


def grade(job, session, tally):
    """The verdict and its reason."""
    try:
        compiled = compiled_tests(job)
        tally.total = len(job["cases"])
        session.greet()
        KINDS[job["kind"]](job, compiled, session, tally)
        verdict = tally.result()
    except GradingEnded as ended:
        verdict = ended.args
    except BaseException as error:
        # Before the first call nothing of the response has had a say: the tests themselves do not work.
        verdict = ("wrong_answer" if session.calls else "unsupported", "in the tests: " + describe(error))
    return session.ended or verdict


def run():
    job, _ = scan(pread(JOB, fstat(JOB).st_size, 0).decode(), 0)
    close(JOB)
    session = Session(job)
    random.seed(job["seed"])
    random.seed = session.seed
    # Values nest almost as deep as the interpreter's own limit, and reading them takes some levels more.
    sys.setrecursionlimit(5000)
    tally = Tally(session)
    verdict, detail = grade(job, session, tally)
    total = max(tally.total, 1)
    # The detail may hold words of the response; a lone surrogate in them would make the whole report
    # unreadable.
    detail = detail[:1000].encode("ascii", "backslashreplace").decode("ascii")
    numbers = '"passed":%d,"total":%d' % (min(tally.passed, total), total)
    report(job, '"verdict":%s,%s,"detail":%s' % (quote(verdict), numbers, quote(detail)))
    _exit(0)
