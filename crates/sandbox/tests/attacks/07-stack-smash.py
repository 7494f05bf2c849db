# Writes over its own stack.
# a: runtime_error
# b: runtime_error
import ctypes


def solve(n):
    ctypes.memset(ctypes.addressof(ctypes.c_int(0)) - (1 << 12), 0xFF, 1 << 30)
