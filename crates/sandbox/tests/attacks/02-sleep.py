# Sleeps for ever, which costs no processor time.
# wall_ms: 400
# a: wall_limit
# b: wall_limit
import time


def solve(n):
    while True:
        time.sleep(1000)
