# A program may signal itself.
# a: accepted
# b: accepted
import os
import signal

seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))


def solve(n):
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    return n + len(seen) // 2 - (len(seen) // 2 - 1)
