"""The values that may cross, as the trusted side reads and checks them.

Replies are JSON. What JSON lacks is an object with one key: t tuple, s set, z frozenset, d dictionary as pairs, b bytes,
c complex, i integer in hexadecimal. Any other object is not a value. The reader builds exact builtin
values or raises; it runs no code of the other side.
"""

import json

MAX_DEPTH = 100
SCALARS = frozenset([type(None), bool, int, float, str, bytes, complex])
CONTAINERS = (list, tuple, set, frozenset)
MUTABLE = (list, dict, set)


class Malformed(Exception):
    """Bytes that are not a message."""


class Uncrossable(Exception):
    """A value that cannot be handed to the candidate."""


def latin(text):
    return text.encode("latin-1")


def number(text):
    return int(text, 16)


READERS = {
    "t": tuple,
    "s": set,
    "z": frozenset,
    "d": dict,
    "b": latin,
    "c": lambda parts: complex(*parts),
    "i": number,
}
# Of what type the content of each tag must be; `bool` and `int` never pass for one another here.
CONTENTS = {"t": list, "s": list, "z": list, "d": list, "b": str, "c": list, "i": str}


def hook(item):
    if len(item) == 1:
        (tag, content), = item.items()
        if CONTENTS.get(tag) is type(content):
            return READERS[tag](content)
    if "call" in item or "error" in item or "loaded" in item:
        return Message(item)
    raise Malformed("an object that is no value")


class Message(dict):
    """The outermost object of a frame. Never a value: `decode` takes it apart."""


# One C call. `json.loads` runs five functions of Python around it, and each costs a fresh guest some pages.
scan = json.JSONDecoder(object_hook=hook).scan_once


def decode(data):
    """A frame as a `Message` whose content holds exact builtin values."""
    try:
        text = data.decode("ascii")
        message, end = scan(text, 0)
    except Malformed:
        raise
    except (StopIteration, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise Malformed(str(error)[:200] or "no JSON") from None
    if end != len(text) or type(message) is not Message:
        raise Malformed("a frame that is no message")
    for content in message.values():
        check(content, Malformed)
    return message


def check(value, failure=Uncrossable, depth=0):
    """Raises unless `value` is built of exact builtin types only, and not too deeply."""
    kind = type(value)
    if kind in SCALARS:
        return
    if depth >= MAX_DEPTH:
        raise failure("nested more than %d levels deep" % MAX_DEPTH)
    if kind in CONTAINERS:
        if not set(map(type, value)) <= SCALARS:
            for item in value:
                check(item, failure, depth + 1)
    elif kind is dict:
        for key, item in value.items():
            check(key, failure, depth + 1)
            check(item, failure, depth + 1)
    else:
        raise failure("a value of type " + kind.__qualname__)


def mirror(old, new):
    """Makes the mutable value `old` equal to `new` in place, as far as their types allow."""
    if type(old) is not type(new):
        return
    if type(old) is list:
        if len(old) == len(new):
            for index, (before, after) in enumerate(zip(old, new)):
                if type(before) in MUTABLE and type(before) is type(after):
                    mirror(before, after)
                else:
                    old[index] = after
        else:
            old[:] = new
    elif type(old) is dict:
        kept = {key: old[key] for key in new if key in old}
        old.clear()
        for key, after in new.items():
            before = kept.get(key)
            if type(before) in MUTABLE and type(before) is type(after):
                mirror(before, after)
                old[key] = before
            else:
                old[key] = after
    elif type(old) is set:
        old.clear()
        old.update(new)
