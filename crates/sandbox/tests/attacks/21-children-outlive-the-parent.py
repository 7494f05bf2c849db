# Leaves spinning children behind and ends.
# a: runtime_error
# b: runtime_error runtime_error
import os


def solve(n):
    for _ in range(8):
        try:
            if os.fork() == 0:
                while True:
                    pass
        except PermissionError:
            break
    os._exit(0)
