"""The sandbox beside plain checkers, in one run: executions a second, fake passes, honest rejections, kill latency.

    cargo build --release -p sandbox --example rate --bins && cargo build --release -p cli
    apt-get install bubblewrap
    python3 bench/sandbox/compare.py [seconds a row]

Prints a table in Markdown.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

import plain

ROOT = pathlib.Path(__file__).resolve().parents[2]
ATTACKS = ROOT / "crates/sandbox/tests/attacks"
HUMAN_EVAL = ROOT / "crates/sandbox/tests/problems/HumanEval.jsonl.gz"
RELEASE = ROOT / "target/release"
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
CORES = os.cpu_count() or 1

ADD = "def add(a, b):\n    return a + b\n"
ADD_TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"
# The problems that the corpus names; `tests/support/arena.rs` has the same.
TESTS = {
    "increment": """def check(candidate):
    assert candidate(1) == 2
    assert candidate(41) == 42
    assert abs(candidate(-1) - 0) < 1e-9
    for n in range(5, 8):
        assert candidate(n) == n + 1
""",
    "sort": """def check(candidate):
    for items in ([3, 1, 2], [5, 4]):
        given = list(items)
        out = candidate(given)
        assert out == sorted(given)
""",
    "mapped": "def check(candidate):\n    assert all(map(lambda n: candidate(n) == n + 1, [1, 2, 3]))\n",
}


def rate(checker):
    """Calls a second from as many threads as there are cores."""
    done, wrong = [], []
    end = time.monotonic() + SECONDS

    def work():
        while time.monotonic() < end:
            (done if checker(ADD, ADD_TEST, "add") else wrong).append(1)

    started = time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{checker.__name__} rejected a right program"
    return len(done) / (time.monotonic() - started)


def sluice_rates():
    """Gradings a second by row, and the kill latencies, as the example prints them."""
    text = subprocess.run([RELEASE / "examples/rate", str(SECONDS)], capture_output=True, text=True, check=True).stdout
    print(text, file=sys.stderr)
    rates = {name: float(number) for name, number in re.findall(r"^(tier .*?): (\d+) gradings/s", text, re.M)}
    kills = dict(re.findall(r"^tier (.), kill, all: .*p99 (\S+)$", text, re.M))
    return rates, kills


def wrong_programs():
    """Classes 41 to 60 of the corpus that no verdict but a refusal is right for: name, source, problem."""
    for path in sorted(ATTACKS.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        header = dict(re.findall(r"^# (\w+): (.*)$", source, re.M))
        problem = header.get("problem", "increment")
        may_pass = "accepted" in header["a"].split() + header["b"].split()
        if 41 <= int(path.name[:2]) <= 60 and problem in TESTS and not may_pass:
            yield path.stem, source, problem


def fake_passes(checker, programs):
    return [name for name, source, problem in programs if checker(source, TESTS[problem], "solve")]


def sluice_grade(problems, samples, tier):
    """Ids of the samples that pass."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if not isinstance(problems, pathlib.Path):
            text, problems = "\n".join(map(json.dumps, problems)), folder / "problems.jsonl"
            problems.write_text(text)
        (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
        command = [RELEASE / "sluice", "grade", "--problems", problems, "--samples", folder / "samples.jsonl"]
        subprocess.run(
            command + ["--output", folder / "out.jsonl", "--tier", tier], check=True, stdout=subprocess.DEVNULL
        )
        graded = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
        return [row["task_id"] for row in graded if row["passed"]]


def sluice_fakes(programs, tier):
    problems = [
        {"task_id": name, "prompt": "", "entry_point": "solve", "test": TESTS[problem]} for name, _, problem in programs
    ]
    return sluice_grade(problems, [{"task_id": name, "completion": source} for name, source, _ in programs], tier)


def human_eval():
    import gzip

    with gzip.open(HUMAN_EVAL, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def honest(checker, problems):
    def passes(item):
        return checker(item["prompt"] + item["canonical_solution"], item["test"], item["entry_point"])

    return sum(map(passes, problems))


def main():
    programs, problems = list(wrong_programs()), human_eval()
    rates, kills = sluice_rates()
    solutions = [{"task_id": item["task_id"], "completion": item["canonical_solution"]} for item in problems]
    rows = []
    for name, checker in [("one interpreter", plain.one_interpreter), ("bubblewrap", plain.bubblewrap)]:
        passed = fake_passes(checker, programs)
        print(f"{name}: fooled by {', '.join(passed)}", file=sys.stderr)
        rows.append((name, rate(checker), len(passed), len(problems) - honest(checker, problems), "-"))
    for name, tier in [("tier A, zygote", "a"), ("tier A, cold", None), ("tier B, zygote", "b")]:
        fakes = len(sluice_fakes(programs, tier)) if tier else "as above"
        rejected = len(problems) - len(sluice_grade(HUMAN_EVAL, solutions, tier)) if tier else "as above"
        rows.append((f"Sluice, {name}", rates[name], fakes, rejected, kills[tier.upper()] if tier else "-"))
    base = {name: speed for name, speed, *_ in rows}
    print(f"{CORES} cores, {SECONDS:.0f} s a row, load {os.getloadavg()[0]:.1f}\n")
    print(f"| checker | executions/s | of one interpreter | of bubblewrap | fake passes of {len(programs)} "
          f"| honest rejections of {len(problems)} | kill p99 |")
    print("|---|---|---|---|---|---|---|")
    for name, speed, fakes, rejected, kill in rows:
        ratios = [speed / base["one interpreter"], speed / base["bubblewrap"]]
        print(f"| {name} | {speed:.0f} | {ratios[0]:.1f} | {ratios[1]:.1f} | {fakes} | {rejected} | {kill} |")


if __name__ == "__main__":
    main()
