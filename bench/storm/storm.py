"""SIGKILL and SIGSTOP at random over all roles of a running ring, against the same run undisturbed.

    python3 bench/storm/storm.py target/release/sluice OUTPUT [--signals 200] [--batches 700] [--seed 7]

Runs bench/storm/recipe.toml twice, once in peace. The second run gets a signal every second or so: half are SIGKILL, half
SIGSTOP for 0.2 to 4 seconds, each for a role by lot: coordinator, learner, three actors, two reward servers. Ends with 1
unless both runs trained every batch, the accounts balance, and the final weights are the same, byte for byte. Nothing but
Python's standard library is needed.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

RECIPE = pathlib.Path(__file__).parent / "recipe.toml"
RUN_TIMEOUT_SECONDS = 3600


def arguments(description):
    """A parser of what both scripts are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("output", type=pathlib.Path)
    return parser


def start(binary, output, batches, settings=()):
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "data.jsonl", "w") as data:
        for a in range(16):
            for b in range(8):
                line = {"prompt": f"{a} plus {b} is", "response": f" {a + b}."}
                data.write(json.dumps(line) + "\n")
    command = [binary, "run", str(RECIPE), "--resume", "--set", f"output={output}"]
    for setting in [f"coordinator.batches={batches}", *settings]:
        command += ["--set", setting]
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    with open(output / "log", "w") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=environment)


def roles(output):
    """Process ids by role."""
    found = subprocess.run(["pgrep", "-af", f"{output}/ring/config"], capture_output=True, text=True).stdout
    matches = (re.match(r"(\d+) .*?/config/([a-z0-9-]+)\.toml", line) for line in found.splitlines())
    return {match[2]: int(match[1]) for match in matches if match}


def disturb(process, output, signals, draw):
    """Sends the signals, as long as the run runs; which role got which."""
    sent = collections.Counter()
    while process.poll() is None and sent.total() < signals:
        time.sleep(draw.uniform(0.3, 1.0))
        running = roles(output)
        if "first prompts leased" not in (output / "log").read_text() or not running:
            continue
        name = draw.choice(sorted(running))
        kind, pause = draw.choice(["SIGKILL", "SIGSTOP"]), draw.uniform(0.2, 4)
        try:
            os.kill(running[name], getattr(signal, kind))
            if kind == "SIGSTOP":
                time.sleep(pause)
                os.kill(running[name], signal.SIGCONT)
            sent[f"{kind} {name}"] += 1
        except ProcessLookupError:
            pass
    return sent


def end(process, output, began):
    """Waits for the run; what it came to."""
    code = process.wait(timeout=RUN_TIMEOUT_SECONDS)
    status = json.loads((output / "ring" / "status.json").read_text())
    steps = [json.loads(line) for line in open(output / "ring" / "steps.jsonl")]
    account = status["account"]
    return {
        "code": code,
        "seconds": round(time.monotonic() - began, 1),
        "batches": [step["batch"] for step in steps],
        "unaccounted": account["issued"] - account["in_flight"] - sum(account["endings"].values()),
        "endings": account["endings"],
    }


def main():
    parser = arguments(__doc__)
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--batches", type=int, default=700)
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    results = {}
    for name, signals in [("peace", 0), ("storm", asked.signals)]:
        output = (asked.output / name).resolve()
        began = time.monotonic()
        process = start(asked.binary, output, asked.batches)
        sent = disturb(process, output, signals, random.Random(asked.seed)) if signals else {}
        results[name] = end(process, output, began)
        print(name, {key: value for key, value in results[name].items() if key != "batches"})
        print("  signals:", sum(sent.values()), dict(sent))
    every = list(range(1, asked.batches + 1))
    faults = [
        f"{name}: {what}"
        for name, result in results.items()
        for what, is_wrong in [
            (f"ended with {result['code']}", result["code"] != 0),
            ("a batch is missing or there twice", result["batches"] != every),
            (f"{result['unaccounted']} attempts are unaccounted for", result["unaccounted"] != 0),
        ]
        if is_wrong
    ]
    weights = [(asked.output / name / "policy" / "model.safetensors").read_bytes() for name in results]
    if weights[0] != weights[1]:
        faults.append("the final weights differ")
    print("\n".join(faults) or "the same weights, byte for byte")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
