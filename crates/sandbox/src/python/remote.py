"""Stand-ins for what stays in the candidate's process: iterators, and objects of the response's own types.

What the tests do with one is asked of the candidate, and the answer is a value like any other, with two exceptions that
are decided here: whether something *equals* a stand-in (only itself does, whatever the response's `__eq__` says), and
what cannot be asked (arithmetic, order, copies), which ends the test as `unsupported`.
"""

import types

GENERATOR_KINDS = {
    kind.__name__: kind for kind in (types.GeneratorType, map, filter, zip, enumerate, reversed)
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


class Remote:
    """An object of the response."""

    __slots__ = ("_handle", "_name")

    def __init__(self, handle, name):
        if type(handle) is not int or type(name) is not str:
            raise ValueError("no handle")
        object.__setattr__(self, "_handle", handle)
        object.__setattr__(self, "_name", name[:100])

    def __eq__(self, other):
        return type(other) is type(self) and object.__getattribute__(other, "_handle") == self._handle

    def __hash__(self):
        return hash(self._handle)

    def __getattr__(self, name):
        return ask(self, "attribute", name)

    def __setattr__(self, name, value):
        ask(self, "set attribute", name, value)

    def __call__(self, *arguments, **named):
        return Link.session.invoke(self._handle, self._name, arguments, named)

    def __getitem__(self, key):
        return ask(self, "item", key)

    def __setitem__(self, key, value):
        ask(self, "set item", key, value)

    def __contains__(self, item):
        return ask(self, "contains", item, kind=bool)

    def __len__(self):
        return ask(self, "len", kind=int)

    def __bool__(self):
        return ask(self, "bool", kind=bool)

    def __iter__(self):
        return ask(self, "iter", kind=RemoteIterator)

    def __str__(self):
        return local_text(self) or ask(self, "str", kind=str)

    def __repr__(self):
        return local_text(self) or ask(self, "repr", kind=str)


class RemoteIterator(Remote):
    """An iterator of the response, such as a generator. Its items are fetched when they are wanted: one, then two, then
    four at a time, so that whoever takes a few of an endless one gets them, and whoever takes all does not wait long."""

    __slots__ = ("_items", "_wanted", "_end")

    def __init__(self, handle, name):
        super().__init__(handle, name)
        object.__setattr__(self, "_items", [])
        object.__setattr__(self, "_wanted", 1)
        # How it ends once `_items` is empty: an exception of the response, or `StopIteration`.
        object.__setattr__(self, "_end", None)

    @property
    def __class__(self):
        return GENERATOR_KINDS.get(self._name, RemoteIterator)

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
