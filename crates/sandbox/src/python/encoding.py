"""The untrusted side's form of values: what it sends, and what it makes of what it is sent.

Nothing here is trusted by anybody; `values` reads and checks on the other side. Imports nothing that a cold interpreter
does not have anyway.
"""

import builtins
import sys

try:
    from _json import encode_basestring_ascii as quote
except ImportError:
    from json.encoder import py_encode_basestring_ascii as quote

# As `values.REPLY_DEPTH`.
MAX_DEPTH = 900
# Longer decimal integers are slow to read, and refused by newer interpreters; they cross in hexadecimal.
DECIMAL_LIMIT = 1 << 12000
FILE_ERRNOS = {24, 27, 28, 122}  # EMFILE, EFBIG, ENOSPC, EDQUOT
KEYS, VALUES, ITEMS = (type(view) for view in ({}.keys(), {}.values(), {}.items()))

# Objects that stay here, by the handles that the tests know them by, and the handles by identity.
objects, handles = [], {}


class Graph:
    """Objects of the problem's own classes, which cross by the name of their class and their fields."""

    # The response's classes of the names that the tests have classes of.
    classes = {}
    # Those of the current reply in the order of their numbers, and the numbers by identity.
    sent, numbers = [], {}
    # Those that the current request has brought, and their numbers in it by identity.
    received, origins = [], {}

    @classmethod
    def begin(cls):
        """Begins another exchange."""
        cls.sent, cls.numbers, cls.received, cls.origins = [], {}, [], {}

    @classmethod
    def number(cls, value):
        """The number of an object in the current reply."""
        if id(value) not in cls.numbers:
            cls.numbers[id(value)] = len(cls.sent)
            cls.sent.append(value)
        return cls.numbers[id(value)]

    @classmethod
    def encoded(cls):
        """The fields of all objects that the current reply names, as a part of it."""
        table = []
        # Grows meanwhile, so that a list of any length takes no recursion.
        for value in cls.sent:
            fields = ",".join(
                ["[" + quote(name) + "," + encode(field) + "]" for name, field in fields_of(value) if type(name) is str]
            )
            origin = cls.origins.get(id(value))
            table.append(
                "[%s,%s,[%s]]" % (quote(type(value).__name__), "null" if origin is None else "%d" % origin, fields)
            )
        return ',"objects":[' + ",".join(table) + "]" if table else ""

    @classmethod
    def receive(cls, packed, table):
        """What a request has brought: objects first without their fields, because they may lead to each other."""
        for name, _ in table:
            kind = cls.classes.get(name) or type(name, (), {})
            cls.received.append(object.__new__(kind))
            cls.origins[id(cls.received[-1])] = len(cls.received) - 1
        for value, (_, fields) in zip(cls.received, table):
            for name, field in fields:
                object.__setattr__(value, name, unpack(field))
        return unpack(packed)


def fields_of(value):
    """Names and values of an object's fields."""
    fields = getattr(value, "__dict__", None)
    if fields is not None:
        return list(fields.items())
    names = [name for kind in type(value).__mro__ for name in kind.__dict__.get("__slots__", ())]
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


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
        # Identity counts inside of containers, where `[math.nan] == [math.nan]`.
        return '{"nan":[]}' if value is getattr(sys.modules.get("math"), "nan", None) else "NaN"
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
    ("collections", "defaultdict"): ("default", lambda value: [factory(value), list(map(list, dict.items(value)))]),
    ("collections", "ChainMap"): ("d", lambda value: list(map(list, value.items()))),
    ("types", "MappingProxyType"): ("d", lambda value: list(map(list, value.items()))),
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
    ("datetime", "timezone"): ("date", lambda value: ["timezone", value.utcoffset(None) // type(value.utcoffset(None))(0, 0, 1)]),
}
# Those that are made of their text again. As `values.BY_TEXT`.
BY_TEXT = {
    "uuid": ("UUID",),
    "ipaddress": (
        "IPv4Address",
        "IPv6Address",
        "IPv4Network",
        "IPv6Network",
        "IPv4Interface",
        "IPv6Interface",
    ),
    "pathlib": ("PosixPath", "PurePosixPath", "PureWindowsPath"),
}
for owner, kinds in BY_TEXT.items():
    for kind in kinds:
        STANDARD[owner, kind] = "text", lambda value, parts=(owner, kind): [*parts, str(value)]
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
    if kind is slice:
        return tagged("slice", [value.start, value.stop, value.step], depth)
    if kind is memoryview and value.format == "B" and value.ndim == 1:
        return '{"memoryview":' + quote(bytes(value).decode("latin-1")) + "}"
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
    if Graph.classes.get(kind.__name__) is kind:
        return '{"p":%d}' % Graph.number(value)
    for base, part in BUILTIN_PARTS:
        if issubclass(kind, base):
            return encode(part(value), depth)
    if issubclass(kind, type) and issubclass(value, BaseException):
        base = next(base for base in value.__mro__ if getattr(builtins, base.__name__, None) is base)
        return '{"raised":[%d,%s,%s]}' % (handle(value), quote(value.__name__), quote(base.__name__))
    tag = "iterator" if hasattr(kind, "__next__") and hasattr(kind, "__iter__") else "remote"
    return '{"%s":[%d,%s,"%s"]}' % (tag, handle(value), quote(kind.__name__), traits(value, kind))


# What an object can do, as `remote.METHODS` knows it.
TRAITS = {
    "c": "__call__",
    "g": "__getitem__",
    "s": "__setitem__",
    "i": "__iter__",
    "n": "__contains__",
    "l": "__len__",
}


def traits(value, kind):
    found = [letter for letter, name in TRAITS.items() if has_method(kind, name)]
    if isinstance(value, type):
        found.append("t")
    if kind.__module__ == "builtins":
        found.append("b")
    elif kind.__eq__ is not object.__eq__:
        found.append("e")
    return "".join(found)


def has_method(kind, name):
    """Whether objects of this class have a method; `getattr` would find those of the class itself too."""
    for base in kind.__mro__:
        if name in base.__dict__:
            return base.__dict__[name] is not None
    return False


def factory(value):
    """The name of what makes a `defaultdict`'s missing values, where the other side knows it."""
    kind = value.default_factory
    return kind.__name__ if type(kind) is type and kind in FACTORIES else None


FACTORIES = (int, float, bool, str, list, dict, set, tuple)


def handle(value):
    """What the tests know an object by; the same one each time."""
    if id(value) not in handles:
        handles[id(value)] = len(objects)
        objects.append(value)
    return handles[id(value)]


def encode_error(error):
    """The exception as its builtin ancestors, its arguments where they can cross, and its text."""
    # Builtin ones by their names, those that the tests know by their handles.
    ancestors, is_known = [], False
    for kind in type(error).__mro__:
        if getattr(builtins, kind.__name__, None) is kind:
            ancestors.append(quote(kind.__name__))
        elif id(kind) in handles:
            ancestors.append("%d" % handles[id(kind)])
            is_known = True
    Graph.begin()
    try:
        arguments = encode(error.args)
    except Exception:
        arguments = "null"
    if Graph.sent:
        arguments = "null"
    try:
        text = str(error)[:300]
    except Exception:
        text = ""
    number = getattr(error, "errno", None)
    number = number if type(number) is int and number in FILE_ERRNOS else 0
    return '{"error":[%s,%s,%s,%d%s]}' % (
        "[" + ",".join(ancestors) + "]",
        arguments if len(arguments) < 10_000 else "null",
        quote(type(error).__name__[:80] + ": " + text),
        number,
        ",%d" % handle(error) if is_known else "",
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
    if tag == "rest":
        items, number = content
        return (item for part in (map(unpack, items), objects[number]) for item in part)
    if tag == "object":
        return Graph.received[content]
    if tag == "graph":
        return Graph.receive(*content)
    if tag == "range":
        return range(*content)
    if tag == "slice":
        return slice(*map(unpack, content))
    if tag == "memoryview":
        return memoryview(content)
    if tag == "iterator":
        return iter(list(map(unpack, content)))
    if tag == "type":
        return getattr(builtins, content)
    if tag == "error":
        name, arguments = content
        return getattr(builtins, name)(*map(unpack, arguments))
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
    if tag == "text":
        owner, kind, text = content
        return getattr(__import__(owner), kind)(text)
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
