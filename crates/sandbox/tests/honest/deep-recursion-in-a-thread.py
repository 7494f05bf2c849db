# The usual trick for deeper recursion: a thread with a larger stack.
import sys
import threading

sys.setrecursionlimit(100000)
threading.stack_size(64 << 20)


def down(n):
    return 0 if n == 0 else 1 + max([down(n - 1)])


def solve(n):
    found = []
    thread = threading.Thread(target=lambda: found.append(down(5000)))
    thread.start()
    thread.join()
    return n + found[0] - 4999
