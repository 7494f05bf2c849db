# Leaves a key in a keyring for the next run.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).syscall(248, b"user", b"marker", b"x", 1, -4)
    return n + 1
