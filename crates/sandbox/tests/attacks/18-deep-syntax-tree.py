# Source whose syntax tree is too deep to compile.
# a: runtime_error memory_limit
# b: runtime_error memory_limit
import sys

sys.setrecursionlimit(10**6)


def solve(n):
    return eval("-" * 1000000 + "1")
