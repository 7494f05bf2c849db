# Mounts over the interpreter.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes


def solve(n):
    ctypes.CDLL(None).mount(b"none", b"/usr", b"tmpfs", 0, 0)
    return n + 1
