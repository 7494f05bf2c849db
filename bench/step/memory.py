"""Memory of a rank at ZeRO 0 to 3 on 1, 2 and 4 ranks, against the formula.

    VENV/bin/python bench/step/memory.py [--size 6m|90m]

Ranks are threads of one process: what the process holds more than one with a network of nearly nothing, divided by the ranks.
With P parameters (policy and critic) in f32 a rank should hold, without activations, 4P of weights, 4P of gradients and 8P of
optimizer state, of which stage 1 divides the state, stage 2 the gradients too and stage 3 everything by the number of ranks.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import compare
import formula
import network


def resident(binary, folder, stage, ranks):
    """Bytes that the process holds after its second step, and its peak."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "stage.json").write_text(json.dumps({**config, "zero_stage": stage}))
    command = [binary, folder / "policy", folder / "critic", folder / "batch.jsonl", folder / "stage.json", "2", str(ranks)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    last = json.loads(output.splitlines()[-1])
    return last["memory"], last["peak"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=compare.SIZES, default="6m")
    arguments = parser.parse_args()
    binary = compare.CHECKOUT / "target/release/examples/steps"
    compare.SIZES["nothing"] = dict(vocab=4096, hidden=8, intermediate=8, layers=1, heads=1, kv_heads=1, tied=True)
    with tempfile.TemporaryDirectory() as root:
        folders = {size: pathlib.Path(root) / size for size in ("nothing", arguments.size)}
        for size, folder in folders.items():
            compare.make(folder, size, 4, 128)
        sizes = [sum(t.numel() for t in network.load(folders[arguments.size] / name)[1].values()) for name in ("policy", "critic")]
        print(f"{sum(sizes) / 1e6:.1f}M parameters in policy and critic; MB a rank: held (formula), peak")
        print("| ranks | " + " | ".join(f"ZeRO {stage}" for stage in range(4)) + " |")
        print("|---|---|---|---|---|")
        for ranks in (1, 2, 4):
            cells = []
            for stage in range(4):
                base = resident(binary, folders["nothing"], stage, ranks)
                held = resident(binary, folders[arguments.size], stage, ranks)
                own, peak = ((mine - other) / ranks / 1e6 for mine, other in zip(held, base))
                expected = formula.held(sum(sizes), stage, ranks) / 1e6
                cells.append(f"{own:.0f} ({expected:.0f}), {peak:.0f}")
            print(f"| {ranks} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
