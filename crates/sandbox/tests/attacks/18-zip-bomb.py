# Decompresses a kilobyte to a gigabyte.
# a: memory_limit time_limit
# b: memory_limit time_limit
import zlib


def solve(n):
    bomb = zlib.compress(zlib.compress(b"\0" * (1 << 25), 9) * 64, 9)
    data = zlib.decompress(bomb)
    held = []
    while True:
        held.append(zlib.decompress(data[: len(data) // 64]))
