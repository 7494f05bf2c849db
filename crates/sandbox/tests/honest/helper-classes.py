# Classes as helpers, a dataclass with annotations as text, an enumeration.
from __future__ import annotations

import dataclasses
import enum
import typing


class Kind(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass(order=True)
class Step:
    size: int
    after: typing.Optional[Step] = None

    def total(self):
        return self.size + (self.after.total() if self.after else 0)


def solve(n):
    return Step(n, Step(Kind.ONE)).total()
