# Objects of thousands of classes, so that whoever makes a class for each has no memory left.
# problem: listed
# a: wrong_answer
# b: wrong_answer


def solve(n):
    return [type("C%d" % i, (), {"__call__": None, "__len__": lambda self: 0})() for i in range(5000)]
