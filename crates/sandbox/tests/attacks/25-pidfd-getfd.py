# Takes a descriptor of its parent.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).syscall(438, 0, 0, 0)
    return n + 1
