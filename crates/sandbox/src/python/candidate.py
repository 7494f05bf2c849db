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

from sluice.encoding import FILE_ERRNOS, Graph, encode, encode_error, objects, quote, unpack

JOB, REQUESTS, REPLIES = 3, 4, 5
# Encoding takes a few levels of the interpreter for each level of a value.
RECURSION_LIMIT = 5000
OUT_OF_MEMORY, OUT_OF_FILES = 101, 102
IF_NONE, ALWAYS = 1, 2


def send(text):
    data = text.encode("ascii")
    view = memoryview(len(data).to_bytes(4, "little") + data)
    while view:
        view = view[write(REPLIES, view) :]


def receive():
    """The next request. The process ends where the tester is done."""
    data = read_exactly(REQUESTS, 4)
    return loads(read_exactly(REQUESTS, int.from_bytes(data, "little")))


def read_exactly(descriptor, count):
    """So many bytes. The process ends where nobody writes any more."""
    chunks = []
    while count:
        chunk = read(descriptor, min(count, 1 << 20))
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
    return with_objects('{"call":%d,"value":%s%s' % (call, deeply(encode, result), changed))


def next_items(call, iterator, count):
    """At most `count` items of an iterator, as a reply. Slow ones are not asked for in advance."""
    items, started = [], monotonic()
    while len(items) < count:
        try:
            item = next(iterator)
        except StopIteration as end:
            value = "true" if end.value is None else deeply(encode, (end.value,))
            return with_objects('{"call":%d,"items":[%s],"end":%s' % (call, ",".join(items), value))
        except BaseException as error:
            if not items:
                raise
            # Objects of these items would need fields, which the error has taken the place of.
            if Graph.sent:
                raise
            return '{"call":%d,"items":[%s],%s' % (call, ",".join(items), encode_error(error)[1:])
        items.append(deeply(encode, item))
        if monotonic() - started > 0.0005:
            break
    return with_objects('{"call":%d,"items":[%s],"end":false' % (call, ",".join(items)))


def with_objects(reply):
    """The whole of a reply whose beginning is given."""
    if not Graph.sent:
        return reply + "}"
    return reply + deeply(lambda _: Graph.encoded(), None) + "}"


def set_attribute(target, name, value):
    setattr(target, name, value)


def set_item(target, key, value):
    target[key] = value


def operate(target, name, *operands):
    """An operator or a conversion, by its name."""
    for module in ("builtins", "_operator", "math", "copy"):
        function = getattr(__import__(module), name, None)
        if function is not None:
            return function(target, *operands)
    raise NameError("no operator " + name)


def operate_reflected(target, name, operand, *more):
    return operate(operand, name, target, *more)


def leave(target, name, arguments):
    """The end of a `with`, by the exception of that name."""
    if name is None:
        return bool(type(target).__exit__(target, None, None, None))
    kind = getattr(builtins, name)
    return bool(type(target).__exit__(target, kind, kind(*arguments), None))


def finish(target):
    """What an awaitable comes to; all of them in one loop."""
    import asyncio

    async def whole():
        return await target

    loop = asyncio.new_event_loop() if finish.loop is None else finish.loop
    finish.loop = loop
    return loop.run_until_complete(whole())


finish.loop = None

# What the tests may do with an object that stays here.
OPERATIONS = {
    "operate": operate,
    "operate reflected": operate_reflected,
    "equal": lambda target, other: bool(target == other),
    "await": finish,
    "enter": lambda target: type(target).__enter__(target),
    "exit": leave,
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
    "isinstance": lambda target, value: isinstance(value, target),
    "issubclass": lambda target, value: issubclass(value, target),
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
    if not name.isascii():
        # As the interpreter reads identifiers.
        from unicodedata import normalize

        name = normalize("NFKC", name)
        if name in namespace:
            return namespace[name]
    if name not in expressions:
        expressions[name] = evaluate(namespace, name)
    return expressions[name]


expressions = {}


def evaluate(namespace, name):
    """A method of the class `Solution` that is named without it, one that is named without an object, or whatever else
    an expression means."""
    owner, _, method = name.rpartition(".")
    if name.isidentifier():
        owner, method = "Solution", name
    kind = namespace.get(owner)
    if isinstance(kind, type) and type(getattr(kind, method, None)) is type(evaluate):
        return getattr(kind(), method)
    if name.isidentifier():
        raise NameError("name %r is not defined" % name)
    return eval(name, namespace)


def look_up(namespace, name):
    if name not in namespace:
        raise NameError("name %r is not defined" % name)
    return namespace[name]


def reply_to(request, namespace):
    call, operation, target, is_packed, content, mirrored = request
    if Graph.sent or Graph.received:
        Graph.begin()
    if operation == "next":
        return next_items(call, objects[target], content)
    if is_packed:
        content = deeply(unpack, content)
    if operation == "call":
        return call_function(call, find(namespace, target), content, mirrored)
    if operation == "invoke":
        return call_function(call, objects[target], content, mirrored)
    if operation == "name":
        result = look_up(namespace, target)
    else:
        result = OPERATIONS[operation](objects[target], *content)
    return with_objects('{"call":%d,"value":%s' % (call, deeply(encode, result)))


def seed(is_packed, content):
    """Seeds `random` as the tests have."""
    import random

    arguments, named = deeply(unpack, content) if is_packed else content
    random.seed(*arguments, **named)


def answer_calls(namespace, limit):
    while True:
        request = receive()
        if request[1] == "classes":
            Graph.classes = {name: namespace[name] for name in request[2] if isinstance(namespace.get(name), type)}
            continue
        if request[1] == "seed":
            seed(request[3], request[4])
            continue
        try:
            reply = reply_to(request, namespace)
        except BaseException as error:
            reply = '{"call":%d,%s' % (request[0], encode_error(error)[1:])
        if len(reply) > limit:
            reply = '{"call":%d,"large":%d}' % (request[0], len(reply))
        send(reply)


def read_job():
    """First line: the most bytes a reply may have, and the lengths of the parts but the last. The rest: what the
    configuration runs first, what the problem does, what the response continues, and the response."""
    data = pread(JOB, fstat(JOB).st_size, 0)
    close(JOB)
    head, _, rest = data.partition(b"\n")
    limit, *lengths = map(int, head.split())
    parts = []
    for length in (*lengths, len(rest)):
        parts.append(rest[:length].decode("utf-8", "surrogatepass"))
        rest = rest[length:]
    return limit, parts


def other_arrangements(prompt, response):
    """Programs that a response may be meant as where it does not go on where the prompt ends: it begins a line of its own,
    or it is a whole program whose imports from the future have to stand first."""
    yield prompt + "\n" + response
    lines = response.splitlines(True)
    future = [line for line in lines if line.startswith("from __future__ import ")]
    yield "".join(future) + prompt + "\n" + "".join(line for line in lines if line not in future)


def compiled(prompt, response):
    """The prompt and what goes on with it, or the first of the other arrangements that is a program."""
    try:
        return compile(prompt + response, "<response>", "exec")
    except SyntaxError as error:
        first = error
    if prompt:
        for source in other_arrangements(prompt, response):
            try:
                return compile(source, "<response>", "exec")
            except SyntaxError:
                continue
    raise first


def execute(parts, namespace):
    *preludes, prompt, response = parts
    for prelude in preludes:
        if prelude:
            exec(compile(prelude, "<prelude>", "exec"), namespace)
    exec(compiled(prompt, response), namespace)


def set_up(name):
    """The module of a program named `name`. Its streams are those of the zygote: UTF-8, unused so far, and on the numbers
    at which the guest's descriptors are now."""
    sys.argv = ["solution.py"]
    # The two names that `site` would have brought and that programs use.
    builtins.exit = builtins.quit = sys.exit
    module = type(sys)(name)
    module.__file__ = "solution.py"
    sys.modules[name] = sys.modules["__main__"] = module
    return module.__dict__


def run(program):
    limit, parts = read_job()
    namespace = set_up("__main__" if program else "solution")
    if program:
        run_program(parts, namespace)
    try:
        execute(parts, namespace)
    except BaseException as error:
        send(encode_error(error))
        _exit(0)
    send('{"loaded":true}')
    answer_calls(namespace, limit)


def run_program(parts, namespace):
    """A whole program: what counts is its output, which the server reads and compares."""
    status = 0
    try:
        execute(parts, namespace)
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
