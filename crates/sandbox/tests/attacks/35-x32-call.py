# The same by the x32 table.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).syscall(0x40000000 + 39)
    return n + 1
