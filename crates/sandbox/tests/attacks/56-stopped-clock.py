# Stops the clocks that a limit could be read from, then loops.
# a: time_limit
# b: time_limit
import resource
import time

time.time = time.monotonic = time.perf_counter = time.process_time = lambda: 0.0
resource.getrusage = lambda *a: None


def solve(n):
    while True:
        pass
