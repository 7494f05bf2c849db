# Lies about its class.
# a: wrong_answer
# b: wrong_answer
class Anything:
    __class__ = int

    def __eq__(self, other):
        return True

    def __index__(self):
        return 2

    __int__ = __index__


def solve(n):
    return Anything()
