# Folders in folders, until a clean-up by path would fail.
# a: file_limit
# b: runtime_error
import os


def solve(n):
    os.chdir("/tmp")
    for _ in range(10000):
        os.mkdir("d")
        os.chdir("d")
    return n + 1
