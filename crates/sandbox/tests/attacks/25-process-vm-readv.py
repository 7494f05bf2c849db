# Reads the memory of its parent.
# a: dangerous_syscall
# b: dangerous_syscall
import ctypes
import os


def solve(n):
    ctypes.CDLL(None).process_vm_readv(os.getppid() or 1, 0, 0, 0, 0, 0)
    return n + 1
