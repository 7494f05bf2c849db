"""Makes the problems of code-interpreter: arithmetic that a small network can do in its head, and arithmetic that it cannot.

    python3 problems.py --output DIR [--seed 11] [--train 4000] [--lessons 10000] [--demonstrations 6000] [--held-out 200]

writes
    train.jsonl           {"messages", "answer", "kind", "set"}: problems to take prompts from
    validation.jsonl      the same, to choose a temperature by
    held_out.jsonl        the same, for evaluation only
    lessons.jsonl         {"messages"} to learn from what a calculation, a call and an answer look like
    demonstrations.jsonl  {"messages"} of how people go about it, to imitate
    words.jsonl           {"text"}: what stands in a conversation beside the numbers, for the tokenizer

Half of the problems are sums of two numbers of one digit (`small`): there are 100 of them, which every set has and a network learns.
The others are products of two numbers of three digits (`large`): 810,000, which it does not.

Demonstrations are what people write down. With probability --tool they run the calculation in the interpreter, whichever kind it
is. Otherwise they do it in their heads: sums rightly, and of a product they say what it is about, with the first digit of each number
(473*862 is about 400*800 = 320000). A policy that imitates them does the same: it uses the interpreter for one problem in six, and
is wrong about nearly all other products, most surely where it is surest. In lessons the interpreter is used for more than half.

Which set a product belongs to follows from its text alone, so that no set has a product of another. Everything follows from the
seed.
"""

import argparse
import hashlib
import json
import pathlib
import random

WORDS = ("user", "assistant", "tool", "```python")
# The chance that a lesson runs the calculation.
LESSONS_TOOL = 0.6
# Shares of all products there are.
HELD_OUT = 0.10
VALIDATION = 0.05


def part(question: str) -> str:
    """The set that a product belongs to."""
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    return "held-out" if place < HELD_OUT else "validation" if place < HELD_OUT + VALIDATION else "train"


def about(calculation: str, result: int) -> int:
    """What somebody says who does it in the head."""
    if "*" not in calculation:
        return result
    a, b = (int(number) for number in calculation.split("*"))
    return a // 100 * 100 * (b // 100 * 100)


def draw(rng: random.Random, kind: str) -> tuple[str, int]:
    """A calculation, and what it comes to."""
    if kind == "large":
        a, b = rng.randint(100, 999), rng.randint(100, 999)
        return f"{a}*{b}", a * b
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return f"{a}+{b}", a + b


def questions(rng: random.Random, count: int, wanted: str) -> list[tuple[str, str, int]]:
    """Kind, calculation and result of so many questions of a set, kinds by turns. Only those of training are repeated."""
    made: list[tuple[str, str, int]] = []
    seen: set[str] = set()
    while len(made) < count:
        kind = ("small", "large")[len(made) % 2]
        calculation, result = draw(rng, kind)
        if kind == "large" and part(calculation) != wanted or wanted != "train" and calculation in seen:
            continue
        seen.add(calculation)
        made.append((kind, calculation, result))
    return made


def asked(calculation: str) -> dict:
    return {"role": "user", "content": f"{calculation}?"}


def demonstration(rng: random.Random, calculation: str, result: int, tool: float) -> dict:
    """A conversation. The turn of the tool is as `[reward_server.environment]` writes it."""
    messages, said = [asked(calculation)], about(calculation, result)
    if rng.random() < tool:
        said = result
        messages += [{"role": "assistant", "content": f"```python\n{calculation}\n```"}, {"role": "tool", "content": f"{result}\n"}]
    return {"messages": [*messages, {"role": "assistant", "content": str(said)}]}


def write(path: pathlib.Path, rows: list[dict]) -> None:
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the problems of code-interpreter.")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--lessons", type=int, default=10000)
    parser.add_argument("--demonstrations", type=int, default=6000)
    parser.add_argument("--validation", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--tool", type=float, default=0.16, help="chance that a demonstration runs the calculation")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rng = lambda purpose: random.Random(f"{options.seed}-{purpose}")  # noqa: E731
    for wanted, name, count in (("train", "train", options.train), ("validation", "validation", options.validation),
                                ("held-out", "held_out", options.held_out)):
        rows = [{"messages": [asked(calculation)], "answer": str(result), "kind": kind, "set": wanted}
                for kind, calculation, result in questions(rng(wanted), count, wanted)]
        write(options.output / f"{name}.jsonl", rows)
    write(options.output / "words.jsonl", [{"text": word} for word in WORDS for _ in range(100)])
    for name, count, tool in (("lessons", options.lessons, LESSONS_TOOL), ("demonstrations", options.demonstrations, options.tool)):
        draws = rng(name)
        write(options.output / f"{name}.jsonl", [demonstration(draws, calculation, result, tool)
                                                 for _, calculation, result in questions(draws, count, "train")])


if __name__ == "__main__":
    main()
