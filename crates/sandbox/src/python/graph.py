"""Objects of the problem's own classes, such as `ListNode`: they cross by the name of their class and their fields,
cycles included.

The class is the one that the tests have, made by code of the problem; of the response come names and values of fields
alone. What a name leads to is decided by the class, so fields can only hide plain attributes.
"""

# Of one frame. More would not fit into it.
MOST_OBJECTS = 1_000_000


class Bad(Exception):
    """Objects that no honest candidate sends."""


class Shell:
    """An object whose class is not read yet; becomes one of it."""

    def __hash__(self):
        # Its place in a set or dictionary is that of its identity, which a class may not go by.
        Shell.hashed.append(self)
        return object.__hash__(self)

    hashed = []


# The tests' classes whose objects cross, by their names.
classes = {}


def set_classes(names, module):
    """Takes the classes that code of the problem has defined in `module`; returns their names."""
    classes.clear()
    for name, kind in names.items():
        if type(kind) is type and kind.__module__ == module and kind.__name__ == name and can_cross(kind):
            classes[name] = kind
    return list(classes)


def can_cross(kind):
    """Whether a plain object can become one of this class: no slots, and no builtin type beneath."""
    try:
        Shell().__class__ = kind
    except TypeError:
        return False
    return True


class Received:
    """The objects of one frame from the candidate."""

    def __init__(self):
        self.shells = {}
        Shell.hashed.clear()
        # Those that are objects of the request, by identity.
        self.owners = {}

    def shell(self, number):
        """The object of that number, which others lead to."""
        if not 0 <= number < MOST_OBJECTS:
            raise Bad("an object of number %d" % number)
        if number not in self.shells:
            self.shells[number] = Shell()
        return self.shells[number]

    def fill(self, table, check):
        """Makes objects of the shells; `check` raises on what is no value."""
        if type(table) is not list or any(number >= len(table) for number in self.shells):
            raise Bad("an object without fields")
        for number, entry in enumerate(table):
            if type(entry) is not list or list(map(type, entry)) not in ENTRIES:
                raise Bad("an object that is none")
            name, origin, fields = entry
            kind, shell = classes.get(name), self.shell(number)
            if kind is None:
                raise Bad("an object of the class " + name[:100])
            for field in fields:
                if type(field) is not list or len(field) != 2 or type(field[0]) is not str:
                    raise Bad("a field that is none")
                if not field[0].isidentifier() or field[0].startswith("__"):
                    raise Bad("a field named " + field[0][:100])
                check(field[1])
            shell.__dict__.update(map(tuple, fields))
            self.owners[id(shell)] = origin
        misplaced = [shell for shell in Shell.hashed if type(shell) is Shell]
        # Checks are over: nothing looks for shells any more.
        for number in range(len(table)):
            self.shells[number].__class__ = classes[table[number][0]]
        if any(type(shell).__hash__ is not object.__hash__ for shell in misplaced):
            raise Bad("an object with a hash of its own in a set or as a key")

    def resolve(self, sent):
        """Knows the objects of the request again: of their class, and no number out of it."""
        for number, shell in self.shells.items():
            origin = self.owners.pop(id(shell), None)
            if origin is None:
                continue
            if not 0 <= origin < len(sent) or type(sent[origin]) is not type(shell):
                raise Bad("an object that was not sent")
            self.owners[id(shell)] = sent[origin]

    def is_unchanged(self):
        """Whether all objects are objects of the request, as they were."""
        return all(
            id(shell) in self.owners and self.same_fields(self.owners[id(shell)].__dict__, shell.__dict__)
            for shell in self.shells.values()
        )

    def copies(self):
        """Objects of the request of which the frame has changed copies."""
        return [shell for shell in self.shells.values() if id(shell) in self.owners]

    def same_fields(self, before, after):
        return before.keys() == after.keys() and all(
            before[name] is self.owners.get(id(field), field)
            or type(field) in SCALARS and type(before[name]) is type(field) and before[name] == field
            for name, field in after.items()
        )

    def adopt(self, value):
        """`value` with the objects of the request in the place of their copies."""
        kind = type(value)
        if id(value) in self.owners:
            return self.owners[id(value)]
        if kind in (list, tuple, set, frozenset):
            return kind(map(self.adopt, value))
        if kind is dict:
            return {self.adopt(key): self.adopt(item) for key, item in value.items()}
        return value

    def apply(self):
        """Does to the objects of the request what was done to their copies."""
        for shell in list(self.shells.values()):
            target = self.owners.get(id(shell), shell)
            fields = {name: self.adopt(field) for name, field in shell.__dict__.items()}
            target.__dict__.clear()
            target.__dict__.update(fields)


ENTRIES = ([str, type(None), list], [str, int, list])
SCALARS = frozenset([type(None), bool, int, float, str, bytes])


class Sent:
    """The objects of one request to the candidate."""

    def __init__(self):
        self.objects, self.numbers = [], {}

    def number(self, value):
        """The number of an object in the request."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]

    def table(self, pack):
        """The fields of all objects; grows meanwhile, so that a list of any length takes no recursion."""
        return [
            (type(value).__name__, [(name, pack(field)) for name, field in vars(value).items()])
            for value in self.objects
        ]
