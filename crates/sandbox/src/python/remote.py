"""Stand-ins for what stays in the candidate's process: iterators, and objects of the response's own types.

What the tests do with one is asked of the candidate, and the answer is a value like any other. What would hand it a value
of the tests to compute or compare with is decided here instead: nothing equals a stand-in but what the response has
made too, and operators are those of an object that has none, a `TypeError` that judges. So no object of its own takes
a response out of judgement. Objects that the tests make themselves of a class of the response (`Vector(1, 2) * 3`) are
what is tested, and are asked with every operand.
"""

import builtins
import types

# Types of the interpreter that tests ask for with `isinstance`, by their names.
BUILTIN_KINDS = {
    kind.__name__: kind
    for kind in (types.GeneratorType, map, filter, zip, enumerate, reversed, types.FunctionType, types.MethodType)
    + (types.BuiltinFunctionType, types.ModuleType, types.CoroutineType, types.AsyncGeneratorType, type)
}
# These end loops and programs silently; a candidate must not be able to raise them inside a test.
WITHHELD = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration)
ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, WITHHELD)
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
    # How many items of an iterator may be asked for in advance.
    most_items = MOST_ITEMS
    # Whether a frame is being read: nobody is asked before its end.
    is_reading = False
    # Changed copies of objects of the tests: in one process they would be the objects themselves.
    copies = []


class Remote:
    """An object of the response. What not every object can do is added by `stand_in`."""

    __slots__ = ("_handle", "_name", "_traits", "_is_made")

    def __init__(self, handle, name, traits):
        # Whether the tests have made it themselves, of a class of the response that they name.
        object.__setattr__(self, "_is_made", False)
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
        return OWN_EQUALITY in self._traits + other._traits and ask(self, "equal", other, kind=bool)

    def __hash__(self):
        return hash(self._handle)

    def __getattr__(self, name):
        if BUILTIN in self._traits and self._name == "coroutine" and name in COROUTINE:
            return types.MethodType(COROUTINE[name], self)
        return ask(self, "attribute", name)

    def __setattr__(self, name, value):
        ask(self, "set attribute", name, value)

    def __await__(self):
        return ask(self, "await")
        yield

    def __enter__(self):
        return ask(self, "enter")

    def __exit__(self, kind, error, _):
        return leave(self, error)

    def __round__(self, *digits):
        return ask(self, "operate", "round", *digits)

    def __format__(self, form):
        return ask(self, "operate", "format", form, kind=str)

    def __copy__(self):
        return ask(self, "operate", "copy")

    def __deepcopy__(self, _):
        return ask(self, "operate", "deepcopy")

    def __delitem__(self, key):
        ask(self, "operate", "delitem", key)

    def __delattr__(self, name):
        ask(self, "operate", "delattr", name)

    def __reduce_ex__(self, _):
        raise TypeError("cannot pickle %r object" % self._name)

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
    if is_asked(self, item):
        return ask(self, "contains", item, kind=bool)
    # What it says of a value of the tests is nothing to go by; what it holds is.
    return ("i" in self._traits or "g" in self._traits) and any(known is item or known == item for known in iter(self))


def length(self):
    return ask(self, "len", kind=int)


def iterator(self):
    return ask(self, "iter", kind=RemoteIterator)


def is_instance(self, value):
    # What has crossed as a value is of no class of the response's.
    return issubclass(type(value), Remote) and ask(self, "isinstance", value, kind=bool)


def is_subclass(self, value):
    return issubclass(type(value), Remote) and ask(self, "issubclass", value, kind=bool)


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


class ExceptionKind(type):
    """Makes the classes that stand for exceptions of the response: real ones, because `except` takes no others."""

    def __call__(cls, *arguments, **named):
        return Link.session.invoke(cls._kind, cls.__name__, arguments, named)

    def __getattr__(cls, name):
        return Link.session.ask_remote(cls._kind, cls.__name__, "attribute", (name,), None)

    def __instancecheck__(cls, value):
        if issubclass(type(value), Remote):
            return Link.session.ask_remote(cls._kind, cls.__name__, "isinstance", (value,), bool)
        return type.__instancecheck__(cls, value)


def exception_text(error):
    return local_text(error) or ask(error, "str", kind=str)


# The classes of exceptions by their handles.
EXCEPTIONS = {}


def exception_class(handle, name, base):
    """The class that stands for an exception class of the response, by its builtin base."""
    if type(handle) is not int or type(name) is not str or type(base) is not str or len(EXCEPTIONS) > MOST_CLASSES:
        raise ValueError("no class of exceptions")
    if handle not in EXCEPTIONS:
        members = {
            "_kind": handle,
            "__module__": "solution",
            # What it carries beside its arguments is asked for.
            "__getattr__": lambda self, name: ask(self, "attribute", name),
            "__str__": exception_text,
        }
        EXCEPTIONS[handle] = ExceptionKind(name[:100], (ERRORS.get(base, Exception),), members)
    return EXCEPTIONS[handle]


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
            object.__setattr__(self, "_wanted", min(self._wanted * 2, Link.most_items))
            object.__setattr__(self, "_end", end)
            return next(self)
        return self._items.pop()

    def __bool__(self):
        return True

    def unread(self):
        """The items that were fetched in advance, in their order; whoever takes them passes the iterator on."""
        items = self._items[::-1]
        object.__setattr__(self, "_items", [])
        return items


def ask(remote, operation, *arguments, kind=None):
    """The candidate's answer; one of another type than `kind` is a broken protocol."""
    return Link.session.ask_remote(remote._handle, remote._name, operation, arguments, kind)


def local_text(remote):
    """Words for a report, which nobody has to be asked for."""
    session = Link.session
    is_local = session is None or session.describing or Link.is_reading
    return "<%s of the response>" % remote._name if is_local else ""


def is_asked(remote, operand):
    """Whether an operation may hand `operand` over: one that the response has made too, or the object is what is tested."""
    return remote._is_made or issubclass(type(operand), Remote)


def operator(name, operation="operate"):
    """An operator with an operand."""

    def method(self, operand, *more):
        if not is_asked(self, operand):
            return NotImplemented
        return made(self, ask(self, operation, name, operand, *more))

    return method


def conversion(name, kind=None):
    """An operator without one, which tells the response nothing."""

    def method(self):
        return made(self, ask(self, "operate", name, kind=kind))

    return method


def made(origin, value):
    """`value`, which an operator has made of `origin`."""
    if issubclass(type(value), Remote) and origin._is_made:
        object.__setattr__(value, "_is_made", True)
    return value


def leave(remote, error):
    """The end of a `with`. The response's object may swallow what the tests raise on purpose, but no failure of theirs."""
    if error is None:
        return ask(remote, "exit", None, ())
    if not isinstance(error, Exception):
        return False
    is_expected = is_raised_by_tests(error)
    name, arguments = "Exception", ()
    if is_expected:
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
        arguments = tuple(part for part in error.args if type(part) in (int, float, str))
    return ask(remote, "exit", name, arguments) is True and is_expected


def is_raised_by_tests(error):
    """Whether a `raise` of the tests is where it comes from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error, AssertionError):
        return False
    from opcode import opmap

    code = trace.tb_frame.f_code
    return code.co_filename == "<tests>" and code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]


def finish(coroutine, _):
    """Runs it to its end in the candidate's process, because the tests' own loop cannot drive it from here."""
    raise StopIteration(ask(coroutine, "await"))


def throw(coroutine, kind, error=None, trace=None):
    raise kind if error is None else error


# What an event loop does with a coroutine.
COROUTINE = {"send": finish, "throw": throw, "close": lambda coroutine: None}


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


for name in "abs neg pos invert trunc floor ceil reversed".split():
    setattr(Remote, "__%s__" % name, conversion(name))
for name, kind in (("int", int), ("float", float), ("index", int), ("complex", complex), ("bytes", bytes), ("dir", list)):
    setattr(Remote, "__%s__" % name, conversion(name, kind))
for name in "lt le gt ge".split():
    setattr(Remote, "__%s__" % name, operator(name))
for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul divmod".split():
    known = name + "_" if name in ("and", "or") else name
    setattr(Remote, "__%s__" % name, operator(known))
    setattr(Remote, "__r%s__" % name, operator(known, "operate reflected"))
    if name != "divmod":
        setattr(Remote, "__i%s__" % name, operator("i" + name))
