# Uses names of builtins for its own.
list = [1]
len = 1
max = 2


def solve(int):
    return int + len
