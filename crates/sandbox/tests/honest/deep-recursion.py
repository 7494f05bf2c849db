# Raises the recursion limit, as solutions in contests do.
import sys

sys.setrecursionlimit(100000)


def down(n):
    return 0 if n == 0 else 1 + down(n - 1)


def solve(n):
    return n + down(20000) - 19999
