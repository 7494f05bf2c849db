"""Measures the policies of code-interpreter on held-out problems, and prints the table.

    python3 measure.py target/release/sluice [runs/code-interpreter]

Each policy answers each problem four times at each of some temperatures, with the interpreter, in a ring that learns nothing
(measure.toml). A policy is only better than another where it is better at the temperature that suits each: the one at which it is
right most often on validation problems, whose products are no part of the figures (of sums there are a hundred, in both). Intervals
are 95 %, over problems, of which the four answers are no independent draws.
"""

import json
import math
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
POLICIES = {"SFT": "sft", "GRPO": "policy"}
# A ring does not train on greedy responses. At this temperature they are, but for tokens that are as likely as each other.
GREEDY = 0.01
# Other temperatures than 1 are for the choice.
TEMPERATURES = (GREEDY, 0.5, 1.0, 1.5, 2.0)
ANSWERS = 4
KINDS = ("small", "large")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(program, run, policy, temperature):
    """What a policy says to each problem at a temperature: drawn once, kept in a folder of the run."""
    output = run / "measured" / f"{policy}-{temperature}"
    samples = output / "ring/samples.jsonl"
    if not (output / "policy").exists():
        asked = run / "measured/asked.jsonl"
        count = len(lines(asked))
        settings = {"output": output, "coordinator.data.path": asked, "coordinator.batch_prompts": count,
                    "coordinator.samples.per_batch": count * ANSWERS, "coordinator.group_size": ANSWERS,
                    "coordinator.sampling.temperature": temperature, "learner.policy": run / policy,
                    "learner.ppo.minibatch_size": count * ANSWERS}
        command = [program, "run", HERE / "measure.toml", "--resume"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
    return lines(samples)


def figures(problems, samples, wanted):
    """Of the products of a set, and all sums: by problem the shares of answers that are right, that used the interpreter, and their tokens."""
    found = {}
    for sample in samples:
        question = re.search(r"user: (\S+)\?", sample["prompt"]).group(1)
        if problems[question]["kind"] == "small" or problems[question]["set"] == wanted:
            right, used = sample["scorers"]["numeric-match"], float(sample["turns"] > 1)
            found.setdefault(question, []).append((right, used, float(sample["response_tokens"])))
    return {question: [sum(column) / len(column) for column in zip(*rows)] for question, rows in found.items()}


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def interval(values):
    """Half of the 95 % interval of a mean."""
    values = list(values)
    middle = mean(values)
    return 1.96 * math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def worth(by_problem, kind_of):
    """How often it is right, where it is asked for both kinds equally often."""
    return mean(mean(values[0] for question, values in by_problem.items() if kind_of[question] == kind) for kind in KINDS)


def row(name, how, by_problem, kind_of):
    """A line of the table."""
    def of(kind, column):
        return [values[column] for question, values in by_problem.items() if kind in (None, kind_of[question])]

    def percent(values):
        return f"{100 * mean(values):.1f} ± {100 * interval(values):.1f}"

    cells = [name, how, *(percent(of(kind, 0)) for kind in (None, *KINDS)), *(percent(of(kind, 1)) for kind in KINDS),
             f"{mean(of(None, 2)):.1f}"]
    return "| " + " | ".join(cells) + " |"


def main():
    program, run = sys.argv[1], pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "runs/code-interpreter")
    rows = lines(run / "problems/validation.jsonl") + lines(run / "problems/held_out.jsonl")
    problems = {problem["messages"][0]["content"].rstrip("?"): problem for problem in rows}
    (run / "measured").mkdir(exist_ok=True)
    (run / "measured/asked.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems.values()))
    kind_of = {question: problem["kind"] for question, problem in problems.items()}
    print("| policy | drawn | right, % | of sums | of products | interpreter for sums, % | for products | tokens |")
    print("|---|---|---|---|---|---|---|---|")
    for name, folder in POLICIES.items():
        samples = {temperature: answers(program, run, folder, temperature) for temperature in TEMPERATURES}
        best = max(TEMPERATURES, key=lambda temperature: worth(figures(problems, samples[temperature], "validation"), kind_of))
        for how, temperature in (("greedily", GREEDY), ("at 1.0", 1.0), (f"at its best, {best}", best)):
            print(row(name, how, figures(problems, samples[temperature], "held-out"), kind_of), flush=True)


if __name__ == "__main__":
    main()
