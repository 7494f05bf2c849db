# Writes without a newline, straight to the descriptor.
# a: output_limit
# b: output_limit
import os


def solve(n):
    while True:
        os.write(1, b"y" * 65536)
