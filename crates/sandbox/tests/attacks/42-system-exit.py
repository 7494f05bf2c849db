# Ends the program with success in the function.
# a: runtime_error
# b: runtime_error
import sys


def solve(n):
    sys.exit(0)
