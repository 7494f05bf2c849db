"""Stand-ins for what stays in the candidate's process: iterators, and objects of the response's own types.

What the tests do with one is asked of the candidate, and the answer is a value like any other, with two exceptions that
are decided here: whether something *equals* a stand-in (only itself does, whatever the response's `__eq__` says), and
what cannot be asked (arithmetic, order, copies), which ends the test as `unsupported`.
"""

import types

# Types of the interpreter that tests ask for with `isinstance`, by their names.
BUILTIN_KINDS = {
    kind.__name__: kind
    for kind in (types.GeneratorType, map, filter, zip, enumerate, reversed, types.FunctionType, types.MethodType)
    + (types.BuiltinFunctionType, types.ModuleType, types.CoroutineType, types.AsyncGeneratorType, type)
}
# How many items the candidate may be asked for in advance.
MOST_ITEMS = 1024


class Unserved(BaseException):
    """The tests do something with an object of the response that cannot be asked of its process."""


class Misplaced(Exception):
    """A stand-in inside of a value whose making looks at its parts."""


class Link:
    """The session that stand-ins ask; there is one in a process."""

    session = None
    # Whether a frame is being read: nobody is asked before its end.
    is_reading = False
    # Changed copies of objects of the tests: in one process they would be the objects themselves.
    copies = []


class Remote:
    """An object of the response. What not every object can do is added by `stand_in`."""

    __slots__ = ("_handle", "_name", "_traits")

    def __init__(self, handle, name, traits):
        object.__setattr__(self, "_handle", handle)
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_traits", traits)

    @property
    def __class__(self):
        return BUILTIN_KINDS.get(self._name, type(self)) if BUILTIN in self._traits else type(self)

    def __eq__(self, other):
        if not issubclass(type(other), Remote):
            return False
        if other._handle == self._handle:
            return True
        if OWN_EQUALITY in self._traits + other._traits:
            unserved(self, "equality of two objects that compare themselves")
        return False

    def __hash__(self):
        return hash(self._handle)

    def __getattr__(self, name):
        if BUILTIN in self._traits and self._name == "coroutine":
            unserved(self, name)
        return ask(self, "attribute", name)

    def __setattr__(self, name, value):
        ask(self, "set attribute", name, value)

    def __bool__(self):
        return ask(self, "bool", kind=bool)

    def __str__(self):
        return local_text(self) or ask(self, "str", kind=str)

    def __repr__(self):
        return local_text(self) or ask(self, "repr", kind=str)


def call(self, *arguments, **named):
    return Link.session.invoke(self._handle, self._name, arguments, named)


def get_item(self, key):
    return ask(self, "item", key)


def set_item(self, key, value):
    ask(self, "set item", key, value)


def contains(self, item):
    return ask(self, "contains", item, kind=bool)


def length(self):
    return ask(self, "len", kind=int)


def iterator(self):
    return ask(self, "iter", kind=RemoteIterator)


def is_instance(self, value):
    return ask(self, "isinstance", value, kind=bool)


def is_subclass(self, value):
    return ask(self, "issubclass", value, kind=bool)


# What an object can do, by the letters that the candidate sends (`encoding.TRAITS`): a test that wants to know whether
# something can be called, or has a length, is told what it would see in one process. Who lies here says no more of an
# object than its class could.
METHODS = {
    "c": {"__call__": call},
    "g": {"__getitem__": get_item},
    "s": {"__setitem__": set_item},
    "i": {"__iter__": iterator},
    "n": {"__contains__": contains},
    "l": {"__len__": length},
    # A class of the response's own.
    "t": {"__instancecheck__": is_instance, "__subclasscheck__": is_subclass},
}
# A type of the interpreter's own; a class with an equality of its own.
BUILTIN, OWN_EQUALITY = "b", "e"
# Classes of stand-ins by the name and traits of what they stand for. Where there are more names than that, the others go
# by one.
CLASSES, MOST_CLASSES = {}, 1000


def stand_in(handle, name, traits):
    """A stand-in for the object that the candidate knows by this handle."""
    if type(handle) is not int or type(name) is not str or type(traits) is not str or len(traits) > 20:
        raise ValueError("no handle")
    known = "".join(sorted({*METHODS, BUILTIN, OWN_EQUALITY}.intersection(traits)))
    key = (name[:100] if len(CLASSES) < MOST_CLASSES else "object", known)
    if key not in CLASSES:
        methods = {"__slots__": ()}
        for letter in known:
            methods.update(METHODS.get(letter, ()))
        CLASSES[key] = type(key[0], (Remote,), methods)
    return CLASSES[key](handle, name[:100], known)


class RemoteIterator(Remote):
    """An iterator of the response, such as a generator. Its items are fetched when they are wanted: one, then two, then
    four at a time, so that whoever takes a few of an endless one gets them, and whoever takes all does not wait long."""

    __slots__ = ("_items", "_wanted", "_end")

    def __init__(self, handle, name, traits):
        if type(handle) is not int or type(name) is not str or type(traits) is not str:
            raise ValueError("no handle")
        super().__init__(handle, name[:100], traits[:20])
        object.__setattr__(self, "_items", [])
        object.__setattr__(self, "_wanted", 1)
        # How it ends once `_items` is empty: an exception of the response, or `StopIteration`.
        object.__setattr__(self, "_end", None)

    def __iter__(self):
        return self

    def __next__(self):
        if not self._items:
            if self._end is not None:
                end = self._end
                object.__setattr__(self, "_end", StopIteration())
                raise end
            items, end = Link.session.fetch(self._handle, self._name, self._wanted)
            object.__setattr__(self, "_items", items[::-1])
            object.__setattr__(self, "_wanted", min(self._wanted * 2, MOST_ITEMS))
            object.__setattr__(self, "_end", end)
            return next(self)
        return self._items.pop()

    def __getattr__(self, name):
        if self._items:
            unserved(self, name)
        return ask(self, "attribute", name)

    def __bool__(self):
        return True


def handle_of(remote):
    """What the candidate's process calls it."""
    if type(remote) is RemoteIterator and (remote._items or remote._end is not None):
        unserved(remote, "being passed on after a part of it was read")
    return remote._handle


def ask(remote, operation, *arguments, kind=None):
    """The candidate's answer; one of another type than `kind` is a broken protocol."""
    return Link.session.ask_remote(remote._handle, remote._name, operation, arguments, kind)


def local_text(remote):
    """Words for a report, which nobody has to be asked for."""
    session = Link.session
    is_local = session is None or session.describing or Link.is_reading
    return "<%s of the response>" % remote._name if is_local else ""


def unserved(remote, what):
    if Link.is_reading:
        raise Misplaced(what)
    Link.session.unserved = "%s of a value of type %s" % (what, remote._name)
    raise Unserved(Link.session.unserved)


# Values that cross as copies.
COPIED = (int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice)


def identical(left, right):
    """`left is right`, as it would be in one process. Which of two equal values is which got lost on the way."""
    if left is right:
        return True
    if issubclass(type(left), Remote) and issubclass(type(right), Remote):
        return left._handle == right._handle
    is_lost = type(left) in COPIED and type(left) is type(right) and left == right
    if is_lost or any(left is copy or right is copy for copy in Link.copies):
        Link.session.unserved = "the identity of a value of type " + type(left).__name__
        raise Unserved(Link.session.unserved)
    return False


def refuse(name):
    def method(self, *_):
        unserved(self, name)

    return method


for name in (
    "lt le gt ge add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow and rand or ror xor rxor "
    "lshift rlshift rshift rrshift matmul rmatmul divmod rdivmod neg pos abs invert int float index complex round trunc "
    "floor ceil enter exit delitem delattr reversed format reduce reduce_ex copy deepcopy bytes dir await aiter"
).split():
    setattr(Remote, "__%s__" % name, refuse("__%s__" % name))
