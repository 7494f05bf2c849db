# Reserves address space and touches it page by page.
# a: memory_limit
# b: memory_limit
import mmap


def solve(n):
    try:
        mmap.mmap(-1, 1 << 38)
    except OSError:
        pass
    held = []
    while True:
        block = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
        for at in range(0, len(block), 4096):
            block[at] = 1
        held.append(block)
