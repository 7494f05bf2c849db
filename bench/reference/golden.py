"""Makes the numbers that learner/tests/core/golden.rs is compared with: run by hand, the results are checked in.

    python3 -m venv VENV && VENV/bin/pip install torch==2.11.0 numpy safetensors
    VENV/bin/python bench/reference/golden.py
"""

import json
import pathlib
import shutil

from safetensors.torch import save_file

import cases
import network
import supervised

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "learner/tests/golden"


def main():
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    models = {net: cases.models(net, seed) for seed, net in enumerate(cases.NETWORKS)}
    rows = {}
    for net, (policy, critic) in models.items():
        network.save(GOLDEN / net / "policy", *policy)
        network.save(GOLDEN / net / "critic", *critic)
        for name, turns in cases.BATCHES.items():
            rows[net, name] = cases.batch(policy, seed=7, turns=turns)
            lines = "".join(json.dumps(row) + "\n" for row in rows[net, name])
            (GOLDEN / net / f"{name}.jsonl").write_text(lines)
    numbers = {}
    for case in cases.CASES:
        found = cases.expected(case, *models[case["net"]], rows[case["net"], case["batch"]])
        numbers.update({f"{case['name']}.{key}": value.float().contiguous() for key, value in found.items()})
    supervised.golden(GOLDEN, models, numbers)
    save_file(numbers, GOLDEN / "expected.safetensors")
    (GOLDEN / "cases.json").write_text(json.dumps(cases.CASES, indent=1) + "\n")


if __name__ == "__main__":
    main()
