# Loads a program into the kernel.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).syscall(321, 5, 0, 0)
    return n + 1
