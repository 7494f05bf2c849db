# Enters a namespace.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).setns(0, 0)
    return n + 1
