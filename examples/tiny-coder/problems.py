"""Makes the problems of tiny-coder: a small honest code task.

A problem is a Python signature with a docstring; the answer is the function's body. The docstring describes a chain of
operations on a list of integers, and hidden test cases, computed by running the reference solution, decide.

    python3 problems.py --output DIR [--seed 17] [--train 12000] [--demonstrations 8000] [--held-out 400]

writes
    train.jsonl           problems to take prompts from, in the shape of HumanEval:
                          {"task_id", "prompt", "entry_point", "test", "canonical_solution", "composition", "kinds"}
    validation.jsonl      problems to choose by, such as a temperature
    held_out.jsonl        problems for evaluation only
    demonstrations.jsonl  {"prompt", "response"} for supervised fine-tuning, with the mistakes that people make

What makes it honest:
- The three sets of problems share no composition: the sequence of operations (whatever its constants and words) of a
  held-out or validation problem occurs in no training problem and in no demonstration.
- For each operation the typical mistakes are known (a boundary off by one, the wrong order, the wrong direction). The
  hidden cases of every problem reject every program with one such mistake; a chain in which some mistake would make no
  difference is not used.
- Everything follows from the seed.

Demonstrations are imperfect on purpose, as code found in the wild is. Of some operations most people have a wrong idea
(a misconception: the first of its mistakes): their demonstrations are wrong in this way with probability
--misconceptions, more often than right, so that a policy that imitates them answers wrongly when it answers with what is
likeliest, at any temperature. All other operations carry one of their mistakes with probability --mistakes. Telling right
from wrong is left to the reward model, and acting on it to reinforcement learning.
"""

import argparse
import hashlib
import json
import pathlib
import random
from dataclasses import dataclass

NAMES = ["solve", "f", "process", "compute", "run", "apply_steps", "transform", "answer"]


@dataclass(frozen=True)
class Operation:
    """One step. `{k}` in a text is the constant."""

    kind: str
    # Ways to say it.
    words: tuple[str, ...]
    # The right line of code.
    code: str
    # Typical wrong lines.
    mistakes: tuple[str, ...]
    # Constants it may carry; empty when it has none.
    constants: tuple[int, ...] = ()
    # Whether most people hold the first mistake for right.
    misconception: bool = False


def line(expression: str) -> str:
    return f"xs = {expression}"


def each(expression: str) -> str:
    return line(f"[{expression} for x in xs]")


def keep(condition: str) -> str:
    return line(f"[x for x in xs if {condition}]")


SMALL = (1, 2, 3, 4)
BOUNDS = (-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6)
# Shares of compositions.
HELD_OUT = 0.15
VALIDATION = 0.05

ADDENDS = (1, 2, 3, 4, 5, 6, 7, 8, 9)

STEPS = (
    Operation("greater", ("keep the numbers greater than {k}", "keep only numbers above {k}"),
              keep("x > {k}"), (keep("x >= {k}"), keep("x < {k}")), BOUNDS),
    Operation("at_least", ("keep the numbers that are at least {k}", "keep only numbers not below {k}"),
              keep("x >= {k}"), (keep("x > {k}"), keep("x <= {k}")), BOUNDS, misconception=True),
    Operation("less", ("keep the numbers less than {k}", "keep only numbers below {k}"),
              keep("x < {k}"), (keep("x <= {k}"), keep("x > {k}")), BOUNDS),
    Operation("at_most", ("keep the numbers that are at most {k}", "keep only numbers not above {k}"),
              keep("x <= {k}"), (keep("x < {k}"), keep("x >= {k}")), BOUNDS, misconception=True),
    Operation("even", ("keep the even numbers", "drop the odd numbers"),
              keep("x % 2 == 0"), (keep("x % 2 == 1"),)),
    Operation("odd", ("keep the odd numbers", "drop the even numbers"),
              keep("x % 2 == 1"), (keep("x % 2 == 0"),)),
    Operation("divisible", ("keep the multiples of {k}", "keep the numbers divisible by {k}"),
              keep("x % {k} == 0"), (keep("x // {k} == 0"), keep("x % {k} != 0")), (3, 4, 5), misconception=True),
    Operation("add", ("add {k} to each number", "increase every number by {k}"),
              each("x + {k}"), (each("x - {k}"),), ADDENDS),
    Operation("subtract", ("subtract {k} from each number", "decrease every number by {k}"),
              each("x - {k}"), (each("{k} - x"), each("x + {k}")), ADDENDS, misconception=True),
    Operation("multiply", ("multiply each number by {k}", "scale every number by {k}"),
              each("x * {k}"), (each("x + {k}"), each("x ** {k}")), (2, 3, 4)),
    Operation("square", ("square each number", "replace every number by its square"),
              each("x * x"), (each("x * 2"),), misconception=True),
    Operation("negate", ("negate each number", "flip the sign of every number"),
              each("-x"), (each("abs(x)"),)),
    Operation("absolute", ("take the absolute value of each number", "drop the sign of every number"),
              each("abs(x)"), (each("-x"),)),
    Operation("take_first", ("take the first {k} numbers", "keep only the first {k} numbers"),
              line("xs[:{k}]"), (line("xs[{k}:]"), line("xs[:{k} + 1]")), SMALL),
    Operation("drop_first", ("drop the first {k} numbers", "skip the first {k} numbers"),
              line("xs[{k}:]"), (line("xs[:{k}]"), line("xs[{k} + 1:]")), SMALL),
    Operation("take_last", ("take the last {k} numbers", "keep only the last {k} numbers"),
              line("xs[-{k}:]"), (line("xs[{k}:]"), line("xs[:-{k}]")), SMALL, misconception=True),
    Operation("drop_last", ("drop the last {k} numbers", "leave out the last {k} numbers"),
              line("xs[:-{k}]"), (line("xs[-{k}:]"), line("xs[:{k}]")), SMALL),
    Operation("ascending", ("sort in ascending order", "sort from small to large"),
              line("sorted(xs)"), (line("sorted(xs, reverse=True)"),)),
    Operation("descending", ("sort in descending order", "sort from large to small"),
              line("sorted(xs, reverse=True)"), (line("sorted(xs)"),)),
    Operation("reverse", ("reverse the order", "turn the list around"),
              line("xs[::-1]"), (line("sorted(xs)[::-1]"),)),
    Operation("unique", ("remove repeated numbers", "drop duplicates"),
              line("list(dict.fromkeys(xs))"), (line("sorted(set(xs))"),), misconception=True),
    Operation("every_second", ("keep every second number starting with the first", "keep the numbers at even positions"),
              line("xs[::2]"), (line("xs[1::2]"),), misconception=True),
    Operation("odd_places", ("keep every second number starting with the second", "keep the numbers at odd positions"),
              line("xs[1::2]"), (line("xs[::2]"),)),
)

ENDS = (
    Operation("sum", ("return the sum", "return the total"), "return sum(xs)", ("return sum(xs[1:])",)),
    Operation("maximum", ("return the largest number or 0", "return the maximum or 0"),
              "return max(xs, default=0)", ("return min(xs, default=0)",)),
    Operation("minimum", ("return the smallest number or 0", "return the minimum or 0"),
              "return min(xs, default=0)", ("return max(xs, default=0)",)),
    Operation("length", ("return how many are left", "return the count"),
              "return len(xs)", ("return len(xs) - 1", "return sum(xs)")),
    Operation("list", ("return the list", "return the result"), "return xs", ("return xs[::-1]",)),
)


@dataclass(frozen=True)
class Chosen:
    """An operation with its constant."""

    operation: Operation
    constant: int | None

    def fill(self, text: str) -> str:
        return text.replace("{k}", str(self.constant))

    def right(self) -> str:
        return self.fill(self.operation.code)

    def wrong(self) -> list[str]:
        return [self.fill(mistake) for mistake in self.operation.mistakes]

    def demonstrated(self, rng: random.Random, misconceptions: float, mistakes: float) -> str:
        """The line that somebody writes."""
        chance = misconceptions if self.operation.misconception else mistakes
        if rng.random() >= chance:
            return self.right()
        return self.wrong()[0] if self.operation.misconception else rng.choice(self.wrong())


def choose(rng: random.Random, operation: Operation) -> Chosen:
    return Chosen(operation, rng.choice(operation.constants) if operation.constants else None)


def composition(chain: list[Chosen]) -> str:
    return "-".join(chosen.operation.kind for chosen in chain)


def kinds(chain: list[Chosen]) -> list[str]:
    """What figures are given for: each operation, and whether the chain has one with a misconception."""
    some = any(chosen.operation.misconception for chosen in chain)
    return [chosen.operation.kind for chosen in chain] + ["(a misconception)" if some else "(no misconception)"]


def part(name: str) -> str:
    """The set whose problems have this composition: a property of the composition alone, so that no other choice can
    move a chain across a border."""
    digest = hashlib.sha256(name.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "held-out" if place < HELD_OUT else "validation" if place < HELD_OUT + VALIDATION else "train"


def body(lines: list[str]) -> str:
    return "".join(f"    {text}\n" for text in lines)


def function(lines: list[str]):
    scope: dict = {}
    exec("def f(xs):\n" + body(lines), scope)  # our own lines only
    return scope["f"]


def draw_input(rng: random.Random) -> list[int]:
    size = rng.choice((0, 1, 2, 3, 5, 6, 7, 8, 9, 10))
    return [rng.randint(-9, 12) for _ in range(size)]


def run(program, numbers: list[int]):
    try:
        return program(list(numbers))
    except Exception as error:  # a wrong program may fail, which is an answer too
        return type(error).__name__


def hidden_cases(rng: random.Random, chain: list[Chosen], wanted: int) -> list[tuple] | None:
    """Cases that reject every single mistake, or none when some mistake makes no difference."""
    lines = [chosen.right() for chosen in chain]
    reference = function(lines)
    mistaken = [function(lines[:at] + [wrong] + lines[at + 1:])
                for at, chosen in enumerate(chain) for wrong in chosen.wrong()]
    inputs = [[]] + [draw_input(rng) for _ in range(60)]
    expected = [run(reference, numbers) for numbers in inputs]
    if any(isinstance(value, int) and abs(value) > 10**9 for value in expected):
        return None
    chosen_inputs: list[int] = []
    for program in mistaken:
        rejecting = [at for at, numbers in enumerate(inputs) if run(program, numbers) != expected[at]]
        if len(rejecting) < 3:
            return None
        if not set(rejecting) & set(chosen_inputs):
            chosen_inputs.append(rng.choice(rejecting))
    others = [at for at in range(len(inputs)) if at not in chosen_inputs]
    chosen_inputs += others[:max(0, wanted - len(chosen_inputs))]
    return [(inputs[at], expected[at]) for at in sorted(chosen_inputs)]


def check(cases: list[tuple]) -> str:
    """The hidden test, as HumanEval has it."""
    lines = [f"    assert candidate({numbers}) == {value}\n" for numbers, value in cases]
    return "def check(candidate):\n" + "".join(lines)


def signature(rng: random.Random, chain: list[Chosen]) -> tuple[str, str]:
    name = rng.choice(NAMES)
    words = [chosen.fill(rng.choice(chosen.operation.words)) for chosen in chain]
    text = ", ".join(words[:-1]) + " and " + words[-1]
    return name, f'def {name}(xs):\n    """{text[0].upper()}{text[1:]}."""\n'


def draw_chain(rng: random.Random) -> list[Chosen]:
    steps = rng.sample(STEPS, rng.choice((1, 2, 2, 3)))
    return [choose(rng, step) for step in steps] + [choose(rng, rng.choice(ENDS))]


def problems(rng: random.Random, count: int, wanted: str) -> list[dict]:
    made: list[dict] = []
    seen: set[str] = set()
    while len(made) < count:
        chain = draw_chain(rng)
        name = composition(chain)
        if part(name) != wanted:
            continue
        # Problems that are not trained on are few: no two of them share a composition.
        cases = None if wanted != "train" and name in seen else hidden_cases(rng, chain, 8)
        if cases is None:
            continue
        seen.add(name)
        entry_point, prompt = signature(rng, chain)
        made.append({"task_id": f"{wanted}/{len(made)}", "prompt": prompt, "entry_point": entry_point,
                     "test": check(cases), "canonical_solution": body([chosen.right() for chosen in chain]),
                     "composition": name, "kinds": kinds(chain)})
    return made


def demonstrations(rng: random.Random, count: int, misconceptions: float, mistakes: float) -> list[dict]:
    made: list[dict] = []
    while len(made) < count:
        chain = draw_chain(rng)
        if part(composition(chain)) != "train" or hidden_cases(rng, chain, 0) is None:
            continue
        lines = [chosen.demonstrated(rng, misconceptions, mistakes) for chosen in chain]
        made.append({"prompt": signature(rng, chain)[1], "response": body(lines)})
    return made


def write(path: pathlib.Path, rows: list[dict]) -> None:
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the problems of tiny-coder.")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--train", type=int, default=12000)
    parser.add_argument("--demonstrations", type=int, default=8000)
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--misconceptions", type=float, default=0.65,
                        help="chance of the usual mistake where most people have a wrong idea")
    parser.add_argument("--mistakes", type=float, default=0.15, help="chance of a mistake per other operation")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rng = lambda purpose: random.Random(f"{options.seed}-{purpose}")  # noqa: E731
    for wanted, name, count in (("train", "train", options.train), ("validation", "validation", options.validation),
                                ("held-out", "held_out", options.held_out)):
        write(options.output / f"{name}.jsonl", problems(rng(wanted), count, wanted))
    write(options.output / "demonstrations.jsonl",
          demonstrations(rng("demonstrations"), options.demonstrations, options.misconceptions, options.mistakes))


if __name__ == "__main__":
    main()
