# The same by `clone`.
# a: dangerous_syscall
# b: runtime_error
import ctypes


def solve(n):
    child = ctypes.CDLL(None).syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
    if child < 0:
        raise OSError("refused")
    return n + 1
