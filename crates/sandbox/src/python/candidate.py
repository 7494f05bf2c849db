"""The untrusted side: runs the response and answers calls with plain values.

Nothing here is trusted by anybody: whatever this process sends is read by `values.decode` on the other side, which
builds exact builtin values or refuses. Descriptors: 0 stdin, 1 stdout, 2 stderr, 3 the job, 4 requests, 5 replies.
Imports nothing that a cold interpreter does not have anyway.
"""

import builtins
import sys
from marshal import loads
from posix import _exit, close, fstat, pread, read, write

try:
    from _json import encode_basestring_ascii as quote
except ImportError:
    from json.encoder import py_encode_basestring_ascii as quote

JOB, REQUESTS, REPLIES = 3, 4, 5
# Far beyond any honest value, far below what exhausts a C stack.
MAX_DEPTH = 100
# Longer decimal integers are slow to read, and refused by newer interpreters; they cross in hexadecimal.
DECIMAL_LIMIT = 1 << 12000
SUBCLASSED = (dict, list, tuple, set, frozenset, str, int, float)
OUT_OF_MEMORY, OUT_OF_FILES = 101, 102
FILE_ERRNOS = {24, 27, 28, 122}  # EMFILE, EFBIG, ENOSPC, EDQUOT


class Foreign(Exception):
    """A value that is not an exact builtin one, or too deep."""


def encode(value, depth=0):
    """JSON with tags for what JSON lacks; see `values.decode`."""
    kind = type(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return repr(value) if -DECIMAL_LIMIT < value < DECIMAL_LIMIT else '{"i":"%x"}' % value
    if kind is float:
        return encode_float(value)
    if kind is str:
        return quote(value)
    if depth >= MAX_DEPTH:
        raise Foreign("a value nested more than %d levels deep" % MAX_DEPTH)
    if kind is list:
        return "[" + encode_items(value, depth) + "]"
    if kind is tuple:
        return '{"t":[' + encode_items(value, depth) + "]}"
    if kind is set:
        return '{"s":[' + encode_items(list(value), depth) + "]}"
    if kind is frozenset:
        return '{"z":[' + encode_items(list(value), depth) + "]}"
    if kind is dict:
        pairs = ["[" + encode(key, depth + 1) + "," + encode(item, depth + 1) + "]" for key, item in value.items()]
        return '{"d":[' + ",".join(pairs) + "]}"
    if kind is bytes:
        return '{"b":' + quote(value.decode("latin-1")) + "}"
    if kind is complex:
        return '{"c":[' + encode_float(value.real) + "," + encode_float(value.imag) + "]}"
    return encode(plain(value), depth)


def encode_float(value):
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def encode_items(items, depth):
    kinds = set(map(type, items))
    if kinds == {int} and min(items) > -DECIMAL_LIMIT and max(items) < DECIMAL_LIMIT:
        return ",".join(map(repr, items))
    if kinds == {str}:
        return ",".join(map(quote, items))
    return ",".join([encode(item, depth + 1) for item in items])


def plain(value):
    """A subclass of a builtin type that compares exactly as that type does, such as a Counter or a named tuple, as that
    type. Equality with any builtin value is the same for both, so nothing is guessed."""
    kind = type(value)
    for base in SUBCLASSED:
        if issubclass(kind, base):
            module = sys.modules.get("collections")
            known = module is not None and kind in (module.Counter, module.OrderedDict, module.defaultdict)
            same = kind.__eq__ is base.__eq__ and kind.__hash__ is base.__hash__ and kind.__ne__ is base.__ne__
            if known or same:
                return base(value) if base is not tuple else tuple(iter(value))
    raise Foreign("a value of type " + kind.__qualname__)


def encode_error(error):
    """The exception as its builtin ancestors, its arguments where they can cross, and its text."""
    ancestors = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        arguments = encode(error.args)
    except Exception:
        arguments = "null"
    try:
        text = str(error)[:300]
    except Exception:
        text = ""
    number = getattr(error, "errno", None)
    number = number if type(number) is int and number in FILE_ERRNOS else 0
    return '{"error":[%s,%s,%s,%d]}' % (
        "[" + ",".join(map(quote, ancestors)) + "]",
        arguments if len(arguments) < 10_000 else "null",
        quote(type(error).__name__[:80] + ": " + text),
        number,
    )


def send(text):
    data = text.encode("ascii")
    view = memoryview(len(data).to_bytes(4, "little") + data)
    while view:
        view = view[write(REPLIES, view) :]


def receive():
    """The next request, or `None` where the tester is done."""
    data = read_exactly(4)
    return data and loads(read_exactly(int.from_bytes(data, "little")))


def read_exactly(count):
    chunks = []
    while count:
        chunk = read(REQUESTS, min(count, 1 << 20))
        if not chunk:
            _exit(0)
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def answer(call, name, function, arguments, named, always):
    """One call, as a reply: `{"value": ...}`, `{"foreign": ...}`, `{"large": ...}` or `{"error": ...}`."""
    result = function(*arguments, **named)
    changed = ""
    try:
        if (result is None or always) and any(type(item) in (list, dict, set) for item in arguments):
            changed = ',"arguments":' + encode(arguments)
        return '{"call":%d,"value":%s%s}' % (call, encode(result), changed)
    except Foreign as foreign:
        return '{"call":%d,"foreign":%s}' % (call, quote(str(foreign)))


def answer_calls(namespace, limit):
    while True:
        call, name, arguments, named, always = receive()
        try:
            if name not in namespace:
                raise NameError("name %r is not defined" % name)
            reply = answer(call, name, namespace[name], arguments, named, always)
        except BaseException as error:
            reply = '{"call":%d,%s' % (call, encode_error(error)[1:])
        if len(reply) > limit:
            reply = '{"call":%d,"large":%d}' % (call, len(reply))
        send(reply)


def read_job():
    """First line: the most bytes a reply may have. The rest: the program."""
    data = pread(JOB, fstat(JOB).st_size, 0)
    close(JOB)
    limit, _, source = data.partition(b"\n")
    return int(limit), source.decode("utf-8", "surrogatepass")


def set_up(name):
    """The module of a program named `name`. Its streams are those of the zygote: UTF-8, unused so far, and on the numbers
    at which the guest's descriptors are now."""
    sys.argv = ["solution.py"]
    # The two names that `site` would have brought and that programs use.
    builtins.exit = builtins.quit = sys.exit
    module = type(sys)(name)
    sys.modules[name] = sys.modules["__main__"] = module
    return module.__dict__


def run(program):
    limit, source = read_job()
    namespace = set_up("__main__" if program else "solution")
    if program:
        run_program(source, namespace)
    try:
        exec(compile(source, "<response>", "exec"), namespace)
    except BaseException as error:
        send(encode_error(error))
        _exit(0)
    send('{"loaded":true}')
    answer_calls(namespace, limit)


def run_program(source, namespace):
    """A whole program: what counts is its output, which the server reads and compares."""
    status = 0
    try:
        exec(compile(source, "<response>", "exec"), namespace)
    except SystemExit as error:
        status = error.code if type(error.code) is int else int(error.code is not None)
    except MemoryError:
        status = OUT_OF_MEMORY
    except OSError as error:
        status = OUT_OF_FILES if error.errno in FILE_ERRNOS else report()
    except BaseException:
        status = report()
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        atexit = sys.modules.get("atexit")
        if atexit is not None:
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 1
    _exit(status & 0xFF)


def report():
    """Prints the exception as the interpreter would."""
    sys.excepthook(*sys.exc_info())
    return 1
