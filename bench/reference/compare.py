"""Compares `sluice replay` with the reference on fresh random batches, configurations and numbers of ranks.

    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 numpy safetensors
    cargo build --release -p cli
    VENV/bin/python bench/reference/compare.py [--rounds N] [--seed S] [--sluice PATH]

Each round draws a network, a ragged batch and a case of cases.py, and runs it on 1, 2 or 4 ranks at a random ZeRO stage with
random micro-batches. Gradients must agree to 1e-5 of their length, updates after several optimizer steps to 1e-3.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import cases
import network

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCES = {"gradient": 1e-5, "update": 1e-3}


def toml(value):
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def replay(sluice, folder, config, ranks, temperature):
    """Runs Sluice's step; returns the folder it wrote."""
    lines = [f"{key} = {toml(value)}" for key, value in config.items()]
    (folder / "ppo.toml").write_text("\n".join(lines) + "\n")
    command = [sluice, "replay", "--policy", folder / "policy", "--critic", folder / "critic", "--batch",
               folder / "batch.jsonl", "--config", folder / "ppo.toml", "--output", folder / "out", "--ranks", str(ranks),
               "--temperature", str(temperature)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "out"


def apart(expected, start, out, scale):
    """Length of the difference over the length of what was expected."""
    ends = {"policy": network.load(out / "policy")[1]}
    if any(key.startswith("critic.") for key in expected):
        ends["critic"] = network.load(out / "critic")[1]
    difference = length = 0.0
    for key, wanted in expected.items():
        model, name = key.split(".", 1)
        found = (ends[model][name] - start[model][name]) * scale
        difference += float((found - wanted).pow(2).sum())
        length += float(wanted.pow(2).sum())
    return (difference / length) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--sluice", default=str(CHECKOUT / "target/release/sluice"))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    print(f"seed {arguments.seed}")
    worst = {kind: 0.0 for kind in TOLERANCES}
    for number in range(arguments.rounds):
        case = dict(rng.choice(cases.CASES), net=rng.choice(list(cases.NETWORKS)))
        policy, critic = cases.models(case["net"], rng.randrange(10**6))
        rows = cases.batch(policy, rng.randrange(10**6), samples=rng.randrange(3, 24), turns=cases.BATCHES[case["batch"]])
        ranks, stage, most = rng.choice([1, 2, 4]), rng.randrange(4), rng.choice([1, 20, 60, 8192])
        config = dict(case["config"], zero_stage=stage, microbatch_tokens=most, recompute=rng.random() < 0.5)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            network.save(folder / "policy", *policy)
            network.save(folder / "critic", *critic)
            (folder / "batch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            out = replay(arguments.sluice, folder, config, ranks, case.get("temperature", 1.0))
            expected = cases.expected(case, policy, critic, rows)
            scale = -1 / cases.GRADIENT_SCALE if case["kind"] == "gradient" else 1.0
            found = apart(expected, {"policy": policy[1], "critic": critic[1]}, out, scale)
        worst[case["kind"]] = max(worst[case["kind"]], found)
        print(f"{number:3} {case['name']:<40}{case['net']:<7}{len(rows):3} samples, {ranks} ranks, ZeRO {stage}, "
              f"{most:5} tokens: {found:.1e}", flush=True)
    print("worst", {kind: f"{value:.1e}" for kind, value in worst.items()}, "allowed", TOLERANCES)
    sys.exit(any(worst[kind] >= TOLERANCES[kind] for kind in TOLERANCES))


if __name__ == "__main__":
    main()
