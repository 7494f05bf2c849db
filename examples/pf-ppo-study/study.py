"""Is the paper right? Its methods side by side on tiny-coder, by seed (PF-PPO, arXiv 2409.06957).

    python3 examples/pf-ppo-study/study.py              # goes on where it was; takes several sittings
    python3 examples/pf-ppo-study/study.py --quick      # one seed, six methods, short runs, half an hour
    python3 examples/pf-ppo-study/study.py --report     # tables and plots of what is there

Every method begins with the same policy and the same reward model, generates the same number of responses, and is judged by
the hidden tests of held-out problems. Nothing is chosen by these: thresholds and temperatures are chosen on validation
problems, and the policy that is judged is the last one.

The methods are points of two sweeps: those that learn in the ring (online.toml) and those that learn without (offline.toml).
`sluice sweep` runs each with every seed, skips what is complete, and goes on with what was begun. One line of
docs/pf-ppo-study.jsonl is one method with one seed; what has a line is not done again, even where its runs are gone. The report
goes into docs/pf-ppo-study.md between its two marks, and beside it as SVG.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib

import report

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OFFLINE = ["SFT", "RAFT", "DPO"]
# What the recipe of a ring is told for each method. Of N = 5 responses best-random and best-worst train on two, which is what
# the other filters are set to as well; TOP, LOW and HIGH are quantiles of the scores of the first policy.
RINGS = {
    "PPO-S": "coordinator.group_size=1,coordinator.min_group=1,coordinator.batch_prompts=320",
    "PPO-M": "",
    "best-of-n": "coordinator.filtration.strategy=best-of-n",
    "best-random": "coordinator.filtration.strategy=best-random",
    "best-worst": "coordinator.filtration.strategy=best-worst",
    "power 1": "coordinator.filtration.strategy=power:1,coordinator.filtration.mode=resample-buffer:2",
    "power 2": "coordinator.filtration.strategy=power:2,coordinator.filtration.mode=resample-buffer:2",
    "power 3": "coordinator.filtration.strategy=power:3,coordinator.filtration.mode=resample-buffer:2",
    "top": "coordinator.filtration.strategy=top:TOP",
    "top-random": "coordinator.filtration.strategy=top-random:TOP",
    "top-bottom": "coordinator.filtration.strategy=top-bottom:LOW:HIGH",
}
METHODS = [*OFFLINE, *RINGS]
QUICK = [*OFFLINE, "PPO-M", "best-random", "best-worst"]
QUICK_ONLINE = ["coordinator.batches=6", "coordinator.eval.every=2", "learner.checkpoint_every=2", "stages[1].eval.max_problems=100"]
QUICK_OFFLINE = ["stages[0].best_of_n.max_prompts=384", "stages[3].eval.max_problems=100"]


class Study:
    """All that is made lies in one folder, and every command is called from there."""

    def __init__(self, options):
        self.options, self.folder = options, options.output
        first = tomllib.loads((HERE / "online.toml").read_text())["seed"]
        self.seeds = range(first, first + options.seeds)

    def call(self, *arguments):
        command = [self.options.sluice, *map(str, arguments)]
        code = subprocess.run(command, cwd=self.folder, check=False).returncode
        if code != 0:
            sys.exit(f"{' '.join(map(str, command))}\nended with {code}; the same command goes on")

    def named(self, recipe):
        """As seen from the folder, wherever the checkout is: what has been done is known again by its text."""
        return os.path.relpath(recipe, self.folder)

    def models(self):
        """Policy, reward model and problems, which all methods share."""
        self.call("run", self.named(self.options.models), "--until", "reward-model", "--resume", "--set", "output=models")

    def thresholds(self):
        """Quantiles of the scores that the first policy's responses to the validation problems have."""
        scores = self.folder / "validation-scores.jsonl"
        if not scores.exists():
            drawn = ["--n", 10, "--max-new-tokens", 96, "--input", "models/problems/validation.jsonl"]
            self.call("generate", "--model", "models/sft", *drawn, "--output", "validation.jsonl")
            partial = scores.with_suffix(".partial")
            self.call("score", "--model", "models/reward-model", "--input", "validation.jsonl", "--output", partial.name)
            partial.rename(scores)
        lines = scores.read_text(encoding="utf-8").splitlines()
        quantiles = statistics.quantiles((json.loads(line)["score"] for line in lines), n=5)
        return {"LOW": quantiles[0], "TOP": quantiles[2], "HIGH": quantiles[3]}

    def sweep(self, recipe, points, settings):
        """Every point with every seed, and a table of them."""
        if points:
            arguments = [argument for point in points for argument in ("--point", point)]
            arguments += [argument for setting in settings for argument in ("--set", setting)]
            self.call("sweep", self.named(HERE / recipe), "--seeds", len(self.seeds), "--output", "arms", *arguments)

    def work(self, methods):
        """Everything that has no line yet."""
        done = report.read(self.options.results)
        missing = [method for method in methods if any((method, seed) not in done for seed in self.seeds)]
        self.models()
        thresholds = self.thresholds()
        point = lambda method: re.sub("LOW|TOP|HIGH", lambda name: f"{thresholds[name.group()]:.4f}", f"{method}:{RINGS[method]}")  # noqa: E731
        quick = self.options.quick
        self.sweep("offline.toml", ["offline:"] if set(OFFLINE) & set(missing) else [], QUICK_OFFLINE if quick else [])
        self.gather()
        self.sweep("online.toml", [point(method) for method in RINGS if method in missing], QUICK_ONLINE if quick else [])
        self.gather()

    def gather(self):
        """Writes a line for each method and seed that is complete and has none."""
        done = report.read(self.options.results)
        for seed in self.seeds:
            for method in METHODS:
                arm = "offline" if method in OFFLINE else method.replace(" ", "-")
                folder = self.folder / f"arms/{arm}/seed-{seed}"
                if (method, seed) in done or not (folder / "stages/eval.toml").exists():
                    continue
                policy, stages = (method, report.STAGES[method]) if method in OFFLINE else ("policy", ["ring"])
                line = {"method": method, "seed": seed, **report.figures(folder, policy, stages, self.options.sluice)}
                with self.options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sluice", default=ROOT / "target/release/sluice", type=pathlib.Path)
    parser.add_argument("--output", default=ROOT / "runs/pf-ppo-study", type=pathlib.Path)
    parser.add_argument("--results", type=pathlib.Path, help="docs/pf-ppo-study.jsonl, with --quick in the output folder")
    parser.add_argument("--models", default=ROOT / "examples/tiny-coder/recipe.toml", type=pathlib.Path,
                        help="the recipe that makes policy, reward model and problems")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5, help="how many, from that of online.toml on")
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="nothing but the report")
    options = parser.parse_args()
    if options.quick:
        options.output, options.seeds = options.output.with_name(options.output.name + "-quick"), 1
    options.output, options.sluice = options.output.resolve(), options.sluice.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    docs = ROOT / "docs" if not options.quick else options.output
    options.results = options.results or docs / "pf-ppo-study.jsonl"
    study = Study(options)
    if options.report:
        study.gather()
    else:
        study.work(options.methods or (QUICK if options.quick else METHODS))
    report.write(report.read(options.results), METHODS, docs)


if __name__ == "__main__":
    main()
