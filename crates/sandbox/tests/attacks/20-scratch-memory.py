# Memory in the scratch file system, through a mapping of a file.
# a: file_limit memory_limit runtime_error
# b: runtime_error
import mmap


def solve(n):
    held = []
    for index in range(100):
        file = open("/dev/shm/%d" % index, "w+b")
        file.truncate(3 << 20)
        block = mmap.mmap(file.fileno(), 3 << 20)
        for at in range(0, len(block), 4096):
            block[at] = 1
        held.append(block)
        file.write(b"x" * (3 << 20))
        file.flush()
    return n + 1
