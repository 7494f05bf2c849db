# Prints an integer of millions of digits.
# a: time_limit memory_limit runtime_error
# b: time_limit memory_limit runtime_error
import sys


def solve(n):
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    return len(str(7 ** (1 << 24)))
