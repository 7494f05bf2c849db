# Attaches to its parent.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes
import os


def solve(n):
    ctypes.CDLL(None).ptrace(16, os.getppid() or 1, 0, 0)
    return n + 1
