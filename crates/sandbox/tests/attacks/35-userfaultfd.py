# Handles page faults by itself, which widens races in the kernel.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).syscall(323, 0)
    return n + 1
