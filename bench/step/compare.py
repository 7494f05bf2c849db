"""Step time of the learner against the same PPO step in plain PyTorch, padded and free of padding, and in TRL, by turns.

    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 numpy safetensors [transformers==5.24.0 trl==1.0.0]
    VENV/bin/python bench/step/compare.py [--size 6m|90m] [--samples N] [--rounds N] [--trl]

A ragged batch of sequences of 16 to 512 tokens, f32, one pass over one minibatch of all samples, on this machine's processors.
Prints medians and the medians of the ratios of rounds; each round runs all of them one after the other.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(CHECKOUT / "bench/reference"))

import torch  # noqa: E402

import network  # noqa: E402

SIZES = {
    "6m": dict(vocab=4096, hidden=256, intermediate=688, layers=6, heads=8, kv_heads=8, tied=True),
    "90m": dict(vocab=16384, hidden=768, intermediate=2048, layers=11, heads=12, kv_heads=12, tied=True),
}


def make(folder, size, samples, microbatch_tokens):
    """Networks, batch and configuration."""
    counts = {}
    for name, scalar in (("policy", False), ("critic", True)):
        config = network.config_of("llama", scalar=scalar, **SIZES[size])
        weights = {key: torch.randn(shape) * 0.02 if len(shape) > 1 else torch.ones(shape)
                   for key, shape in network.shapes(config).items()}
        network.save(folder / name, config, weights)
        counts[name] = sum(t.numel() for t in weights.values())
    rng = random.Random(1)
    vocab, lines, tokens = SIZES[size]["vocab"], [], 0
    for at in range(samples):
        # Lengths spread evenly over the range, in random order.
        length = 16 + round(496 * (at * 7 % samples) / max(1, samples - 1))
        prompt = rng.randint(4, min(64, length // 2))
        response = [rng.randrange(vocab) for _ in range(length - prompt)]
        flat = [-8.0] * len(response)
        lines.append({"prompt_id": at // 4, "prompt_tokens": [rng.randrange(vocab) for _ in range(prompt)],
                      "response_tokens": response, "rollout_logprobs": flat, "ref_logprobs": flat, "score": rng.gauss(0, 1)})
        tokens += length
    (folder / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({
        "ppo_epochs": 1, "minibatch_size": samples, "microbatch_tokens": microbatch_tokens, "shuffle": False,
        "policy_lr": 1e-5, "critic_lr": 1e-5, "logprob_alarm": 100.0}))
    return counts["policy"], tokens


def seconds(command):
    """Median seconds of a command's steps, without the first."""
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    steps = [json.loads(line)["seconds"] for line in output.splitlines() if line.startswith("{")]
    return statistics.median(steps[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="6m")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--microbatch-tokens", type=int, default=16384, help="the learner's own default")
    parser.add_argument("--steps", type=int, default=3, help="steps that count in each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl", action="store_true", help="also the step of TRL's experimental PPOTrainer")
    arguments = parser.parse_args()
    build = ["cargo", "build", "--release", "--workspace", "--example", "steps"]
    subprocess.run(build, cwd=CHECKOUT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", CHECKOUT / "target"))
    count = str(arguments.steps + 1)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        parameters, tokens = make(folder, arguments.size, arguments.samples, arguments.microbatch_tokens)
        ours = [str(target / "release/examples/steps"), folder / "policy", folder / "critic", folder / "batch.jsonl",
                folder / "config.json", count]
        sides = {"sluice": ours, **{kind: [sys.executable, str(HERE / "plain.py"), kind, folder, count]
                                    for kind in ("padded", "free")}}
        if arguments.trl:
            sides["TRL"] = [sys.executable, str(HERE / "trl_step.py"), folder, count]
        times = {side: [] for side in sides}
        print(f"{parameters / 1e6:.1f}M parameters, {arguments.samples} samples, {tokens} tokens, "
              f"load {os.getloadavg()[0]:.1f}", flush=True)
        for _ in range(arguments.rounds):
            for side, command in sides.items():
                times[side].append(seconds(command))
            print({side: round(found[-1], 3) for side, found in times.items()}, flush=True)
    for side in list(sides)[1:]:
        ratios = [theirs / mine for theirs, mine in zip(times[side], times["sluice"])]
        print(f"{side}: {statistics.median(times[side]):.3f} s, Sluice {statistics.median(times['sluice']):.3f} s, "
              f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
