# The same in shared anonymous memory, which other counters miss.
# a: memory_limit
# b: memory_limit
import mmap


def solve(n):
    held = []
    while True:
        block = mmap.mmap(-1, 16 << 20)
        for at in range(0, len(block), 4096):
            block[at] = 1
        held.append(block)
