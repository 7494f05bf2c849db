# Announces a reply of a gigabyte.
# a: output_limit
# b: output_limit
import os


def solve(n):
    os.write(5, (1 << 30).to_bytes(4, "little"))
    while True:
        os.write(5, b"[" * 65536)
