# Answers calls before they are made, and again with other numbers.
# a: runtime_error wrong_answer
# b: runtime_error wrong_answer
import os


def frame(text):
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


os.write(5, frame('{"loaded":true}'))
for call in range(8):
    for value in (0, 2, 42):
        os.write(5, frame('{"call":%d,"value":%d}' % (call, value)))


def solve(n):
    return None
