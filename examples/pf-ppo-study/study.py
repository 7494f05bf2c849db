"""Is the paper right? Its methods side by side on tiny-coder, by seed (PF-PPO, arXiv 2409.06957).

    python3 examples/pf-ppo-study/study.py              # goes on where it was; takes several sittings
    python3 examples/pf-ppo-study/study.py --quick      # one seed, five methods, short runs, half an hour
    python3 examples/pf-ppo-study/study.py --report     # tables and plots of what is there

Every method begins with the same policy and the same reward model, generates the same number of responses, and is judged by
the hidden tests of held-out problems. Nothing is chosen by these: thresholds and temperatures are chosen on validation
problems, and the policy that is judged is the last one.

One line of docs/pf-ppo-study.jsonl is one method with one seed; what has a line is not done again. The report goes into
docs/pf-ppo-study.md between its two marks, and beside it as SVG.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
import tomllib

import report

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Recipes are named from the checkout's root, wherever that is: what has been done is known again by its text.
ARM = "examples/pf-ppo-study/arm.toml"
SEEDS = [101, 102, 103, 104, 105]
SAMPLING = "{max_new_tokens = 96}"
# What a ring is told for each method. Of N = 5 responses best-random and best-worst train on two, which is what the other
# filters are set to as well; TOP, LOW and HIGH are quantiles of the scores of the first policy.
RINGS = {
    "PPO-S": ["coordinator.group_size=1", "coordinator.min_group=1", "coordinator.batch_prompts=320"],
    "PPO-M": [],
    "best-of-n": ["coordinator.filtration.strategy=best-of-n"],
    "best-random": ["coordinator.filtration.strategy=best-random"],
    "best-worst": ["coordinator.filtration.strategy=best-worst"],
    "power 1": ["coordinator.filtration.strategy=power:1", "coordinator.filtration.mode=resample-buffer:2"],
    "power 2": ["coordinator.filtration.strategy=power:2", "coordinator.filtration.mode=resample-buffer:2"],
    "power 3": ["coordinator.filtration.strategy=power:3", "coordinator.filtration.mode=resample-buffer:2"],
    "top": ["coordinator.filtration.strategy=top:TOP"],
    "top-random": ["coordinator.filtration.strategy=top-random:TOP"],
    "top-bottom": ["coordinator.filtration.strategy=top-bottom:LOW:HIGH"],
}
METHODS = ["SFT", "RAFT", "DPO", *RINGS]
QUICK = ["SFT", "RAFT", "PPO-M", "best-random", "best-worst"]


class Study:
    def __init__(self, options):
        self.sluice = options.sluice
        self.output = options.output.resolve()
        self.results = options.results
        arm = tomllib.loads((ROOT / ARM).read_text())["coordinator"]
        batches = 6 if options.quick else arm["batches"]
        # Those of a ring, for methods without one.
        self.prompts = arm["batch_prompts"] * batches
        quick = [f"coordinator.batches={batches}", "coordinator.eval.every=2", "learner.checkpoint_every=2"]
        self.settings = quick if options.quick else []
        self.most = 100 if options.quick else 400
        self.done = report.read(self.results)

    def run(self, recipe, *arguments):
        """A recipe; one that was interrupted goes on."""
        command = [self.sluice, "run", recipe, "--resume", *map(str, arguments)]
        finished = subprocess.run(command, cwd=ROOT, check=False)
        if finished.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\nended with {finished.returncode}; the same command goes on")

    def models(self):
        """Policy, reward model and problems, which all methods share."""
        recipe = "examples/tiny-coder/recipe.toml"
        self.run(recipe, "--until", "reward-model", "--set", f"output={self.output / 'models'}")

    def eval_stage(self, folder, problems, policies, n=5):
        named = ", ".join(f'{{name = "{name}", model = "{model}"}}' for name, model in policies)
        models = self.output / "models"
        return (
            f'{{name = "eval", eval = {{problems = "{models}/problems/{problems}.jsonl", max_problems = {self.most}, '
            f'validation = "{models}/problems/validation.jsonl", temperatures = [0.2, 0.6, 1.0], policies = [{named}], '
            f'reward_model = "{models}/reward-model", reference = "{models}/sft", n = {n}, pass_at = [{n}], '
            f'output = "{folder}/eval", sampling = {SAMPLING}}}}}'
        )

    def stages(self, method, seed, folder):
        """What a method does, and the policies that are judged, the last of which is its result."""
        models = self.output / "models"
        sft = f"{models}/sft"
        if method == "SFT":
            return [], [("SFT", sft)]
        if method == "RAFT":
            # The best response to each prompt is learned from twice.
            best = (
                f'{{name = "best-of-n", best_of_n = {{model = "{sft}", reward_model = "{models}/reward-model", '
                f'data = "{models}/problems/train.jsonl", max_prompts = {self.prompts}, n = 5, seed = {seed}, '
                f'sampling = {SAMPLING}, output = "{folder}/best"}}}}'
            )
            tuned = (
                f'{{name = "raft", sft = {{model = "{sft}", data = "{folder}/best/demonstrations.jsonl", '
                f'training = {{epochs = 2, batch_size = 32, seed = {seed}}}, optimizer = {{lr = 3e-4, warmup_steps = 5}}, '
                f'output = "{folder}/policy"}}}}'
            )
            return [best, tuned], [("RAFT", f"{folder}/policy")]
        if method == "DPO":
            # On the reward model's own pairs, as the paper's.
            tuned = (
                f'{{name = "dpo", dpo = {{model = "{sft}", data = "{models}/preferences/train.jsonl", beta = 0.1, '
                f'training = {{epochs = 1, batch_size = 32, seed = {seed}}}, optimizer = {{lr = 1e-4, warmup_steps = 10}}, '
                f'output = "{folder}/policy"}}}}'
            )
            return [tuned], [("DPO", f"{folder}/policy")]
        return [f'{{name = "ring", ring = {{output = "{folder}/policy"}}}}'], [(method, f"{folder}/policy")]

    def thresholds(self):
        """Quantiles of the scores that the first policy's responses to the validation problems have."""
        folder = self.output / "validation"
        folder.mkdir(exist_ok=True)
        stage = self.eval_stage(folder, "validation", [("SFT", f"{self.output}/models/sft")], 10)
        self.run(ARM, "--set", f"output={folder}", "--set", f"stages=[{stage}]")
        lines = (folder / "eval/SFT-samples.jsonl").read_text().splitlines()
        quantiles = statistics.quantiles((json.loads(line)["score"] for line in lines), n=5)
        return {"LOW": quantiles[0], "TOP": quantiles[2], "HIGH": quantiles[3]}

    def arm(self, method, seed, thresholds):
        """One method with one seed, as a line of results."""
        folder = self.output / f"{method.replace(' ', '-')}-{seed}"
        # The recipe sees the models from here.
        folder.mkdir(exist_ok=True)
        stages, policies = self.stages(method, seed, folder)
        stages.append(self.eval_stage(folder, "held_out", policies))
        settings = [f"output={folder}", f"seed={seed}", f"stages=[{', '.join(stages)}]", *self.settings]
        for setting in RINGS.get(method, []):
            settings.append(re.sub("LOW|TOP|HIGH", lambda name: f"{thresholds[name.group()]:.4f}", setting))
        began = time.monotonic()
        self.run(ARM, *(argument for setting in settings for argument in ("--set", setting)))
        found = report.figures(folder, policies[-1][0], time.monotonic() - began, self.sluice)
        return {"method": method, "seed": seed, **found}

    def work(self, methods, seeds):
        self.models()
        thresholds = self.thresholds()
        for seed in seeds:
            for method in methods:
                if (method, seed) in self.done:
                    continue
                line = self.arm(method, seed, thresholds)
                with self.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sluice", default=ROOT / "target/release/sluice", type=pathlib.Path)
    parser.add_argument("--output", default=ROOT / "runs/pf-ppo-study", type=pathlib.Path)
    parser.add_argument("--results", type=pathlib.Path, help="docs/pf-ppo-study.jsonl, with --quick in the output folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="nothing but the report")
    options = parser.parse_args()
    if options.quick:
        options.output = options.output.with_name(options.output.name + "-quick")
    options.output.mkdir(parents=True, exist_ok=True)
    docs = ROOT / "docs" if not options.quick else options.output
    options.results = options.results or docs / "pf-ppo-study.jsonl"
    if not options.report:
        methods = options.methods or (QUICK if options.quick else METHODS)
        Study(options).work(methods, SEEDS[:1] if options.quick else options.seeds)
    report.write(report.read(options.results), METHODS, docs)


if __name__ == "__main__":
    main()
