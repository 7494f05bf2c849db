# Output that a careless reader or a terminal would choke on, then a closed stdout. The program is right.
# a: accepted
# b: accepted
import os
import sys


def solve(n):
    if not hasattr(sys, "done"):
        os.write(1, b"\xff\xfe\x00\x1b[2J\x1b]0;owned\x07\xe2\x82")
        os.write(2, b"\x1b[31m\xc3\x28 half a character \xf0\x9f")
        print("\ud800", file=sys.stderr)
        os.close(1)
        sys.done = True
    return n + 1
