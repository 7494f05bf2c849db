#!/usr/bin/env python3
"""Journeys of a newcomer: what README, --help and messages lead to, timed.

    python3 bench/journeys.py OUT --clone URL [--coder]              # from nothing: git clone, make build, the journeys
    python3 bench/journeys.py OUT --sluice target/release/sluice     # the journeys alone, with a binary

With --clone everything is done in OUT/clone, where no variable of ours leads elsewhere: libtorch is brought by `make build`
as for everybody; URL may be a folder, such as this checkout, of which the last commit counts. With both, the binary takes the
place of the build.

A small policy is trained first, as `examples/own-model` does; `--coder` also trains that of examples/tiny-coder up to
supervised fine-tuning (about three minutes), which can code. Each journey begins with what `sluice init` writes, or what --help
says. A message is a refusal (exit code 2); the next try changes only keys that the message names, which is asserted. Writes to
standard output, in Markdown, a table and the messages that were needed, and everything that was said to OUT.
"""

import argparse
import csv
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request

REWARD = """def reward(prompt, response, answer, **fields):
    return 1.0 if answer in response.split() or answer + "." in response else -0.01 * len(response)
"""
SMALL = ["coordinator.batches=2", "coordinator.batch_prompts=8", "coordinator.sampling.max_new_tokens=12",
         "learner.ppo.minibatch_size=8", "learner.ppo.policy_lr=1e-4", "learner.checkpoint_every=1"]


# What a developer's shell may say and a newcomer's does not.
OURS = ["LIBTORCH", "LD_LIBRARY_PATH", "CARGO_TARGET_DIR", "CARGO_INCREMENTAL", "PYTHONPATH", "RUSTFLAGS"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OURS and not name.startswith("SLUICE_")}


class Journey:
    """What was tried, and what came of it."""

    def __init__(self, sluice, out, name):
        self.sluice, self.folder, self.name = sluice, out / name.replace(" ", "-").replace(",", ""), name
        self.folder.mkdir(parents=True)
        self.messages, self.seconds, self.command = [], None, ""

    def say(self, text):
        with (self.folder / "said.txt").open("a") as log:
            log.write(text)

    def run(self, arguments, first="", settings=()):
        """Runs a command. Its exit code, what it said, and the seconds to the first line with `first`."""
        command = [str(self.sluice), *arguments]
        for setting in settings:
            command += ["--set", setting]
        self.say(f"$ {' '.join(command)}\n")
        began, seconds, said = time.monotonic(), None, ""
        process = subprocess.Popen(command, cwd=self.folder, env=ENVIRONMENT, text=True, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in process.stdout:
            said += line
            if seconds is None and first and re.search(first, line):
                seconds = time.monotonic() - began
        code = process.wait()
        self.say(said + f"[exit code {code} after {time.monotonic() - began:.1f} s]\n\n")
        return code, said, seconds if first else time.monotonic() - began

    def check(self, commands, folder, variables=()):
        """What other tools make of what a command has written; their time is the journey's."""
        began = time.monotonic()
        for command in commands:
            done = subprocess.run(command, cwd=self.folder / folder, env={**ENVIRONMENT, **dict(variables)}, text=True,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            self.say(f"$ {shlex.join(command)}\n{done.stdout}[exit code {done.returncode}]\n\n")
            assert done.returncode == 0, f"{self.name}: {shlex.join(command)}\n{done.stdout}"
        self.seconds += time.monotonic() - began

    def until_it_runs(self, arguments, answers, first, settings=()):
        """Runs a command; where it is refused, answers what the message names, and tries again."""
        self.command = " ".join(arguments)
        settings, answers = list(settings), dict(answers)
        for _ in range(5):
            code, said, seconds = self.run(arguments, first, settings)
            if code != 2:
                assert code == 0 and seconds is not None, f"{self.name}: exit code {code}\n{said}"
                self.seconds = seconds
                return said
            self.messages.append(said)
            named = [key for key in answers if key in said]
            assert named, f"{self.name}: refused, and no key that it names can be answered\n{said}"
            settings += [f"{key}={answers.pop(key)}" for key in named]
        raise AssertionError(f"{self.name}: refused five times")


def write_data(folder):
    """Prompts with answers, preference pairs, a reward function, the same prompts as CSV."""
    (folder / "data").mkdir()
    prompts, pairs = [], []
    for number in range(64):
        a, b = number % 8, number // 8
        prompt = f"{a} plus {b} is"
        prompts.append({"prompt": prompt, "answer": str(a + b)})
        pairs.append({"prompt": prompt, "chosen": f" {a + b}.", "rejected": f" {a + b + 1}."})
    for name, rows in [("prompts", prompts), ("pairs", pairs), ("pairs-eval", pairs[::4])]:
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    with (folder / "questions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        rows.writerows([row["prompt"], row["answer"]] for row in prompts[:16])


def from_a_clone(url, out, with_build):
    """Gets and builds it as README says. The checkout, its binary, and the seconds of each command."""
    checkout, seconds = out / "clone", {}
    commands = [["git", "clone", "--quiet", url, str(checkout)]] + ([["make", "build"]] if with_build else [])
    with (out / "build.txt").open("w") as log:
        for command in commands:
            began = time.monotonic()
            folder = checkout if command[0] == "make" else None
            code = subprocess.run(command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=subprocess.STDOUT, check=False).returncode
            assert code == 0, f"{shlex.join(command)} ended with {code}: {log.name}"
            seconds[" ".join(command[:2])] = time.monotonic() - began
    return checkout, checkout / "target/release/sluice", seconds


def needed(said):
    """The refusal itself, without what went before it."""
    lines = said.strip().splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith(("sluice", "error:"))), 0)
    return "\n".join(lines[first:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--clone", metavar="URL")
    parser.add_argument("--sluice", type=pathlib.Path)
    parser.add_argument("--coder", action="store_true")
    options = parser.parse_args()
    if not options.clone and not options.sluice:
        parser.error("give --clone, --sluice, or both")
    out = options.out.resolve()
    checkout, sluice, built = pathlib.Path(__file__).resolve().parent.parent, None, {}
    out.mkdir(parents=True)
    if options.clone:
        checkout, sluice, built = from_a_clone(options.clone, out, with_build=not options.sluice)
    sluice = options.sluice.resolve() if options.sluice else sluice
    done = []

    def journey(name):
        one = Journey(sluice, out, name)
        write_data(one.folder)
        done.append(one)
        return one

    # The first is README's: a model of one's own, from nothing.
    first = journey("own model")
    first.until_it_runs(["run", str(checkout / "examples/own-model/recipe.toml")], {}, r"^batch \d+/")
    model = first.folder / "runs/own-model/model"

    one = journey("GRPO, reward in Python")
    one.run(["init", "grpo"])
    one.until_it_runs(["run", "recipe.toml"], {"learner.policy": model}, r"^batch \d+/", SMALL)

    grpo, one = one, journey("the same run, extended")
    one.folder = grpo.folder
    more = [*SMALL[1:], "coordinator.batches=4", f"learner.policy={model}"]
    one.until_it_runs(["run", "recipe.toml", "--resume"], {}, r"^batch [34]/", more)

    one = journey("reward model")
    (one.folder / "rm.toml").write_text(f"model = '{model}'\ndata = 'data/pairs.jsonl'\noutput = 'reward-model'\n")
    one.until_it_runs(["train-rm", "--config", "rm.toml"], {}, r"accuracy|pairs|steps")
    reward_model = one.folder / "reward-model"

    one = journey("PF-PPO, reward model")
    one.run(["init", "pf-ppo"])
    code, said, _ = one.run(["run", "recipe.toml"], settings=SMALL)
    for key in ["learner.policy", "learner.critic", "reward_server.reference.model", "scorers[0].model"]:
        assert code == 2 and key in said, said
    one.messages.append(said)
    recipe = one.folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("models/reward-model", str(reward_model)).replace("models/sft", str(model)))
    one.until_it_runs(["run", "recipe.toml"], {}, r"^batch \d+/", SMALL)

    one = journey("DPO")
    one.run(["init", "dpo"])
    code, said, _ = one.run(["run", "recipe.toml"])
    assert code == 2 and "models/sft" in said, said
    one.messages.append(said)
    recipe = one.folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("models/sft", str(model)))
    one.until_it_runs(["run", "recipe.toml"], {}, r"is complete")

    if options.coder:
        made = Journey(sluice, out, "the coder")
        coder = str(checkout / "examples/tiny-coder/recipe.toml")
        code, said, _ = made.run(["run", coder, "--until", "sft"])
        assert code == 0, said
        problems = made.folder / "runs/tiny-coder/problems"
        one = journey("code with tests")
        one.run(["init", "code"])
        answers = {"learner.policy": made.folder / "runs/tiny-coder/sft",
                   "coordinator.data.path": problems / "train.jsonl"}
        settings = [setting for setting in SMALL if "max_new_tokens" not in setting]
        settings += ["coordinator.sampling.max_new_tokens=192", "reward_server.sandbox.extract=whole"]
        one.until_it_runs(["run", "recipe.toml"], answers, r"^batch \d+/", settings)

    one = journey("mathematics, GSM8K names")
    one.until_it_runs(["eval", "--model", str(model), "--scorer", "numeric-match", "--field", "answer",
                       "--column", "prompt=question", "--problems", "questions.csv", "--max-new-tokens", "12"], {}, r"%")

    one = journey("OpenAI server")
    one.command = "serve --model MODEL"
    began = time.monotonic()
    command = [str(sluice), "serve", "--model", str(model), "--port", "0", "--served-model-name", "tiny"]
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as server:
        address = next(found[1] for line in server.stdout if (found := re.search(r"(127\.0\.0\.1:\d+)", line)))
        body = json.dumps({"model": "tiny", "prompt": "1 plus 2 is", "max_tokens": 8}).encode()
        request = urllib.request.Request(f"http://{address}/v1/completions", body,
                                         {"content-type": "application/json"})
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        one.seconds = time.monotonic() - began
        one.say(json.dumps(answer))
        server.terminate()

    one = journey("ablation")
    one.run(["init", "grpo"])
    settings = [*SMALL, f"learner.policy={model}", "coordinator.filtration.strategy=none,best-worst"]
    one.until_it_runs(["sweep", "recipe.toml"], {}, r"best-worst.*\d", settings)

    # To a cluster: what is rendered is what its tools take, as far as they are here.
    one = journey("to Slurm")
    one.run(["init", "grpo"])
    one.until_it_runs(["render", "slurm", "recipe.toml", "--output", "my-run-slurm", "--partition", "cpu"], {}, "",
                      [f"learner.policy={model}"])
    one.check([["bash", "-n", script] for script in ["ring.sbatch", "actors.sbatch", "member.sh"]], "my-run-slurm")
    if shutil.which("sbatch"):
        one.check([["sbatch", "--test-only", "ring.sbatch"]], "my-run-slurm")

    one = journey("to Kubernetes")
    one.run(["init", "grpo"])
    arguments = ["--output", "my-run-k8s", "--image", "REGISTRY/sluice:0.1.0", "--volume-claim", "shared"]
    one.until_it_runs(["render", "k8s", "recipe.toml", *arguments], {}, "", [f"learner.policy={model}"])
    if (checkout / ".deps/kubernetes").exists():
        files = [path.name for path in (one.folder / "my-run-k8s").glob("*.yaml") if path.name != "kustomization.yaml"]
        validate = [sys.executable, "-m", "kubernetes_validate", "--strict", "--kubernetes-version"]
        one.check([[*validate, release, *files] for release in ["1.28", "1.37"]], "my-run-k8s",
                  {"PYTHONPATH": str(checkout / ".deps/kubernetes")})
    if shutil.which("kubectl"):
        one.check([["kubectl", "kustomize", "."]], "my-run-k8s")

    print("| journey | command | messages | to the first result |\n|---|---|---|---|")
    for command, seconds in built.items():
        print(f"| from nothing | `{command}` | 0 | {seconds / 60:.1f} min |")
    for one in done:
        command = one.command.replace(str(checkout) + "/", "").replace(str(model), "MODEL")
        print(f"| {one.name} | `sluice {command}` | {len(one.messages)} | {one.seconds:.1f} s |")
    print("\nWhat was said, and was enough to go on:")
    for one in done:
        for said in one.messages:
            said = needed(said).replace(str(one.folder), ".").replace(str(out), "OUT")
            print(f"\n{one.name}:\n\n```text\n{said}\n```")


if __name__ == "__main__":
    sys.exit(main())
