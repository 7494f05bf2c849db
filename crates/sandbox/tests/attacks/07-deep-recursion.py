# Recurses until the stack or the memory is used up.
# a: runtime_error memory_limit time_limit
# b: runtime_error memory_limit time_limit
import sys

sys.setrecursionlimit(10**9)


def solve(n):
    return 1 + max([solve(n + 1)], key=lambda value: value)
