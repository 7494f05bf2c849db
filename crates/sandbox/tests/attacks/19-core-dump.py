# Dies with a signal that dumps core.
# a: runtime_error
# b: runtime_error
import os
import signal


def solve(n):
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.abort()
