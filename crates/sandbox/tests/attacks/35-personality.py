# Turns address-space randomisation off.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).personality(0x0040000)
    return n + 1
