# Threads that wake together and do next to nothing: each waits for the others, all that together is long, and none of
# it is the machine's fault.
# wall_ms: 1000
# a: wall_limit
# b: wall_limit
import threading
import time


def step():
    while True:
        time.sleep(0.05 - time.monotonic() % 0.05)
        sum(range(2000))


def solve(n):
    threading.stack_size(1 << 20)
    for _ in range(40):
        threading.Thread(target=step, daemon=True).start()
    threading.Event().wait()
