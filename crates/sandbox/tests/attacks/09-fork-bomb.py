# Forks as fast as it can, from every child.
# a: time_limit wall_limit runtime_error
# b: time_limit runtime_error
import os


def solve(n):
    while True:
        try:
            os.fork()
        except OSError:
            pass
