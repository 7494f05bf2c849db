# Leaves a daemon behind: a session of its own, two forks, then success.
# a: runtime_error
# b: runtime_error
import os
import sys
import time


def solve(n):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(1)
        os._exit(0)
    sys.exit(0)
