# Changes its root.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).syscall(155, b"/", b"/")
    return n + 1
