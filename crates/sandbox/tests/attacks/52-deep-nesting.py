# Answers with lists in lists, deeper than any reader recurses.
# a: runtime_error wrong_answer
# b: runtime_error wrong_answer
import os


def solve(n):
    text = b'{"call":1,"value":' + b"[" * 200000 + b"]" * 200000 + b"}"
    os.write(5, len(text).to_bytes(4, "little") + text)
    while True:
        os.read(4, 1)
