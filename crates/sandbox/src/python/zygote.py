"""The warm interpreter: imports, waits for the native half to fork, and starts the guest's role.

Runs with `parts`, `native`, `blueprint_fd` and `warm` in its globals. Nothing here runs guest code: `native.serve` returns
in forked, confined guests only. A cold interpreter comes through here once, so it imports nothing that it can do without.
"""

import posix
import sys

# What solutions and tests import most. Everything else of the standard library is there too, only not warm.
WARM = """
abc array bisect builtins calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal enum
fractions functools hashlib heapq io itertools json math numbers operator os queue random binascii re statistics string struct
textwrap threading time traceback types typing unicodedata weakref ast
""".split()

TESTER, PROGRAM, SESSION = 2, 3, 4
# The interpreter keeps objects of up to 512 bytes together by their size. So many of each size fill its holes.
LARGEST_SMALL, FILLING = 480, 60
filling = []

# `os.environ` is made from this when `os` is imported; guests find it empty.
posix.environ.clear()
sluice = sys.modules["sluice"] = type(sys)("sluice")


def part(name):
    """One of our own modules, from the code that the server compiled."""
    module = type(sys)("sluice." + name)
    sys.modules["sluice." + name] = module
    setattr(sluice, name, module)
    exec(parts[name], module.__dict__)
    return module


def warm_up():
    import gc
    import os

    # A hook that runs in every fork costs every guest: those of `random` and `threading` dirty 160 pages, 0.3
    # ms. The zygote has one thread, so locks need no repair, and the generator is seeded once, the same in
    # every guest: a response that draws random numbers gets the same verdict each time.
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: None
    for name in WARM:
        __import__(name)
    os.register_at_fork = register
    sys.modules["random"].seed(0)
    # What the imports have freed leaves holes on hundreds of pages. Filled, they take in nothing of our own modules, whose
    # counts of references every guest writes.
    gc.collect()
    filling.extend(bytes(size) for size in range(1, LARGEST_SMALL, 16) for _ in range(FILLING))
    for name in ("remote", "graph", "values", "session", "suite", "tester"):
        part(name)
    gc.collect()
    # Forks share pages until one of them writes; a frozen heap is not written by the collector.
    gc.freeze()


part("packages").install(parts.pop("package_code"))
part("encoding")
candidate = part("candidate")
console = part("console")
if warm:
    warm_up()
# Listed before the fork: a guest that looks through all modules writes a reference count into each name, on
# 50 pages.
own = [name for name in sys.modules if name.partition(".")[0] == "sluice"]
role = native.serve(blueprint_fd)

# From here on this is a guest. Its own modules are none of the response's business.
for name in own:
    del sys.modules[name]
if role == TESTER:
    sluice.tester.run()
elif role == SESSION:
    console.run()
else:
    candidate.run(program=role == PROGRAM)
