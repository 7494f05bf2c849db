# Returns an object that says of everything that it holds it, and is an instance of it.
# problem: contained
# a: wrong_answer runtime_error
# b: wrong_answer runtime_error
class Kind(type):
    def __instancecheck__(cls, value):
        return True

    __subclasscheck__ = __contains__ = __instancecheck__


class Everything(metaclass=Kind):
    def __contains__(self, item):
        return True

    def __getitem__(self, key):
        return self if key < 3 else [][0]


def solve(n):
    return Everything() if n % 2 else Everything
