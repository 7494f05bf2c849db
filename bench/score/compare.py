"""Scores a second of `sluice score` against a reward model in plain PyTorch, by turns, on the same weights and sequences.

    cargo build --release -p cli
    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 numpy safetensors
    VENV/bin/python bench/score/compare.py [--sequences N] [--rounds N]

Plain PyTorch pads batches of 32: in the order of arrival, as a server gets them, and sorted by length. Lengths are those of
responses: most short, some long. Loading is counted for nobody. The scores have to agree.
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
import time

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "bench/reference"))

import torch  # noqa: E402

import network  # noqa: E402

SIZE = dict(vocab=4096, hidden=256, intermediate=688, layers=6, heads=8, kv_heads=8, tied=True)
BATCH = 32


def sequences(count):
    """Log-normal lengths around 120 tokens, 16 to 512."""
    rng = random.Random(1)
    lengths = [min(512, max(16, round(rng.lognormvariate(4.8, 0.8)))) for _ in range(count)]
    return [[rng.randrange(SIZE["vocab"]) for _ in range(length)] for length in lengths]


def sluice(folder, rows):
    """Seconds of the command, and its scores."""
    with open(folder / "in.jsonl", "w") as file:
        file.writelines(json.dumps({"id": at, "tokens": row}) + "\n" for at, row in enumerate(rows))
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", CHECKOUT / "target"))
    command = [target / "release/sluice", "score", "--model", folder / "rm", "--input", folder / "in.jsonl"]
    started = time.perf_counter()
    subprocess.run(command + ["--output", folder / "out.jsonl"], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    return seconds, [json.loads(line)["score"] for line in (folder / "out.jsonl").read_text().splitlines()]


def padded(config, weights, rows, by_length):
    """Seconds, and the scores."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at])) if by_length else range(len(rows))
    scores = [0.0] * len(rows)
    started = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(rows), BATCH):
            batch = order[at:at + BATCH]
            for row, score in zip(batch, network.score(config, weights, [rows[row] for row in batch]).tolist()):
                scores[row] = score
    return time.perf_counter() - started, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = sequences(arguments.sequences)
    tokens = sum(map(len, rows))
    seconds = {"sluice": [], "arrival": [], "sorted": []}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        config = network.config_of("llama", scalar=True, **SIZE)
        network.save(folder / "rm", config, network.random_weights(config, 1, 0.05))
        config, weights = network.load(folder / "rm", torch.float32)
        print(f"{sum(w.numel() for w in weights.values()) / 1e6:.1f}M parameters, f32, {len(rows)} sequences, {tokens} "
              f"tokens, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}", flush=True)
        padded(config, weights, rows[:BATCH], False)
        for _ in range(arguments.rounds):
            start_up, _ = sluice(folder, rows[:1])
            whole, ours = sluice(folder, rows)
            seconds["sluice"].append(whole - start_up)
            for name in ("arrival", "sorted"):
                took, theirs = padded(config, weights, rows, name == "sorted")
                seconds[name].append(took)
                worst = max(abs(a - b) for a, b in zip(ours, theirs))
                assert worst < 1e-3, f"scores differ by {worst}"
            print({name: round(found[-1], 2) for name, found in seconds.items()}, flush=True)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    print("\n| scorer | sequences/s | tokens/s | Sluice is faster by |\n|---|---|---|---|")
    for name, label in [("sluice", "Sluice, packed"), ("arrival", "PyTorch, padded, in order of arrival"),
                        ("sorted", "PyTorch, padded, sorted by length")]:
        ratio = statistics.median(theirs / mine for theirs, mine in zip(seconds[name], seconds["sluice"]))
        print(f"| {label} | {len(rows) / middle[name]:.0f} | {tokens / middle[name]:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
