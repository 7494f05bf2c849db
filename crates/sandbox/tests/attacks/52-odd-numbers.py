# Answers with what careless readers take for equal or cannot compare.
# wall_ms: 400
# a: wall_limit
# b: wall_limit
import os


def frame(text):
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(4, "little") + data


calls = 0


def solve(n):
    global calls
    calls += 1
    value = ("NaN", "-0.0", "1e999", '"\\ud800"', '{"i":"10000000000000000"}', '{"t":[1,[[[]]]]}')[calls % 6]
    os.write(5, frame('{"call":%d,"value":%s}' % (calls, value)))
    while True:
        os.read(4, 1)
