# A regular expression with exponential backtracking.
# a: time_limit
# b: time_limit
import re


def solve(n):
    return bool(re.match(r"(a+)+$", "a" * 64 + "b"))
