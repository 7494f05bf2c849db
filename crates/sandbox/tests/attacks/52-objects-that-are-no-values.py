# Sends messages inside of values.
# a: runtime_error
# b: runtime_error
import os


def solve(n):
    text = b'{"call":1,"value":[{"call":1},{"loaded":true},{"d":[[{"error":[]},1]]}]}'
    os.write(5, len(text).to_bytes(4, "little") + text)
    while True:
        os.read(4, 1)
