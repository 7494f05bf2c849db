"""The conversation with the candidate: calls out, values and exceptions back, and what makes grading end early.

The candidate's process is not trusted: every rule about a reply is enforced here or in `values`, whatever the other side
does. `docs/sandbox-protocol.md` lists the rules field by field.
"""

from _thread import allocate_lock
from marshal import dumps
from posix import read, write
from random import seed as draw_from
from types import FunctionType

from sluice import graph, remote, values

REPLIES, REQUESTS = 4, 5

# When the candidate is to send back the arguments of a call.
NEVER, IF_NONE, ALWAYS = 0, 1, 2


class GradingEnded(BaseException):
    """The end of grading by something that is not the outcome of a test: verdict and detail."""


class CandidateError(RuntimeError):
    """An exception of the response that has no builtin type the tests could expect."""


class Session:
    """The conversation with the candidate."""

    def __init__(self, job):
        self.limit = job["value_bytes"]
        self.always_mirror = job["mutates_arguments"]
        self.calls = 0
        self.ended = None
        self.raised = None
        # What the tests wanted of the response and could not have.
        self.unserved = None
        # Names of classes of the response, and handles of those that were looked up: what the tests make of them is theirs.
        self.class_names, self.class_handles = (), set()
        # Whether a report is being written, for which nobody is asked.
        self.describing = False
        self.last = ""
        self.lock = allocate_lock()
        remote.Link.session = self
        remote.EXCEPTIONS.clear()

    def fail(self, verdict, detail):
        """The first end decides, even where a test swallows the exception."""
        if self.ended is None:
            self.ended = (verdict, detail)
        raise GradingEnded(*self.ended)

    def broken(self, detail):
        """A reply that no honest candidate sends."""
        self.fail("runtime_error", "malformed reply: " + detail)

    def read(self, count):
        chunks = []
        while count:
            chunk = read(REPLIES, min(count, 1 << 20))
            if not chunk:
                self.fail("gone", "the response's process ended before it answered")
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)

    def receive(self):
        length = int.from_bytes(self.read(4), "little")
        if length > self.limit:
            self.fail("output_limit", "a reply of %d bytes, the limit is %d" % (length, self.limit))
        try:
            return values.decode(self.read(length))
        except values.Malformed as error:
            self.broken(str(error))
        except MemoryError:
            self.fail("output_limit", "a reply that does not fit into the tester's memory")

    def greet(self):
        """Waits until the response has been executed."""
        message = self.receive()
        if message.keys() == {"error"}:
            error = self.error(message)
            self.fail(self.verdict_of(message), "while loading: %s" % describe(error, message))
        if message.keys() != {"loaded"}:
            self.broken("an answer before the first call")

    def error(self, message):
        """The exception that a message describes, of the nearest builtin type."""
        parts = message["error"]
        if type(parts) is not list or list(map(type, parts)) not in ERROR_PARTS:
            self.broken("an exception that is none")
        ancestors, arguments, text, _, *handle = parts
        if "Exception" not in ancestors:
            # `sys.exit` and its like end a program; no test may take them for an answer.
            self.fail("runtime_error", describe(None, message))
        tables = {str: remote.ERRORS, int: remote.EXCEPTIONS}
        kinds = [tables.get(type(name), {}).get(name) for name in ancestors if type(name) in tables]
        for kind in filter(None, kinds):
            try:
                error = make_error(kind, (text,) if arguments is None else arguments)
                if handle and type(kind) is remote.ExceptionKind:
                    error.__dict__.update(_handle=handle[0], _name=kind.__name__)
                return error
            except Exception:
                # Arguments that this type does not take; the next ancestor may.
                continue
        return CandidateError(text)

    def verdict_of(self, message):
        ancestors, _, _, number = message["error"][:4]
        if "MemoryError" in ancestors:
            return "memory_limit"
        return "file_limit" if number != 0 else "runtime_error"

    def ask(self, *request):
        """Sends a request; returns the reply to it."""
        if remote.Link.is_reading:
            raise remote.Misplaced("a stand-in inside of a value")
        if self.ended is not None:
            raise GradingEnded(*self.ended)
        with self.lock:
            self.calls += 1
            self.write(dumps((self.calls, *request)))
            message = self.receive()
        if type(message.get("call")) is not int or message["call"] != self.calls:
            self.broken("an answer to another call")
        if "large" in message:
            self.fail("output_limit", "a value of more than %d bytes" % self.limit)
        return message

    def throw(self, message):
        """Raises what the response has raised."""
        self.raised = (self.error(message), self.verdict_of(message), message)
        raise self.raised[0]

    def packed(self, name, content):
        """Arguments in the form in which they travel: whether packed, and the data."""
        try:
            if values.is_plain(content):
                values.Current.sent = values.NONE_SENT
                return False, content
            return True, values.pack_all(content)
        except values.Uncrossable as error:
            self.fail("unsupported", "the tests call %s with %s" % (name, error))

    def call(self, name, arguments, named, operation="call", target=None):
        """Calls a function of the response: by its name, or by the handle `target`."""
        if not named and values.SCALARS.issuperset(map(type, arguments)):
            # Most calls there are: nothing in them can change, and `marshal` carries them as they are.
            mirrored, is_packed, content = NEVER, False, (arguments, named)
            values.Current.sent = values.NONE_SENT
        else:
            can_change = any(map(values.is_mutable, (*arguments, *named.values())))
            mirrored = NEVER if not can_change else ALWAYS if self.always_mirror else IF_NONE
            is_packed, content = self.packed(name, (arguments, named))
        target = name if target is None else target
        message = self.ask(operation, target, is_packed, content, mirrored)
        if "error" in message:
            self.throw(message)
        if "value" not in message:
            self.broken("no answer to a call")
        value, objects = message["value"], message.objects
        # Whether arguments may have changed is for this side to say, and not for the reply.
        if mirrored == ALWAYS or mirrored == IF_NONE and value is None:
            changed = message.get("arguments")
            if objects is not None:
                objects.apply()
                changed, value = objects.adopt(changed), objects.adopt(value)
            self.mirror(arguments, named, changed)
        elif "arguments" in message:
            self.broken("changed arguments beside a value")
        elif objects is not None and objects.is_unchanged():
            # The same object comes back as itself, unless something was done to it, which stays hidden.
            value = objects.adopt(value)
        elif objects is not None:
            remote.Link.copies.extend(objects.copies())
        classes = self.class_names if operation == "call" else self.class_handles
        if classes and target in classes and issubclass(type(value), remote.Remote):
            object.__setattr__(value, "_is_made", True)
        self.last = (name, arguments, value)
        return value

    def expect(self, classes, is_driven):
        """What the tests' own text says: names of the response's classes, and whether they drive its iterators."""
        self.class_names = frozenset(classes)
        remote.Link.most_items = 1 if is_driven else remote.MOST_ITEMS

    def know_classes(self, names, module):
        """Lets objects of the problem's own classes cross."""
        crossing = graph.set_classes(names, module)
        if crossing:
            self.write(dumps((0, "classes", crossing, False, (), NEVER)))

    def look_up(self, names, name):
        """Binds what the response has under a name, in `names`; where it has nothing the name stays unknown."""
        values.Current.sent = values.NONE_SENT
        message = self.ask("name", name, False, (), NEVER)
        if "value" in message:
            names[name] = message["value"]
            if name in self.class_names and issubclass(type(names[name]), remote.Remote):
                self.class_handles.add(names[name]._handle)
        elif "error" not in message:
            self.broken("no answer about a name")

    def itself(self, name, otherwise):
        """What the response has under a name. Where that is an expression, or nothing, raises `otherwise`."""
        names = {}
        self.look_up(names, name)
        if name not in names:
            raise otherwise("%s of the response is nothing but a function" % name)
        return names[name]

    def seed(self, *arguments, **named):
        """Seeds the generator of `random` here, for what the tests draw, and over there, for what the response does."""
        draw_from(*arguments, **named)
        is_packed, content = self.packed("random.seed", (arguments, named))
        self.write(dumps((0, "seed", None, is_packed, content, NEVER)))

    def invoke(self, handle, name, arguments, named):
        """Calls an object of the response."""
        return self.call(name, arguments, named, "invoke", handle)

    def mirror(self, arguments, named, changed):
        """Takes over what the function did to its arguments."""
        if type(changed) is not list or list(map(type, changed)) != [tuple, dict]:
            self.broken("no arguments where they were asked for")
        if len(changed[0]) != len(arguments) or changed[1].keys() != named.keys():
            self.broken("other arguments than those of the call")
        for old, new in zip(arguments, changed[0]):
            values.mirror(old, new)
        for key, old in named.items():
            values.mirror(old, changed[1][key])

    def ask_remote(self, handle, name, operation, arguments, kind):
        """An operation on an object of the response."""
        is_packed, content = self.packed("an object of the response", arguments)
        message = self.ask(operation, handle, is_packed, content, NEVER)
        if "error" in message:
            self.throw(message)
        if message.keys() != {"call", "value"}:
            self.broken("no answer about an object")
        value = message["value"]
        if kind is not None and type(value) is not kind:
            self.broken("%s of an object is no %s" % (operation, kind.__name__))
        return value

    def fetch(self, handle, name, count):
        """The next items of an iterator, at most `count`, and how it ends after them (`None`: it goes on)."""
        values.Current.sent = values.NONE_SENT
        message = self.ask("next", handle, False, count, NEVER)
        if message.keys() == {"call", "error"}:
            self.throw(message)
        items = message.get("items")
        if type(items) is not list or len(items) > count:
            self.broken("no items, or more than were asked for")
        if "error" in message:
            self.raised = (self.error(message), self.verdict_of(message), message)
            return items, self.raised[0]
        end = message["end"]
        # What a generator returns comes in a tuple of one.
        if type(end) is not bool and (type(end) is not tuple or len(end) != 1) or not items and not end:
            self.broken("an iterator that neither goes on nor ends")
        if type(end) is tuple:
            return items, StopIteration(*end)
        return items, StopIteration() if end else None

    def write(self, data):
        view = memoryview(len(data).to_bytes(4, "little") + data)
        try:
            while view:
                view = view[write(REQUESTS, view) :]
        except BrokenPipeError:
            self.fail("gone", "the response's process ended before it was asked")

    def proxy(self, name):
        return EntryPoint(self, name)


class EntryPoint:
    """What the tests call by name. It may be a class, so whatever else they do with it is asked of the response."""

    # To who asks it is a function, as most of them are.
    __class__ = property(lambda _: FunctionType)

    def __init__(self, session, name):
        self.__dict__.update(_session=session, __name__=name, __qualname__=name)

    def __call__(self, *arguments, **named):
        return self._session.call(self.__name__, arguments, named)

    def __getattr__(self, name):
        return getattr(self._session.itself(self.__name__, AttributeError), name)

    def __instancecheck__(self, value):
        return isinstance(value, self._session.itself(self.__name__, TypeError))

    def __subclasscheck__(self, value):
        return issubclass(value, self._session.itself(self.__name__, TypeError))


# An exception's ancestors (builtin ones by name, those that the tests know by handle), its arguments where they can
# cross, its text, the `errno` of a resource that ran out, and its own handle where the tests know its class.
ERROR_PARTS = [[list, kind, str, int, *handle] for kind in (tuple, type(None)) for handle in ([], [int])]


def make_error(kind, arguments):
    """An exception of a builtin type. Those about text keep offsets that their `str` trusts blindly."""
    if issubclass(kind, (UnicodeEncodeError, UnicodeDecodeError, UnicodeTranslateError)):
        *_, content, start, end, _ = arguments
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(content):
            raise ValueError("offsets outside of the text")
    return type.__call__(kind, *arguments)


def describe(error, message=None):
    """An exception in one line; the candidate's own words where it has any."""
    if message is not None:
        return message["error"][2]
    try:
        return "%s: %s" % (type(error).__name__, str(error)[:300])
    except Exception:
        return type(error).__name__


def short(value):
    """A value in a few words; most of a large one is not even looked at."""
    if type(value) in (list, tuple, set, frozenset, dict, str, bytes, bytearray) and len(value) > 100:
        return "a %s of length %d" % (type(value).__name__, len(value))
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = "a huge %s" % type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."
