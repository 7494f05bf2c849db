"""Which share of the groups carries signal: prompts that VADE selects against all of them in turn.

    python3 bench/vade/compare.py target/release/sluice OUTPUT --task sums|tiny-coder [--seeds 5] [--prompts 256]

Trains the policy to begin with (on sums of two numbers, or on the problems of examples/tiny-coder), then GRPO through the real ring, once with `schedule.order =
"epochs"` and once with `"vade"` for each seed: the same prompts, the same number of batches and responses. A group carries
signal when its responses did not all get the same score. Prints the share over the first and the second half of the batches,
and the mean difference over seeds with its 95 % interval (Student's t). Needs nothing but Python's standard library.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# What each task is scored by, and how long its responses are.
TASKS = {
    "sums": ["reward_server.scorers=[{kind='numeric-match', field='answer'}]", "coordinator.sampling.max_new_tokens=8"],
    "tiny-coder": [
        "reward_server.scorers=[{kind='unit-tests', rule='all'}]",
        "reward_server.sandbox.grader.minimum_tier='b'",
        "coordinator.sampling.max_new_tokens=96",
    ],
}
ORDERS = ["epochs", "vade"]
# Student's t, 97.5 %, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def run(binary, recipe, settings):
    command = [binary, "run", str(HERE / recipe), "--resume"]
    for setting in settings:
        command += ["--set", setting]
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")


def shares(output):
    """Share of groups with signal, in the first and the second half of the batches."""
    steps = [json.loads(line) for line in open(output / "ring" / "steps.jsonl")]
    halves = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    return [
        1 - sum(step["without_signal"] * step["groups"] for step in half) / sum(step["groups"] for step in half)
        for half in halves
    ]


def interval(values):
    """Mean and half of the width of its 95 % interval."""
    width = STUDENT[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), width


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--task", choices=sorted(TASKS), default="tiny-coder")
    asked = parser.parse_args()
    output = asked.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    models, rows = output / "models", output / "data.jsonl"
    models.mkdir(exist_ok=True)
    if asked.task == "sums":
        sums = [(a, b) for a in range(32) for b in range(10)]
        lines = [{"prompt": f"{a} plus {b} is", "response": f" {a + b}.", "answer": str(a + b)} for a, b in sums]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        rows = models / "problems" / "train.jsonl"
    run(asked.binary, f"{asked.task}.toml", [f"output={models}"])
    data = output / "prompts.jsonl"
    chosen = open(rows).read().splitlines(keepends=True)
    random.Random(1).shuffle(chosen)
    data.write_text("".join(chosen[: asked.prompts]))
    found = {order: [] for order in ORDERS}
    for seed in range(1, asked.seeds + 1):
        for order in ORDERS:
            folder = output / f"{order}-{seed}"
            settings = [f"output={folder}", f"seed={seed}", f"coordinator.schedule.order={order}"]
            settings += [f"coordinator.data.path={data}", f"learner.policy={models / 'sft'}", *TASKS[asked.task]]
            run(asked.binary, "recipe.toml", settings)
            found[order].append(shares(folder))
            print(f"seed {seed}, {order}: {found[order][-1][0]:.3f} then {found[order][-1][1]:.3f}", flush=True)
    for half, name in enumerate(["first half", "second half"]):
        of = {order: [share[half] for share in found[order]] for order in ORDERS}
        means = ", ".join("{} {:.3f} ± {:.3f}".format(order, *interval(of[order])) for order in ORDERS)
        mean, width = interval([b - a for a, b in zip(of["epochs"], of["vade"])])
        print(f"{name}: {means}; vade - epochs {mean:+.3f} ± {width:.3f}")


if __name__ == "__main__":
    main()
