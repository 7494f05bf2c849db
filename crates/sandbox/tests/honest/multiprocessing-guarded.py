# Falls back where processes are not to be had.
import os


def solve(n):
    try:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, b"1")
            os._exit(0)
        os.waitpid(pid, 0)
        return n + int(os.read(read, 1))
    except OSError:
        return n + 1
