"""The untrusted side: runs the response and answers calls with plain values.

Nothing here is trusted by anybody: whatever this process sends is read by `values.decode` and judged by `session` on the
other side. Descriptors: 0 stdin, 1 stdout, 2 stderr, 3 the job, 4 requests, 5 replies. Imports nothing that a cold
interpreter does not have anyway.
"""

import builtins
import sys
from marshal import loads
from posix import _exit, close, fstat, pread, read, write
from time import monotonic

try:
    from _json import encode_basestring_ascii as quote
except ImportError:
    from json.encoder import py_encode_basestring_ascii as quote

JOB, REQUESTS, REPLIES = 3, 4, 5
# As `values.REPLY_DEPTH`.
MAX_DEPTH = 900
# Encoding takes a few levels of the interpreter for each level of a value.
RECURSION_LIMIT = 5000
# Longer decimal integers are slow to read, and refused by newer interpreters; they cross in hexadecimal.
DECIMAL_LIMIT = 1 << 12000
OUT_OF_MEMORY, OUT_OF_FILES = 101, 102
FILE_ERRNOS = {24, 27, 28, 122}  # EMFILE, EFBIG, ENOSPC, EDQUOT
IF_NONE, ALWAYS = 1, 2
KEYS, VALUES, ITEMS = (type(view) for view in ({}.keys(), {}.values(), {}.items()))

# Objects that stay here, by the handles that the tests know them by, and the handles by identity.
objects, handles = [], {}


def encode(value, depth=0):
    """JSON with tags for what JSON lacks; see `values.READERS`."""
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
        raise RecursionError("a value nested more than %d levels deep" % MAX_DEPTH)
    if kind is list:
        return "[" + encode_items(value, depth) + "]"
    if kind is tuple:
        return '{"t":[' + encode_items(value, depth) + "]}"
    if kind is set:
        return '{"s":[' + encode_items(list(value), depth) + "]}"
    if kind is frozenset:
        return '{"z":[' + encode_items(list(value), depth) + "]}"
    if kind is dict:
        return '{"d":[' + encode_pairs(value.items(), depth) + "]}"
    if kind is bytes:
        return '{"b":' + quote(value.decode("latin-1")) + "}"
    if kind is complex:
        return '{"c":[' + encode_float(value.real) + "," + encode_float(value.imag) + "]}"
    return encode_other(value, kind, depth)


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


def encode_pairs(items, depth):
    return ",".join(["[" + encode(key, depth + 1) + "," + encode(item, depth + 1) + "]" for key, item in items])


def tagged(tag, content, depth):
    return '{"%s":%s}' % (tag, encode(content, depth))


# Types of the standard library that cross, by module and name: the tag, and what is sent.
STANDARD = {
    ("collections", "Counter"): ("counter", lambda value: list(map(list, dict.items(value)))),
    ("collections", "OrderedDict"): ("ordered", lambda value: [list(pair) for pair in value.items()]),
    ("collections", "defaultdict"): ("d", lambda value: list(map(list, dict.items(value)))),
    ("collections", "deque"): ("deque", lambda value: [list(value), value.maxlen]),
    ("collections", "UserList"): ("user", lambda value: ["list", value.data]),
    ("collections", "UserDict"): ("user", lambda value: ["dict", value.data]),
    ("collections", "UserString"): ("user", lambda value: ["str", value.data]),
    ("fractions", "Fraction"): ("fraction", lambda value: [value.numerator, value.denominator]),
    ("decimal", "Decimal"): ("decimal", str),
    ("array", "array"): ("array", lambda value: [value.typecode, value.tolist()]),
    # Before `date`, of which it is a subclass.
    ("datetime", "datetime"): ("date", lambda value: encode_datetime(value)),
    ("datetime", "date"): ("date", lambda value: ["date", value.year, value.month, value.day]),
    ("datetime", "timedelta"): (
        "date",
        lambda value: ["timedelta", value.days, value.seconds, value.microseconds],
    ),
    ("datetime", "time"): ("date", lambda value: ["time", value.hour, value.minute, value.second, value.microsecond]),
}
# What a value of a subclass is by its builtin part, however the subclass compares or prints itself.
BUILTIN_PARTS = (
    (dict, lambda value: dict(dict.items(value))),
    (list, lambda value: list(list.__iter__(value))),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, lambda value: bytearray.__getitem__(value, slice(None))),
    (complex, lambda value: complex.__add__(value, 0j)),
)


def encode_datetime(value):
    offset = value.utcoffset()
    if offset is not None:
        offset = (offset.days * 86400 + offset.seconds) * 1_000_000 + offset.microseconds
    parts = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
    return ["datetime", *parts, value.fold, offset]


def encode_other(value, kind, depth):
    """What is no plain value: rarer builtin types, the standard library's, subclasses by their builtin part, and
    handles of whatever has to stay here."""
    if kind is range:
        return tagged("range", [value.start, value.stop, value.step], depth)
    if kind is bytearray:
        return '{"bytearray":' + quote(value.decode("latin-1")) + "}"
    if kind in (KEYS, VALUES):
        return tagged("keys" if kind is KEYS else "values", list(value), depth)
    if kind is ITEMS:
        return '{"items":[' + encode_pairs(value, depth) + "]}"
    if value is ...:
        return '{"ellipsis":[]}'
    if kind is type and getattr(builtins, value.__name__, None) is value:
        return '{"type":' + quote(value.__name__) + "}"
    for (module, name), (tag, content) in STANDARD.items():
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and (kind is known or isinstance(value, known) and kind.__bases__ == (known,)):
            return tagged(tag, content(value), depth)
    if isinstance(value, tuple) and kind.__bases__ == (tuple,) and type(getattr(kind, "_fields", None)) is tuple:
        return tagged("named", [kind.__name__, list(kind._fields), list(tuple.__iter__(value))], depth)
    for base, part in BUILTIN_PARTS:
        if issubclass(kind, base):
            return encode(part(value), depth)
    tag = "iterator" if hasattr(kind, "__next__") and hasattr(kind, "__iter__") else "remote"
    return '{"%s":[%d,%s]}' % (tag, handle(value), quote(kind.__name__))


def handle(value):
    """What the tests know an object by; the same one each time."""
    if id(value) not in handles:
        handles[id(value)] = len(objects)
        objects.append(value)
    return handles[id(value)]


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


def unpack(packed):
    """A value of the tests from the form that `values.pack` gave it."""
    if type(packed) is not tuple:
        return packed
    tag, content = packed
    if tag in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, tag)(map(unpack, content))
    if tag == "dict":
        return dict(map(unpack, content))
    if tag == "bytearray":
        return bytearray(content)
    if tag == "handle":
        return objects[content]
    if tag == "range":
        return range(*content)
    if tag == "iterator":
        return iter(list(map(unpack, content)))
    if tag == "type":
        return getattr(builtins, content)
    if tag == "Ellipsis":
        return ...
    if tag == "dict_keys":
        return dict.fromkeys(map(unpack, content)).keys()
    if tag == "dict_values":
        return dict(enumerate(map(unpack, content))).values()
    if tag == "dict_items":
        return dict(map(unpack, content)).items()
    return unpack_standard(tag, content)


def unpack_standard(tag, content):
    if tag == "Fraction":
        import fractions

        return fractions.Fraction(*content)
    if tag == "Decimal":
        import decimal

        return decimal.Decimal(content)
    if tag == "array":
        import array

        return array.array(*content)
    if tag == "datetime":
        import datetime

        name, parts = content
        return getattr(datetime, name)(*unpack(parts))
    if tag == "timezone":
        import datetime

        return datetime.timezone(datetime.timedelta(microseconds=content))
    import collections

    if tag == "deque":
        return collections.deque(map(unpack, content[0]), content[1])
    if tag in ("UserList", "UserDict", "UserString"):
        return getattr(collections, tag)(unpack(content))
    if tag == "namedtuple":
        name, fields, items = content
        return collections.namedtuple(name, fields)._make(map(unpack, items))
    return getattr(collections, tag)(dict(map(unpack, content)))


def send(text):
    data = text.encode("ascii")
    view = memoryview(len(data).to_bytes(4, "little") + data)
    while view:
        view = view[write(REPLIES, view) :]


def receive():
    """The next request. The process ends where the tester is done."""
    data = read_exactly(4)
    return loads(read_exactly(int.from_bytes(data, "little")))


def read_exactly(count):
    chunks = []
    while count:
        chunk = read(REQUESTS, min(count, 1 << 20))
        if not chunk:
            _exit(0)
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def call_function(call, function, content, mirrored):
    """One call, as a reply; with the arguments where the tester wants to see what became of them."""
    arguments, named = content
    result = function(*arguments, **named)
    changed = ""
    if mirrored == ALWAYS or mirrored == IF_NONE and result is None:
        changed = ',"arguments":' + deeply(encode, [tuple(arguments), named])
    return '{"call":%d,"value":%s%s}' % (call, deeply(encode, result), changed)


def next_items(call, iterator, count):
    """At most `count` items of an iterator, as a reply. Slow ones are not asked for in advance."""
    items, started = [], monotonic()
    while len(items) < count:
        try:
            item = next(iterator)
        except StopIteration:
            return '{"call":%d,"items":[%s],"end":true}' % (call, ",".join(items))
        except BaseException as error:
            if not items:
                raise
            return '{"call":%d,"items":[%s],%s' % (call, ",".join(items), encode_error(error)[1:])
        items.append(deeply(encode, item))
        if monotonic() - started > 0.0005:
            break
    return '{"call":%d,"items":[%s],"end":false}' % (call, ",".join(items))


def set_attribute(target, name, value):
    setattr(target, name, value)


def set_item(target, key, value):
    target[key] = value


# What the tests may do with an object that stays here.
OPERATIONS = {
    "attribute": getattr,
    "set attribute": set_attribute,
    "item": lambda target, key: target[key],
    "set item": set_item,
    "contains": lambda target, item: item in target,
    "len": len,
    "bool": bool,
    "iter": iter,
    "str": str,
    "repr": repr,
}


def deeply(function, argument):
    """Calls with room for deep recursion, whatever limit the response has set."""
    limit = sys.getrecursionlimit()
    if limit >= RECURSION_LIMIT:
        return function(argument)
    sys.setrecursionlimit(RECURSION_LIMIT)
    try:
        return function(argument)
    finally:
        sys.setrecursionlimit(limit)


def find(namespace, name):
    """The function of that name; an expression such as `Solution().solve` is evaluated once."""
    if name in namespace:
        return namespace[name]
    if name.isidentifier():
        raise NameError("name %r is not defined" % name)
    if name not in expressions:
        expressions[name] = eval(name, namespace)
    return expressions[name]


expressions = {}


def reply_to(request, namespace):
    call, operation, target, is_packed, content, mirrored = request
    if operation == "next":
        return next_items(call, objects[target], content)
    if is_packed:
        content = deeply(unpack, content)
    if operation == "call":
        return call_function(call, find(namespace, target), content, mirrored)
    if operation == "invoke":
        return call_function(call, objects[target], content, mirrored)
    result = OPERATIONS[operation](objects[target], *content)
    return '{"call":%d,"value":%s}' % (call, deeply(encode, result))


def answer_calls(namespace, limit):
    while True:
        request = receive()
        try:
            reply = reply_to(request, namespace)
        except BaseException as error:
            reply = '{"call":%d,%s' % (request[0], encode_error(error)[1:])
        if len(reply) > limit:
            reply = '{"call":%d,"large":%d}' % (request[0], len(reply))
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
