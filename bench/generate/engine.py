"""Runs the actor's engine for the comparisons beside this file."""

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_engine(binary, folder, requests, batch, dtype, **config):
    """What the engine says of all requests; the second of two runs in one process."""
    config = json.dumps({"max_sequences": batch, "dtype": dtype, **config})
    out = subprocess.run([binary, folder, requests, config, "2"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout.splitlines()[-1])
