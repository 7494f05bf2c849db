"""The values that may cross, as the trusted side reads, checks and packs them.

Replies are JSON. What JSON lacks is an object with one key, the tag of `READERS`. Any other object is not a value.
The reader builds exact values of builtin and standard types, or stand-ins (`sluice.remote`) for what stays in the
other process, or raises; it runs no code of the other side.
"""

import builtins
import json
import math
import sys
from array import array
from collections import Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

from sluice import graph, remote

# A value nested deeper cannot be compared by the interpreter either: its own limit is 1000.
REPLY_DEPTH = 900
# What the tests may put around values of the response; below what `marshal` can take.
REQUEST_DEPTH = 1500
MAX_FIELDS = 255
# Types of named tuples by name and fields, so that two equal ones are of one type.
NAMED_TUPLES = {}
SCALARS = frozenset([type(None), bool, int, float, str, bytes, complex])
CONTAINERS = (list, tuple, set, frozenset)
KEYS, VALUES, ITEMS = (type(view) for view in ({}.keys(), {}.values(), {}.items()))
LEAVES = {graph.Shell, remote.RemoteIterator, remote.ExceptionKind, range, bytearray, memoryview, type, type(...), array, UserString}
LEAVES |= {Fraction, Decimal, date, datetime, time, timedelta, timezone}
# Types that cross as their text, by module. The modules are loaded where one of them comes.
BY_TEXT = {
    "uuid": ("UUID",),
    "ipaddress": ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface"),
    "pathlib": ("PosixPath", "PurePosixPath", "PureWindowsPath"),
}
BUILTIN_TYPES = {name: kind for name, kind in vars(builtins).items() if type(kind) is type}


class Malformed(Exception):
    """Bytes that are not a message."""


class Uncrossable(Exception):
    """A value of the tests that cannot be handed to the candidate."""


def pairs(content):
    """A dictionary from a list of pairs."""
    return {key: item for key, item in content}


def read_date(parts):
    kind, numbers = parts[0], parts[1:]
    if kind == "datetime":
        *numbers, fold, offset = numbers
        zone = None if offset is None else timezone(timedelta(microseconds=offset))
        return datetime(*numbers, tzinfo=zone, fold=fold)
    if kind == "timezone":
        return timezone(timedelta(microseconds=numbers[0]))
    return {"date": date, "time": time, "timedelta": timedelta}[kind](*numbers)


def read_text(parts):
    """A value of a type that its text says all of."""
    module, name, text = parts
    if name not in BY_TEXT[module] or type(text) is not str:
        raise Malformed("a text of no type")
    kind = getattr(__import__(module), name)
    LEAVES.add(kind)
    return kind(text)


def text_of(value, kind):
    """Module, name and text of a value that `read_text` makes again; `None` where it is none."""
    for module, names in BY_TEXT.items():
        if kind.__name__ in names and kind is getattr(sys.modules.get(module), kind.__name__, None):
            return module, kind.__name__, str(value)
    return None


def read_named(parts):
    name, fields, items = parts
    key = (name, tuple(fields))
    if key not in NAMED_TUPLES:
        if len(fields) > MAX_FIELDS:
            raise Malformed("a tuple with %d names" % len(fields))
        NAMED_TUPLES[key] = namedtuple(name, fields)
    return NAMED_TUPLES[key]._make(items)


def read_user(parts):
    kind, data = parts
    kind, content = {"list": (UserList, list), "dict": (UserDict, dict), "str": (UserString, str)}[kind]
    if type(data) is not content:
        raise Malformed("the content of a %s" % kind.__name__)
    return kind(data)


def read_default(parts):
    """A `defaultdict`; what makes its missing values crosses where it is one of these types."""
    factory, items = parts
    return defaultdict(None if factory is None else FACTORIES[factory], pairs(items))


FACTORIES = {kind.__name__: kind for kind in (int, float, bool, str, list, dict, set, tuple)}


# By tag: of what type the content must be (`bool` and `int` never pass for one another here), and what is
# made of it.
READERS = {
    "t": (list, tuple),
    "s": (list, set),
    "z": (list, frozenset),
    "d": (list, pairs),
    "b": (str, lambda text: text.encode("latin-1")),
    "c": (list, lambda parts: complex(*parts)),
    "i": (str, lambda text: int(text, 16)),
    "bytearray": (str, lambda text: bytearray(text.encode("latin-1"))),
    "range": (list, lambda parts: range(*parts)),
    "slice": (list, lambda parts: slice(*parts)),
    "memoryview": (str, lambda text: memoryview(text.encode("latin-1"))),
    "nan": (list, lambda _: math.nan),
    "text": (list, read_text),
    "keys": (list, lambda items: dict.fromkeys(items).keys()),
    "values": (list, lambda items: dict(enumerate(items)).values()),
    "items": (list, lambda items: pairs(items).items()),
    "deque": (list, lambda parts: deque(parts[0], parts[1])),
    "fraction": (list, lambda parts: Fraction(*parts)),
    "decimal": (str, Decimal),
    "date": (list, read_date),
    "array": (list, lambda parts: array(*parts)),
    "counter": (list, lambda items: Counter(pairs(items))),
    "ordered": (list, OrderedDict),
    "default": (list, read_default),
    "named": (list, read_named),
    "user": (list, read_user),
    "type": (str, BUILTIN_TYPES.__getitem__),
    "ellipsis": (list, lambda _: ...),
    "p": (int, lambda number: Current.shell(number)),
    "iterator": (list, lambda parts: remote.RemoteIterator(*parts)),
    "raised": (list, lambda parts: remote.exception_class(*parts)),
    "remote": (list, lambda parts: remote.stand_in(*parts)),
}
# Every message there is, by its keys.
SHAPES = frozenset(
    frozenset(keys.split())
    for keys in ("loaded", "error", "call value", "call value arguments", "call large", "call error")
    + ("call items end", "call items error", "call value objects", "call value arguments objects")
    + ("call items end objects",)
)


# Objects of a request that has none. Nothing adds to it: `pack_all` begins with one of its own.
NONE_SENT = graph.Sent()


class Current:
    """The objects of the frame that is being read, and of the last request."""

    # `None` where the frame has none so far.
    received, sent = None, NONE_SENT

    @classmethod
    def shell(cls, number):
        """The object of that number in the frame."""
        if cls.received is None:
            cls.received = graph.Received()
        return cls.received.shell(number)


class Message(dict):
    """The outermost object of a frame. Never a value: `decode` takes it apart."""

    # Objects of the problem's own classes.
    objects = None


def hook(item):
    if len(item) == 1:
        (tag, content), = item.items()
        kind, reader = READERS.get(tag, (None, None))
        if kind is type(content):
            return reader(content)
    if frozenset(item) in SHAPES:
        return Message(item)
    raise Malformed("an object that is no value")


# One C call. `json.loads` runs five functions of Python around it, and each costs a fresh guest some pages.
scan = json.JSONDecoder(object_hook=hook).scan_once


def decode(data):
    """A frame as a `Message` whose content holds values and stand-ins only."""
    # Nobody is asked anything before the frame is read.
    remote.Link.is_reading, Current.received = True, None
    try:
        return read_message(data.decode("ascii"))
    except (MemoryError, Malformed):
        raise
    except Exception as error:
        # Whatever a constructor says to content that it cannot take.
        raise Malformed(str(error)[:200] or "no JSON") from None
    finally:
        remote.Link.is_reading = False


def read_message(text):
    message, end = scan(text, 0)
    if end != len(text) or type(message) is not Message:
        raise Malformed("a frame that is no message")
    has_objects, table = "objects" in message, message.pop("objects", None)
    for content in message.values():
        check(content)
    if has_objects or Current.received is not None:
        Current.received = Current.received or graph.Received()
        Current.received.fill(table, check)
        Current.received.resolve(Current.sent.objects)
        message.objects = Current.received
    return message


def check(value, depth=0):
    """Raises unless `value` holds no message and is not nested too deeply."""
    kind = type(value)
    if kind in SCALARS:
        return
    if depth >= REPLY_DEPTH:
        raise Malformed("nested more than %d levels deep" % REPLY_DEPTH)
    if kind in CONTAINERS:
        if not set(map(type, value)) <= SCALARS:
            for item in value:
                check(item, depth + 1)
    elif kind is Message:
        raise Malformed("a message inside of a value")
    elif kind not in LEAVES and not issubclass(kind, remote.Remote):
        for item in contents(value):
            check(item, depth + 1)


def contents(value):
    """What a container that is no list, tuple or set holds."""
    if isinstance(value, UserList):
        return value.data
    if isinstance(value, UserDict):
        value = value.data
    if type(value) is slice:
        return value.start, value.stop, value.step
    if isinstance(value, dict):
        return [part for pair in value.items() for part in pair]
    return list(value)


def is_plain(value, depth=0):
    """Whether `marshal` carries `value` as it is."""
    kind = type(value)
    if kind in SCALARS:
        return True
    if depth >= REQUEST_DEPTH:
        raise Uncrossable("a value nested more than %d levels deep" % REQUEST_DEPTH)
    if kind in CONTAINERS:
        return set(map(type, value)) <= SCALARS or all(is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return all(is_plain(key, depth + 1) and is_plain(item, depth + 1) for key, item in value.items())
    return False


def pack(value, depth=0):
    """`value` in a form that `marshal` carries, for `candidate.unpack`: scalars as they are, everything else as a
    tag and its content."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if graph.classes.get(kind.__name__) is kind:
        return ("object", Current.sent.number(value))
    if depth >= REQUEST_DEPTH:
        raise Uncrossable("a value nested more than %d levels deep" % REQUEST_DEPTH)

    def packed(items):
        return [pack(item, depth + 1) for item in items]

    if kind in (list, tuple, set, frozenset, bytearray):
        return (kind.__name__, bytes(value) if kind is bytearray else packed(value))
    if kind in (dict, Counter, OrderedDict, defaultdict):
        return ("dict" if kind is defaultdict else kind.__name__, packed(value.items()))
    if issubclass(kind, remote.Remote):
        unread = value.unread() if kind is remote.RemoteIterator else ()
        return ("rest", (packed(unread), value._handle)) if unread else ("handle", value._handle)
    if kind is remote.ExceptionKind:
        return ("handle", value._kind)
    if kind is range:
        return ("range", (value.start, value.stop, value.step))
    if kind is slice:
        return ("slice", packed((value.start, value.stop, value.step)))
    if kind is memoryview and value.format == "B" and value.ndim == 1:
        return ("memoryview", bytes(value))
    if kind is deque:
        return ("deque", (packed(value), value.maxlen))
    if kind in (KEYS, VALUES, ITEMS):
        return (kind.__name__, packed(value))
    if kind is Fraction:
        return ("Fraction", (value.numerator, value.denominator))
    if kind is Decimal:
        return ("Decimal", str(value))
    if kind is timezone:
        return ("timezone", value.utcoffset(None) // timedelta(microseconds=1))
    if kind in (UserList, UserDict, UserString):
        return (kind.__name__, pack(value.data, depth + 1))
    if kind in (date, datetime, time, timedelta):
        return ("datetime", (kind.__name__, pack(value.__reduce__()[1], depth + 1)))
    if kind is array:
        return ("array", (value.typecode, value.tolist()))
    if kind is type(...):
        return ("Ellipsis", None)
    if kind is type and BUILTIN_TYPES.get(value.__name__) is value:
        return ("type", value.__name__)
    if issubclass(kind, BaseException) and BUILTIN_TYPES.get(kind.__name__) is kind:
        return ("error", (kind.__name__, packed(value.args)))
    if isinstance(value, tuple) and kind.__bases__ == (tuple,) and hasattr(kind, "_fields"):
        return ("namedtuple", (kind.__name__, kind._fields, packed(value)))
    text = text_of(value, kind)
    if text is not None:
        return ("text", text)
    if hasattr(kind, "__next__"):
        return ("iterator", [pack(item, depth + 1) for item in drained(value)])
    raise Uncrossable("a value of type " + kind.__qualname__)


def pack_all(value):
    """`value`, with the objects that it leads to."""
    Current.sent = graph.Sent()
    packed = pack(value)
    table = Current.sent.table(pack)
    return ("graph", (packed, table)) if table else packed


def drained(iterator):
    """All items of an iterator of the tests."""
    items = []
    for item in iterator:
        items.append(item)
        if len(items) > 1_000_000:
            raise Uncrossable("an iterator of more than a million items")
    return items


MUTABLE = (list, dict, set, bytearray, deque, array, Counter, OrderedDict)


def is_mutable(value):
    kind = type(value)
    return kind in MUTABLE or graph.classes.get(kind.__name__) is kind


def mirror(old, new):
    """Makes the mutable value `old` equal to `new` in place, as far as their types allow."""
    kind = type(old)
    if kind is not type(new):
        return
    if kind is list:
        if len(old) == len(new):
            for index, (before, after) in enumerate(zip(old, new)):
                if type(before) in MUTABLE and type(before) is type(after):
                    mirror(before, after)
                else:
                    old[index] = after
        else:
            old[:] = new
    elif kind in (dict, Counter, OrderedDict):
        kept = {key: old[key] for key in new if key in old}
        old.clear()
        for key, after in new.items():
            before = kept.get(key)
            if type(before) in MUTABLE and type(before) is type(after):
                mirror(before, after)
                old[key] = before
            else:
                old[key] = after
    elif kind in (bytearray, array):
        old[:] = new
    elif kind is set:
        old.clear()
        old.update(new)
    elif kind is deque:
        old.clear()
        old.extend(new)
