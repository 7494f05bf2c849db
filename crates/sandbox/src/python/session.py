"""The conversation with the candidate: calls out, values and exceptions back, and what makes grading end early."""

import builtins
from _thread import allocate_lock
from marshal import dumps
from posix import read, write

from sluice import values

REPLIES, REQUESTS = 4, 5

# These end loops and programs silently; a candidate must not be able to raise them inside a test.
WITHHELD = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration)
ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, WITHHELD)
}


class GradingEnded(BaseException):
    """The end of grading by something that is not the outcome of a test: verdict and detail."""


class CandidateError(RuntimeError):
    """An exception of the response that has no builtin type the tests could expect."""


class Session:
    """The conversation with the candidate."""

    def __init__(self, job):
        self.limit = job["value_bytes"]
        self.always_mirror = job["mutates_arguments"]
        self.calls = 0
        self.ended = None
        self.raised = None
        self.last = ""
        self.lock = allocate_lock()

    def fail(self, verdict, detail):
        """The first ended decides, even where a test swallows the exception."""
        if self.ended is None:
            self.ended = (verdict, detail)
        raise GradingEnded(*self.ended)

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
        if self.ended is not None:
            raise GradingEnded(*self.ended)
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
        self.last = (name, arguments, message["value"])
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


def short(value):
    """A value in a few words; most of a large one is not even looked at."""
    if type(value) in (list, tuple, set, frozenset, dict, str, bytes, bytearray) and len(value) > 100:
        return "a %s of length %d" % (type(value).__name__, len(value))
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = "a huge %s" % type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."
