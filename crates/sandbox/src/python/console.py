"""The untrusted side of a session: runs code step by step in one namespace, as a notebook does.

Descriptors: 0 nothing, 1 and 2 the output, 3 requests, 4 replies. A request is a key of 16 bytes, the length of the code
and the code; the reply is the key and one letter. Whatever else this process sends is dropped on the other side, which
believes nothing but that a step is over: the steps of a session are all the same policy's.
"""

import sys
from posix import _exit, write

from sluice.candidate import read_exactly, set_up

REQUESTS, REPLIES = 3, 4
KEY_BYTES = 16
FINISHED, RAISED = b"F", b"R"


def receive():
    head = read_exactly(REQUESTS, KEY_BYTES + 4)
    code = read_exactly(REQUESTS, int.from_bytes(head[KEY_BYTES:], "little"))
    return head[:KEY_BYTES], code.decode("utf-8", "replace")


def flush():
    """Gives out what was printed; a step may have closed or replaced the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


def show(name):
    """The exception of a step as the interpreter shows one, without what is ours of its traceback."""
    import traceback

    kind, error, trace = sys.exc_info()
    while trace is not None and trace.tb_frame.f_code.co_filename != name:
        trace = trace.tb_next
    flush()
    try:
        traceback.print_exception(kind, error, trace)
    except BaseException:
        print(kind.__name__, file=sys.stderr)


def execute(code, name, namespace):
    """Runs a step; the value of an expression at its end is shown, as in a notebook. Says whether it came to its end."""
    import ast
    import linecache

    linecache.cache[name] = (len(code), None, code.splitlines(True), name)
    try:
        tree = ast.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(last, name, "eval"), namespace)
            if value is not None:
                namespace["_"] = value
                print(repr(value))
        return True
    except BaseException:
        show(name)
        return False


def run():
    namespace = set_up("__main__")
    number = 0
    while True:
        key, code = receive()
        number += 1
        end = FINISHED if execute(code, "<step %d>" % number, namespace) else RAISED
        flush()
        write(REPLIES, key + end)
