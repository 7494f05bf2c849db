"""Tokens per second of the actor's engine on a GPU, in bf16, against what its memory allows and transformers' `generate`.

    setup/install.sh cuda
    LIBTORCH=$PWD/.deps/cuda/torch cargo build --release -p engine --features cuda --example engine_speed --target-dir target/cuda
    python bench/generate/gpu.py [--models 0.5B 7B] [--batches 1 16 64 256] [--append bench/RESULTS.md]

Needs torch; without transformers the peer's column stays empty. Weights are random, of the shapes of Qwen2.5. The roofline
of a step is the weights and the cached keys and values that it must read, over the bandwidth of a copy measured before. Goal:
60 % of it at batch 16 and 64. `--device cpu --models tiny` tries the script without a GPU.
"""

import argparse
import datetime
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from engine import ROOT, run_engine
from networks import MODELS, begun_folder, elements, shapes

try:
    import transformers
except ImportError:
    transformers = None

PROMPT, NEW = 128, 256


def write_folder(name, folder, device):
    """A folder of random weights, tensor by tensor: a 7B network never lies in memory as a whole."""
    torch.manual_seed(0)
    with begun_folder(name, folder) as file:
        for tensor, shape in shapes(name).items():
            norm = tensor.endswith("norm.weight")
            values = torch.ones(shape) if norm else torch.randn(shape, device=device) * 0.02
            file.write(values.to(torch.bfloat16).cpu().view(torch.uint8).numpy().data)


def wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def copy_bandwidth(device):
    """Bytes per second, read and written, of a copy of 1 GiB (64 MiB on a CPU)."""
    size = 1 << (30 if device.startswith("cuda") else 26)
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = []
    for _ in range(7):
        wait(device)
        started = time.perf_counter()
        target.copy_(source)
        wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size / statistics.median(seconds)


def step_bytes(name, batch):
    """Bytes that a step in the middle of a response must read; of an untied embedding, the batch's rows only."""
    hidden, layers, heads, kv_heads, _, vocab, tied = MODELS[name]
    weights = sum(elements(shape) for shape in shapes(name).values()) - (0 if tied else vocab * hidden)
    cached = batch * (PROMPT + NEW / 2) * layers * 2 * kv_heads * (hidden // heads)
    return 2 * (weights + cached)


def run_transformers(model, requests, device):
    """Tokens per second of `generate`, the second of two runs."""
    ids = torch.tensor([request["tokens"] for request in requests], device=device)
    for _ in range(2):
        wait(device)
        started = time.perf_counter()
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
                             top_p=1.0, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
        wait(device)
        seconds = time.perf_counter() - started
        assert out.shape[1] == PROMPT + NEW
    return len(requests) * NEW / seconds


def measure(name, folder, arguments, bandwidth):
    """A row of the table for each batch."""
    vocab, kv = MODELS[name][5], 2 * MODELS[name][3] * (MODELS[name][0] // MODELS[name][2]) * MODELS[name][1] * 2
    peer = None
    rows = []
    for batch in arguments.batches:
        generator = torch.Generator().manual_seed(batch)
        requests = [{"tokens": torch.randint(vocab, (PROMPT,), generator=generator).tolist(), "max_new_tokens": NEW}
                    for _ in range(batch)]
        path = folder / "requests.jsonl"
        path.write_text("".join(json.dumps(request) + "\n" for request in requests))
        config = {"device": arguments.device, "backend": "aten", "kv_cache_bytes": int(1.1 * batch * (PROMPT + NEW + 16) * kv)}
        found = [run_engine(arguments.engine, str(folder), str(path), batch, "bf16", **config, cuda_graphs=graphs)
                 for graphs in (True, False)]
        ours, without = (one["new_tokens"] / one["seconds"] for one in found)
        possible = batch * bandwidth / step_bytes(name, batch)
        theirs = None
        if transformers and arguments.transformers:
            if peer is None:
                peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(arguments.device).eval()
                peer.generation_config.eos_token_id = None
            theirs = run_transformers(peer, requests, arguments.device)
        rows.append(f"| {name} | {batch} | {ours:,.0f} | {found[0]['replayed_steps']} of {found[0]['steps']} | {without:,.0f} "
                    f"| {100 * ours / possible:.0f} % of {possible:,.0f} | " +
                    (f"{theirs:,.0f} | {ours / theirs:.2f} |" if theirs else "| |"))
        print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=str(ROOT / "target/cuda/release/examples/engine_speed"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["0.5B", "7B"], choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--no-transformers", dest="transformers", action="store_false")
    parser.add_argument("--append", type=Path, help="adds the table to this file")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth(arguments.device)
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "a CPU"
    rows = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(name, Path(folder), arguments.device)
            rows += measure(name, Path(folder), arguments, bandwidth)
    text = "\n".join([
        "", "## Generation on a GPU", "",
        f"{datetime.date.today()}, {machine}, {bandwidth / 1e9:,.0f} GB/s copied; torch {torch.__version__}"
        + (f", transformers {transformers.__version__}." if transformers and arguments.transformers else "."), "",
        "    python bench/generate/gpu.py --models " + " ".join(arguments.models), "",
        f"Tokens per second in bf16, {PROMPT} prompt and {NEW} new tokens, the prefill's time included.", "",
        "| parameters | batch | ours | steps replayed | without CUDA graphs | of the roofline | transformers | ratio |",
        "|---|---|---|---|---|---|---|---|", *rows, ""])
    if arguments.append:
        with arguments.append.open("a") as file:
            file.write(text)
    print(text)


if __name__ == "__main__":
    main()
