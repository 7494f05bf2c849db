# Starts threads as fast as it can.
# a: time_limit wall_limit runtime_error
# b: time_limit wall_limit runtime_error
import threading
import time

threading.stack_size(32768)


def solve(n):
    while True:
        try:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        except RuntimeError:
            pass
