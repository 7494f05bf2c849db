# Leaves its root.
# a: dangerous_syscall
# b: dangerous_syscall
import os


def solve(n):
    os.chroot("/")
    return n + 1
