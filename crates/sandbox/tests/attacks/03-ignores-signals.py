# Ignores every signal that can be ignored, then loops.
# a: time_limit
# b: time_limit
import signal


def solve(n):
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass
