"""A hostile candidate against the tester, in one process: random, mutated and well-formed-but-wrong frames.

The tester's own modules run as they are; only its two pipes are replaced. Every expected value is made of secrets that
no frame holds except where the tester has sent them, and nothing here computes with what it was sent, so that no reply
can be right. Reads [name, source] of each module from stdin; arguments: seconds, frames (the first that is reached ends
it), seed. Writes one line of JSON: frames, gradings, verdicts, seconds. Ends with a traceback where a grading passed,
crashed, or left judgement: nothing that these tests do is more than a response can be asked.
"""

import faulthandler
import json
import logging
import random
import resource
import signal
import sys
import time
from marshal import loads

# As a tester has them: memory, and processor time for one grading.
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
# Of processor time, for 256 gradings; a frame that makes the tester work for ever is a fault, and a host that is busy or
# stops this process is none.
GRADINGS_SECONDS = 20
# The traceback of where it hangs, then what the signal does by itself: the end of the process.
faulthandler.register(signal.SIGPROF, chain=True)
# What event loops of the tests say of tasks that a frame has ended.
logging.disable()
SECONDS, FRAMES, SEED = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(SEED)
# The tester draws its own numbers; whatever seeds them must not seed the fuzzer.
sluice = sys.modules["sluice"] = type(sys)("sluice")
for name, text in json.load(sys.stdin):
    module = sys.modules["sluice." + name] = type(sys)("sluice." + name)
    setattr(sluice, name, module)
    exec(compile(text, "<sluice %s>" % name, "exec"), module.__dict__)
session, suite, tester, values = sluice.session, sluice.suite, sluice.tester, sluice.values

JUDGED = {"wrong_answer", "runtime_error", "output_limit", "memory_limit", "file_limit", "gone"}
SECRETS = [draw.getrandbits(80) | 1 << 80 for _ in range(24)]
# Not sorted, whatever was drawn.
LIST = "[%s]" % ", ".join(map(str, sorted(SECRETS[:7])[::-1]))
KEYS = ["call", "value", "arguments", "error", "items", "end", "large", "loaded", *values.READERS]
ERRORS = [
    "UnicodeDecodeError", "UnicodeEncodeError", "UnicodeTranslateError", "OSError", "KeyError", "StopIteration",
    "SystemExit", "GeneratorExit", "KeyboardInterrupt", "MemoryError", "AssertionError", "ExceptionGroup", "SyntaxError",
    "ImportError", "Exception", "BaseException", "object", "ValueError", "RecursionError", "AttributeError", "NameError",
]  # fmt: skip


def check(test, entry_point="f", prompt="", **more):
    return {"kind": "check", "prompt": prompt, "test": test, "entry_point": entry_point, **more}


NODE = "class N:\n    def __init__(self, val, next=None):\n        self.val, self.next = val, next\n"
# What tests do with what they get. None of it can be right.
PROBLEMS = [
    check("def check(c):\n    assert c(1) == %d\n    assert c(2) == %d\n" % tuple(SECRETS[14:16])),
    check("def check(c):\n    given = %s\n    assert c(given) == sum(given)\n" % LIST),
    check("def check(c):\n    given = %s\n    assert c(given) == sorted(given)\n" % LIST),
    check("def check(c):\n    given = %s\n    assert sorted(given) == c(given)\n    assert len(given) == 7\n" % LIST),
    check("def check(c):\n    given = %s\n    wanted = sorted(given)\n    c(given)\n    assert given == wanted\n" % LIST),
    check("def check(c):\n    given = %s\n    wanted = sorted(given)\n    out = c(given)\n"
          "    assert out == wanted and given == wanted\n" % LIST, mutates_arguments=True),
    check("def check(c):\n    assert c([c(1)]) == %d\n" % SECRETS[16]),
    check("def check(c):\n    assert list(c(3)) == [%d, %d]\n" % tuple(SECRETS[17:19])),
    check("def check(c):\n    assert [x for _, x in zip(range(3), c(3))] == [%d]\n" % SECRETS[17]),
    check("def check(c):\n    try:\n        c(1)\n    except Exception as e:\n        assert str(e) == '%d'\n"
          "    else:\n        assert False\n" % SECRETS[19]),
    check("def check(c):\n    try:\n        c(1)\n    except UnicodeError as e:\n        assert '%d' in str(e) + repr(e)\n"
          "    else:\n        assert False\n" % SECRETS[19]),
    check("def check(c):\n    assert dict(c({%d: [1]}))[%d] == [%d]\n" % tuple(SECRETS[20:23])),
    check("def check(c):\n    assert all(map(lambda n: c(n) == n + %d, [1, 2]))\n" % SECRETS[22]),
    check("def check(c):\n    assert {1: {2: c(5)}} == {1: {2: {%d}}}\n" % SECRETS[23]),
    check("def check(c):\n    r = c(1)\n    assert len(r) == 2 and r[0] == r[1] == %d and bool(r)\n" % SECRETS[3]),
    check("def check(c):\n    r, s = c(1), c(2)\n    assert (r == s, [r] == [s], r in [s]) == %d\n" % SECRETS[3]),
    check("def check(c):\n    assert (isinstance(c(1), c(2)), callable(c(3)), c(4)()) == %d\n" % SECRETS[3]),
    check("def check(c):\n    r = c(1)\n    assert r[%d] + sum(r) == %d\n" % tuple(SECRETS[4:6])),
    # Operators and conversions: whoever is handed the secret could answer 0, or a secret that came back.
    check("import math\ndef check(c):\n    assert abs(c(1) - %d) < 1\n    assert abs(%d - c(1)) < 1\n"
          "    assert math.isclose(c(2), %d)\n" % tuple(SECRETS[3:6])),
    check("def check(c):\n    assert %d in c(1)\n    assert (c(1) < %d, c(2) >= %d) == %d\n" % tuple(SECRETS[3:7])),
    check("def check(c):\n    r, s = c(1), c(2)\n    assert (r < s, r + s, divmod(r, s), float(r), [0][s]) == %d\n" % SECRETS[3]),
    check("def check(c):\n    r = c(1)\n    assert (-r, round(r, 2), int(r), f'{r:.2f}', r @ r, pow(r, 2, 5)) == %d\n" % SECRETS[3]),
    check("import copy\ndef check(c):\n    with c(1) as r:\n        assert (copy.deepcopy(r), reversed(c(2)), dir(r)) == %d\n"
          "        del r[0]\n" % SECRETS[3]),
    check("import asyncio\ndef check(c):\n    assert asyncio.run(c(1)) == %d\n" % SECRETS[3]),
    check("def check(c):\n    try:\n        c(1)\n    except R as e:\n        assert (e.code, str(e), R.code, R(1)) == %d\n"
          "    except (ValueError, c):\n        assert False\n    else:\n        assert isinstance(c(2), R) == %d\n" % tuple(SECRETS[3:5])),
    check("def check(c):\n    r = c(1)\n    next(r)\n    assert c(r) == %d\n" % SECRETS[3]),
    check("def check(c):\n    r = N(1)\n    r += %d\n    assert (r.val, r * 3, %d in r) == %d\n" % tuple(SECRETS[3:6])),
    check("def check(c):\n    head = N(%d, N(1))\n    out = c(head)\n"
          "    assert out.val == head.next.val == %d and type(out) is N\n" % tuple(SECRETS[10:12]), prompt=NODE),
    check("def check(c):\n    head = N(%d, N(1))\n    wanted = str(head.val)[::-1]\n    c(head)\n"
          "    assert str(head.next.val) == wanted\n" % (SECRETS[10] | 1), prompt=NODE),
    check("def check(c):\n    head = N(%d)\n    assert c([head, {1: head}])[0] == head.val + 1\n" % SECRETS[12], prompt=NODE),
    check("def check(c):\n    head = N(%d)\n    assert c(c(head)) == head.val + 1\n" % SECRETS[12], prompt=NODE),
    {"kind": "asserts", "setup": "", "entry_point": None,
     "asserts": ["s = Solution()\nassert s.f([%d]) == [%d]\nassert s.g(2)[LIMIT] == %d" % tuple(SECRETS[12:15])]},
    {"kind": "asserts", "setup": "", "entry_point": None,
     "asserts": ["assert f([%d, 1]) == [1, %d]" % (SECRETS[4], SECRETS[5]), "assert set(f((2,))) == {%d}" % SECRETS[6]]},
    {"kind": "cases", "entry_point": "f", "cases": [
        {"args": [[SECRETS[7], 2]], "kwargs": {}, "expected": [SECRETS[8]]},
        {"args": [], "kwargs": {"a": {"k": 1}}, "expected": {"k": float(SECRETS[9] >> 30)}}], "integer_keys": True},
]  # fmt: skip
BLANK = {"nonce": "n", "compiled_tests": None, "seed": 1, "value_bytes": 1 << 16, "mutates_arguments": False, "prompt": "",
         "test": "", "setup": "", "asserts": [], "cases": [], "tolerance": 1e-6, "prelude": "", "integer_keys": False}  # fmt: skip


def number():
    return draw.choice([0, 1, -1, 2, 900, 255, 1 << 31, -(1 << 63), 10**18, draw.getrandbits(70)])


def text():
    return draw.choice(["", "a", "x" * 300, "\u0000", "\ud800", "utf-8", "list", "P", "__class__", "int", str(number())])


def value(depth=0):
    """A value in the form of the protocol: mostly well-formed."""
    kind = draw.randrange(14 if depth < 4 else 7)
    if kind < 2:
        return number()
    if kind == 2:
        return draw.choice([None, True, False, 0.5, -0.0, float("nan"), float("inf"), 1e308])
    if kind == 3:
        return text()
    if kind == 4 and draw.random() < 0.4:
        return {"p": draw.choice([0, 0, 1, 1, 2, 9, -1, "0", 1 << 40])}
    if kind == 4 and sent:
        return draw.choice(sent)
    if kind in (5, 6) and draw.random() < 0.2:
        return {"raised": [draw.choice([0, 1, 7, "0"]), draw.choice(["R", "\0", 3]), draw.choice(["ValueError", "StopIteration", "int"])]}
    if kind in (5, 6):
        name = draw.choice(["T", "generator", "coroutine", "type", "function", 3])
        traits = draw.choice(["", "b", "e", "t", "ci", "cgsinltbe", "zz" * 20, 3])
        return {draw.choice(["remote", "iterator"]): [draw.choice([0, 1, 7, "0", -1]), name, traits]}
    if kind < 10:
        return [value(depth + 1) for _ in range(draw.randrange(4))]
    if kind < 13:
        return tagged(depth)
    tag = draw.choice(KEYS)
    content = draw.choice([
        lambda: [value(depth + 1) for _ in range(draw.randrange(5))],
        lambda: [[value(depth + 1), value(depth + 1)] for _ in range(draw.randrange(3))],
        lambda: [draw.choice(["datetime", "date", "i", "P", "list"]), *(number() for _ in range(draw.randrange(9)))],
        lambda: [text(), ["x", "y"], [value(depth + 1), value(depth + 1)]],
        text,
        number,
    ])()  # fmt: skip
    return {tag: content}


def tagged(depth):
    """A value as an honest candidate sends it, but for what it holds."""
    items = [value(depth + 1) for _ in range(draw.randrange(4))]
    return draw.choice([
        {"t": items},
        {"s": [number(), "a"]},
        {"z": [number()]},
        {"d": [[number(), item] for item in items]},
        {"b": "abc"},
        {"c": [0.5, 1.0]},
        {"i": "%x" % draw.getrandbits(200)},
        {"bytearray": "ab"},
        {"range": [0, draw.randrange(9), draw.choice([1, 2, 0])]},
        {"keys": ["a", number()]},
        {"values": items},
        {"items": [["a", item] for item in items]},
        {"deque": [items, draw.choice([None, 2])]},
        {"fraction": [number(), draw.choice([0, 3, number()])]},
        {"decimal": draw.choice(["0.1", "NaN", "sNaN", "1E+999999", "-0", "x"])},
        {"date": draw.choice([["date", 2024, 2, 30], ["datetime", 2024, 2, 28, 1, 2, 3, 4, 0, number()],
                              ["timedelta", number(), 0, 0], ["time", 1, 2, 3, 4]])},
        {"array": [draw.choice(["i", "d", "u", "b"]), [1, number()]]},
        {"counter": [["a", draw.choice([1, value(depth + 1)])]]},
        {"ordered": [["a", value(depth + 1)]]},
        {"default": [draw.choice([None, "int", "list", "eval", 3]), [["a", value(depth + 1)]]]},
        {"named": [draw.choice(["P", "class", "__x"]), ["x", draw.choice(["y", "_y", "x"])], [1, value(depth + 1)]]},
        {"user": [draw.choice(["list", "dict", "str"]), draw.choice([[1], "a", {"d": []}])]},
        {"type": draw.choice(["int", "eval", "object", "type", "no"])},
        {"ellipsis": []},
        {"slice": draw.choice([[number(), None, value(depth + 1)], [1], [1, 2, 3, 4]])},
        {"memoryview": draw.choice(["ab", "\u0100"])},
        {"nan": draw.choice([[], [1]])},
        {"text": draw.choice([["uuid", "UUID", "12345678" * 4], ["uuid", "Enum", "x"], ["os", "system", "x"],
                              ["ipaddress", "IPv4Network", "1.2.3.4/33"], ["pathlib", "PosixPath", draw.choice(["a/b", 3])],
                              ["pathlib", "Path", "a"], [["uuid"], "UUID", "x"], ["uuid"]])},
    ])  # fmt: skip


WELL_FORMED_ERRORS = [
    ("UnicodeDecodeError", ["utf-8", {"b": "abc"}, int, int, "bad"]),
    ("UnicodeEncodeError", ["utf-8", "abc", int, int, "bad"]),
    # One character, far outside of the text: the interpreter's own `str` reads it.
    ("UnicodeDecodeError", ["utf-8", {"b": "abc"}, -(1 << 40), 1 - (1 << 40), "bad"]),
    ("UnicodeEncodeError", ["utf-8", "abc", 1 << 40, (1 << 40) + 1, "bad"]),
    ("UnicodeTranslateError", ["abc", -(1 << 40), 1 - (1 << 40), "bad"]),
    ("UnicodeTranslateError", ["abc", int, int, "bad"]),
    ("OSError", [int, "text", "file", int, "other"]),
    ("SyntaxError", ["text", {"t": ["file", 1, 900, "line", -1, 10**18]}]),
    ("ExceptionGroup", ["text", []]),
    ("ImportError", ["text"]),
    ("KeyError", [{"t": []}]),
]


def error():
    if draw.random() < 0.6:
        name, parts = draw.choice(WELL_FORMED_ERRORS)
        places = [number() if part is int else part for part in parts]
        own = draw.choice([[], [], [draw.choice([0, 1, 7, True])]])
        handle = draw.choice([[], [draw.choice([0, 1, "0", None])]])
        return [[*own, name, "ValueError", "Exception"], {"t": places}, "text", draw.choice([0, 0, 0, 24]), *handle]
    ancestors = draw.sample(ERRORS, draw.randrange(1, 5)) + draw.choice([["Exception", "BaseException"], [], [3]])
    arguments = draw.choice([
        None,
        {"t": [value() for _ in range(draw.randrange(5))]},
        {"t": ["utf-8", {"b": "abc"}, number(), number(), "bad"]},
        {"t": ["ab", number(), number(), "bad"]},
        {"t": [str(draw.choice(SECRETS[14:]) ^ 5)]},
        value(),
    ])  # fmt: skip
    return [ancestors, arguments, draw.choice([text(), 3, None]), draw.choice([0, 24, "0", None, -1])]


def reply(request):
    """A message for the tester, as JSON knows it."""
    call = draw.choice([request[0]] * 90 + [0, request[0] + 1, "1", True, None, 1.0])
    body = draw.choice([
        lambda: {"value": value()},
        lambda: {"value": None, "arguments": arguments(request)},
        lambda: {"value": draw.choice([[], 0, None, *sent]), "arguments": arguments(request)},
        lambda: {"value": value(), "arguments": arguments(request)},
        lambda: {"error": error()},
        lambda: {"items": [value() for _ in range(draw.randrange(4))], "end": draw.choice([True, False, 1, None])},
        lambda: {"items": [value() for _ in range(draw.randrange(4))], "error": error()},
        lambda: {"large": number()},
        lambda: {draw.choice(KEYS): value() for _ in range(draw.randrange(4))},
    ])()  # fmt: skip
    if draw.random() < 0.3:
        body["objects"] = table()
    return {"call": call, **body}


def table():
    """Objects of the problem's classes."""
    entries = []
    for _ in range(draw.choice([1, 2, 2, 2, 3, 10])):
        names = draw.choice([["val", "next"]] * 8 + [["val"], ["__class__", "val"], ["a b"], [3], ["__dict__"]])
        fields = [[name, draw.choice([value(2), {"p": draw.randrange(3)}, None, *sent])] for name in names]
        entry = [draw.choice(["N"] * 12 + ["Shell", "Message", "int", 3]), draw.choice([None, 0, 1, 0, 1, 7, -1, True]), fields]
        entries.append(entry if draw.random() < 0.97 else draw.choice([entry[:2], value(2)]))
    return entries if draw.random() < 0.97 else value(2)


def arguments(request):
    """What the function is said to have done to its arguments."""
    content = request[4]
    count = len(content[0]) if type(content) is tuple and content and type(content[0]) in (tuple, list) else 1
    changed = {"t": [draw.choice([[], {"d": []}, value(), *sent]) for _ in range(max(0, count + draw.choice([0] * 9 + [1, -1])))]}
    return draw.choice([[changed, {"d": []}]] * 8 + [[changed], value(), [changed, {"d": [["k", value()]]}]])


# Frames that were made before, by the number of the call. Most reads take one of these, so that the tester and not the
# maker of frames is what takes the time; what a frame does depends on what the tests were about to do with it.
pool = {}
POOLED = 4000


def frame(request):
    """Bytes for the tester."""
    known = pool.setdefault(request and request[0], [])
    if len(known) == POOLED and draw.random() < 0.9:
        return draw.choice(known)
    made = new_frame(request)
    if len(known) < POOLED:
        known.append(made)
    else:
        known[draw.randrange(POOLED)] = made
    return made


def new_frame(request):
    if request is None:
        message = {"loaded": True} if draw.random() < 0.97 else draw.choice([{"error": error()}, reply((0, "", "", 0, ()))])
    else:
        message = reply(request)
    data = json.dumps(message).encode("ascii")
    chance = draw.random()
    if chance < 0.06 and request is not None:
        data = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(data))
            data[at : at + draw.randrange(3)] = bytes(draw.choices(b'[]{}:,"01tnse\\u\x00\xff', k=draw.randrange(3)))
    elif chance < 0.08 and request is not None:
        data = draw.randbytes(draw.randrange(40))
    elif chance < 0.085:
        data = b"[" * draw.randrange(2000)
    length = len(data) if draw.random() < 0.995 else draw.choice([0, len(data) + 5, 1 << 31, (1 << 32) - 1, 1 << 17])
    return length.to_bytes(4, "little") + bytes(data)


pending, request, sent, frames = bytearray(), None, [], 0


def read(_, count):
    """The tester's end of the pipe of replies."""
    global frames
    if not pending:
        frames += 1
        pending.extend(frame(request))
    chunk = bytes(pending[:count])
    del pending[:count]
    # Where the length was a lie the process has ended.
    return chunk


def write(_, data):
    """The tester's end of the pipe of requests; what it sends may come back."""
    global request
    data = bytes(data)
    if len(data) > 4 or request is None:
        written.extend(data)
    while len(written) >= 4 and len(written) >= 4 + int.from_bytes(written[:4], "little"):
        size = int.from_bytes(written[:4], "little")
        request = loads(bytes(written[4 : 4 + size]))
        del written[: 4 + size]
        sent[:] = echoes(request[4])
    return len(data)


written = bytearray()


def echoes(content):
    """Numbers and lists of numbers that the tester has sent, in the protocol's form."""
    found = []
    if type(content) is int:
        found.append(content)
    elif type(content) in (list, tuple):
        if content and all(type(item) is int for item in content):
            found.append(list(content))
        for item in content:
            found.extend(echoes(item))
    return found[:20]


session.read, session.write = read, write
compiled = {}


def one(index):
    """One grading; its verdict."""
    global request
    job = {**BLANK, **PROBLEMS[index], "index": index}
    if index not in compiled:
        compiled[index] = suite.prepare(job)
    request = None
    pending.clear(), written.clear(), sent.clear()
    conversation = session.Session(job)
    tally = tester.Tally(conversation)
    verdict, detail = tester.grade(job, conversation, tally)
    if verdict in JUDGED:
        return verdict
    raise SystemExit("problem %d: %s (%s) after %r" % (index, verdict, detail, request))


tester.compiled_tests = lambda job: compiled[job["index"]]
sys.setrecursionlimit(5000)
started, gradings, verdicts = time.monotonic(), 0, {}
while frames < FRAMES and time.monotonic() - started < SECONDS:
    if gradings % 256 == 0:
        signal.setitimer(signal.ITIMER_PROF, GRADINGS_SECONDS)
    index = draw.randrange(len(PROBLEMS))
    verdict = one(index)
    verdicts[verdict] = verdicts.get(verdict, 0) + 1
    gradings += 1
seconds = time.monotonic() - started
print(json.dumps({"frames": frames, "gradings": gradings, "seconds": seconds, "verdicts": verdicts}))
