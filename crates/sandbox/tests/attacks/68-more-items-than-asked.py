# An iterator that answers with more than was asked for.
# problem: listed
# a: runtime_error wrong_answer
# b: runtime_error wrong_answer
import os
from marshal import loads


def frame(text):
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def take(count):
    data = b""
    while len(data) < count:
        piece = os.read(4, count - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data


def solve(n):
    os.write(5, frame('{"call":1,"value":{"iterator":[0,"generator","bi"]}}'))
    while True:
        call = loads(take(int.from_bytes(take(4), "little")))[0]
        os.write(5, frame('{"call":%d,"items":[0,1,2,3],"end":true}' % call))
