"""The warm interpreter: imports, waits for the native half to fork, and starts the guest's role.

Runs with `parts`, `native`, `blueprint_fd` and `warm` in its globals. Nothing here runs guest code: `native.serve` returns
in forked, confined guests only.
"""

import sys
import types

# What solutions and tests import most. Everything else of the standard library is there too, only not warm.
WARM = """
abc array bisect builtins calendar cmath collections collections.abc contextlib copy dataclasses datetime decimal enum
fractions functools hashlib heapq io itertools json math numbers operator os queue random re statistics string struct
textwrap threading time traceback types typing unicodedata weakref ast
""".split()

CANDIDATE, TESTER, PROGRAM = 1, 2, 3


def part(name):
    """One of our own modules, from the code that the server compiled."""
    module = types.ModuleType("sluice." + name)
    sys.modules["sluice." + name] = module
    exec(parts[name], module.__dict__)
    return module


sluice = sys.modules["sluice"] = types.ModuleType("sluice")
candidate = part("candidate")
if warm:
    for name in WARM:
        __import__(name)
    sluice.values = part("values")
    sluice.suite = part("suite")
    tester = part("tester")

import gc

gc.collect()
# Forks share pages until one of them writes; a frozen heap is not written by the collector.
gc.freeze()

role = native.serve(blueprint_fd)

# From here on this is a guest.
import os

os.environ.clear()
for name in ("sluice", "sluice.candidate", "sluice.values", "sluice.suite", "sluice.tester"):
    sys.modules.pop(name, None)
if role == TESTER:
    tester.run()
else:
    candidate.run(program=role == PROGRAM)
