"""The trusted side: holds the tests and the expected values, asks the candidate, reports the verdict.

Descriptors: 3 the job (JSON), 4 replies of the candidate, 5 requests to it, 6 the verdict. The verdict carries the
job's nonce, which the candidate's process has never held.
"""

import ast
import builtins
import json
import math
import random
import sys
from _thread import allocate_lock
from marshal import dumps
from posix import _exit, close, fstat, pread, read, write

from sluice import suite, values

JOB, REPLIES, REQUESTS, VERDICT = 3, 4, 5, 6

# These end loops and programs silently; a candidate must not be able to raise them inside a test.
WITHHELD = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration)
ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, WITHHELD)
}


class Fault(BaseException):
    """The end of grading by something that is not the outcome of a test: verdict and detail."""


class CandidateError(RuntimeError):
    """An exception of the response that has no builtin type the tests could expect."""


class Session:
    """The conversation with the candidate."""

    def __init__(self, job):
        self.limit = job["value_bytes"]
        self.always_mirror = job["mutates_arguments"]
        self.calls = 0
        self.fault = None
        self.raised = None
        self.lock = allocate_lock()

    def fail(self, verdict, detail):
        """The first fault decides, even where a test swallows the exception."""
        if self.fault is None:
            self.fault = (verdict, detail)
        raise Fault(*self.fault)

    def read(self, count):
        chunks = []
        while count:
            chunk = read(REPLIES, min(count, 1 << 20))
            if not chunk:
                self.fail("gone", "the response's process ended before it answered")
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)

    def receive(self):
        length = int.from_bytes(self.read(4), "little")
        if length > self.limit:
            self.fail("output_limit", "a reply of %d bytes, the limit is %d" % (length, self.limit))
        try:
            return values.decode(self.read(length))
        except values.Malformed as error:
            self.fail("runtime_error", "malformed reply: %s" % error)
        except MemoryError:
            self.fail("output_limit", "a reply that does not fit into the tester's memory")

    def greet(self):
        """Waits until the response has been executed."""
        message = self.receive()
        if message.get("loaded") is not True:
            error = self.error(message)
            self.fail(self.verdict_of(message), "while loading: %s" % describe(error, message))

    def error(self, message):
        """The exception that a message describes, of the nearest builtin type."""
        parts = message.get("error")
        if type(parts) is not list or len(parts) != 4:
            self.fail("runtime_error", "malformed reply: not an answer")
        ancestors, arguments, text, _ = parts
        names = ancestors if type(ancestors) is list else []
        if "Exception" not in names:
            # `sys.exit` and its like end a program; no test may take them for an answer.
            self.fail("runtime_error", describe(None, message))
        kinds = [ERRORS[name] for name in names if type(name) is str and name in ERRORS]
        try:
            return kinds[0](*arguments)
        except (IndexError, TypeError):
            return CandidateError(text if type(text) is str else "")

    def verdict_of(self, message):
        parts = message.get("error")
        if type(parts) is list and len(parts) == 4:
            ancestors, _, _, number = parts
            if type(ancestors) is list and "MemoryError" in ancestors:
                return "memory_limit"
            if type(number) is int and number != 0:
                return "file_limit"
        return "runtime_error"

    def call(self, name, arguments, named):
        if self.fault is not None:
            raise Fault(*self.fault)
        try:
            values.check((arguments, named))
        except values.Uncrossable as error:
            self.fail("unsupported", "the tests call %s with %s" % (name, error))
        with self.lock:
            self.calls += 1
            self.write(dumps((self.calls, name, arguments, named, self.always_mirror)))
            message = self.receive()
        if message.get("call") != self.calls:
            self.fail("runtime_error", "malformed reply: an answer to another call")
        if "large" in message:
            self.fail("output_limit", "%s returned more than %d bytes" % (name, self.limit))
        if "foreign" in message:
            self.fail("wrong_answer", "%s returned %s, which cannot cross" % (name, str(message["foreign"])[:100]))
        if "error" in message:
            self.raised = (self.error(message), self.verdict_of(message), message)
            raise self.raised[0]
        if "value" not in message:
            self.fail("runtime_error", "malformed reply: not an answer")
        changed = message.get("arguments")
        if type(changed) is tuple and len(changed) == len(arguments):
            for old, new in zip(arguments, changed):
                values.mirror(old, new)
        return message["value"]

    def write(self, data):
        view = memoryview(len(data).to_bytes(4, "little") + data)
        try:
            while view:
                view = view[write(REQUESTS, view) :]
        except BrokenPipeError:
            self.fail("gone", "the response's process ended before it was asked")

    def proxy(self, name):
        def candidate(*arguments, **named):
            return self.call(name, arguments, named)

        candidate.__name__ = candidate.__qualname__ = name
        return candidate


def describe(error, message=None):
    """An exception in one line; the candidate's own words where it has any."""
    parts = message.get("error") if message is not None else None
    if type(parts) is list and len(parts) == 4 and type(parts[2]) is str:
        return parts[2]
    try:
        return "%s: %s" % (type(error).__name__, str(error)[:300])
    except Exception:
        return type(error).__name__


class Tally:
    """What passed, what did not, and why."""

    def __init__(self, session, order):
        self.session, self.order = session, order
        self.passed, self.total = 0, 0
        # The worst failure of the earliest test: (verdict, detail).
        self.failures = []

    def run(self, tests):
        """Runs each of `tests` in the order of the seed; a failure does not keep the others from running."""
        indices = list(range(len(tests)))
        self.order.shuffle(indices)
        for index in indices:
            self.attempt(tests[index], index)

    def attempt(self, test, index=0):
        """Runs one test and counts it."""
        try:
            test()
        except Fault:
            raise
        except BaseException as error:
            self.failed(error, index)
        else:
            self.passed += 1
        if self.session.fault is not None:
            raise Fault(*self.session.fault)

    def failed(self, error, index):
        raised = self.session.raised
        if raised is not None and raised[0] is error:
            self.failures.append((index, raised[1], describe(error, raised[2])))
        elif isinstance(error, AssertionError):
            self.failures.append((index, "wrong_answer", describe(error)))
        else:
            self.failures.append((index, "wrong_answer", describe(error)))

    def block_passed(self):
        self.passed += 1

    def result(self):
        if not self.failures and self.passed >= self.total:
            return "accepted", ""
        # Independent of the order in which they ran: wrong answers first, then the earliest test.
        failures = sorted(self.failures, key=lambda item: (item[1] != "wrong_answer", item[0]))
        return failures[0][1:] if failures else ("wrong_answer", "not all tests ran")


def namespace(name):
    module = type(sys)(name)
    sys.modules[name] = module
    return module.__dict__


def run_check(job, session, tally):
    """HumanEval: `check(candidate)`, with the prompt's own definitions in reach."""
    names = namespace("tests")
    prompt = job["prompt"]
    try:
        code = compile(prompt, "<prompt>", "exec")
    except SyntaxError:
        # A signature without a docstring needs a body to be a program.
        code = compile(prompt + "\n    pass\n", "<prompt>", "exec")
    exec(code, names)
    proxy = session.proxy(job["entry_point"])
    names[job["entry_point"]] = proxy
    tree = ast.parse(job["test"])
    checks = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if len(checks) == 1 and len(checks[0].args.args) == 1:
        tally.total = suite.split(checks[0])
        ast.fix_missing_locations(tree)
    names[suite.GROUP], names[suite.BLOCK] = tally.run, tally.block_passed
    exec(compile(tree, "<tests>", "exec"), names)
    names[job["entry_point"]] = proxy
    if tally.total == 0:
        tally.total = 1
        tally.attempt(lambda: names["check"](proxy))
        return
    try:
        names["check"](proxy)
    except Fault:
        raise
    except BaseException as error:
        tally.failed(error, tally.total)


def run_asserts(job, session, tally):
    """MBPP: assertions that call the entry point by its name."""
    names = namespace("tests")
    exec(compile(job["setup"], "<setup>", "exec"), names)
    for name in suite.modules_used(job["asserts"], names):
        names[name] = __import__(name)
    points = [job["entry_point"]] if job["entry_point"] else []
    points += [name for name in suite.entry_points(job["asserts"], names) if name not in points]
    if not points:
        session.fail("unsupported", "the tests call no function of the response")
    if len(points) > 1:
        session.fail("unsupported", "besides %s the tests use %s of the response" % (points[0], ", ".join(points[1:])))
    names[points[0]] = session.proxy(points[0])
    codes = [compile(text, "<tests>", "exec") for text in job["asserts"]]
    tally.total = len(codes)
    tally.run([lambda code=code: exec(code, names) for code in codes])


def run_cases(job, session, tally):
    """Arguments and expected values."""
    proxy, tolerance = session.proxy(job["entry_point"]), job["tolerance"]

    def case(item):
        got = proxy(*item["args"], **item["kwargs"])
        if not same(got, item["expected"], tolerance):
            raise AssertionError("expected %s, got %s" % (short(item["expected"]), short(got)))

    tally.total = len(job["cases"])
    tally.run([lambda item=item: case(item) for item in job["cases"]])


def same(got, expected, tolerance):
    """Equality with a value that came from JSON, which knows lists but no tuples."""
    if type(got) is tuple and type(expected) is list:
        got = list(got)
    if type(got) is list and type(expected) is list:
        return len(got) == len(expected) and all(same(a, b, tolerance) for a, b in zip(got, expected))
    if type(got) is dict and type(expected) is dict:
        return got.keys() == expected.keys() and all(same(got[key], expected[key], tolerance) for key in expected)
    if tolerance and type(got) in (int, float) and type(expected) in (int, float):
        return got == expected or math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
    return got == expected


def short(value):
    try:
        text = repr(value)
    except ValueError:
        text = "a huge number"
    return text if len(text) <= 120 else text[:117] + "..."


KINDS = {"check": run_check, "asserts": run_asserts, "cases": run_cases}


def run():
    job = json.loads(pread(JOB, fstat(JOB).st_size, 0))
    close(JOB)
    session = Session(job)
    tally = Tally(session, random.Random(job["seed"]))
    try:
        session.greet()
        KINDS[job["kind"]](job, session, tally)
        verdict, detail = tally.result()
    except Fault as fault:
        verdict, detail = fault.args
    except BaseException as error:
        # Before the first call nothing of the response has had a say: the tests themselves do not work.
        verdict = "wrong_answer" if session.calls else "unsupported"
        detail = "in the tests: " + describe(error)
    if session.fault is not None:
        verdict, detail = session.fault
    total = tally.total or len(job.get("cases") or job.get("asserts") or [0])
    text = json.dumps(
        {"nonce": job["nonce"], "verdict": verdict, "passed": min(tally.passed, total), "total": total, "detail": detail}
    )
    data = memoryview(text.encode("ascii"))
    while data:
        data = data[write(VERDICT, data) :]
    _exit(0)
