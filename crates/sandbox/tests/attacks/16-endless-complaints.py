# The same on stderr.
# a: output_limit
# b: output_limit
import sys


def solve(n):
    while True:
        sys.stderr.write("y" * 65536)
