"""Tokens per second of the actor's engine against transformers' `generate`, on the same weights, prompts and lengths.

    cargo build --release -p engine --example engine_speed
    python -m venv /tmp/peers && /tmp/peers/bin/pip install torch transformers
    /tmp/peers/bin/python bench/generate/compare.py [--repeats 5] [--append bench/RESULTS.md]

Every repetition runs both, one right after the other, so that a ratio compares the same moment of the machine; what is
reported are medians. Both draw at temperature 1 from random weights and ignore the end of sequence. Neither loading nor
the first run is counted. In the ragged workload each response has its own length: `generate` runs a static batch until its
longest response ends, and only the tokens that were asked for count.
"""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

from engine import ROOT, run_engine

# name: (hidden, layers, heads, intermediate, vocabulary)
MODELS = {
    "1M": (128, 4, 4, 352, 1000),
    "6M": (256, 6, 8, 704, 4000),
    "90M": (768, 12, 12, 2048, 8000),
}

# model, what, batch, requests, dtype of the engine, dtype of transformers
WORKLOADS = [
    ("1M", "fixed", 64, 64, "f32", "f32"),
    ("6M", "fixed", 64, 64, "f32", "f32"),
    ("90M", "fixed", 16, 16, "f32", "f32"),
    ("1M", "ragged", 64, 192, "f32", "f32"),
    ("6M", "ragged", 64, 192, "f32", "f32"),
]


def make_model(name, folder):
    hidden, layers, heads, intermediate, vocab = MODELS[name]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=intermediate, vocab_size=vocab, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def make_requests(what, count, vocab):
    source = random.Random(1)
    if what == "fixed":
        lengths = [(32, 128)] * count
    else:
        lengths = [(source.randint(8, 64), source.randint(8, 256)) for _ in range(count)]
    return [{"tokens": [source.randrange(vocab) for _ in range(prompt)], "max_new_tokens": new}
            for prompt, new in lengths]


def run_transformers(model, requests, batch):
    """Seconds for all requests, in static batches in the order in which they came."""
    started = time.perf_counter()
    for first in range(0, len(requests), batch):
        part = requests[first:first + batch]
        width = max(len(request["tokens"]) for request in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask = torch.zeros(len(part), width, dtype=torch.long)
        for row, request in enumerate(part):
            length = len(request["tokens"])
            ids[row, width - length:] = torch.tensor(request["tokens"])
            mask[row, width - length:] = 1
        new = max(request["max_new_tokens"] for request in part)
        out = model.generate(input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                             max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        assert out.shape[1] == width + new, out.shape
    return time.perf_counter() - started


def compare(workload, model, folder, binary, repeats):
    name, what, batch, count, dtype, _ = workload
    requests = make_requests(what, count, MODELS[name][4])
    path = Path(folder) / f"{what}.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    asked = sum(request["max_new_tokens"] for request in requests)
    run_transformers(model, requests[:batch], batch)
    pairs = []
    for _ in range(repeats):
        theirs = asked / run_transformers(model, requests, batch)
        ours = run_engine(binary, folder, path, batch, dtype)
        assert ours["new_tokens"] == asked, ours
        pairs.append((asked / ours["seconds"], theirs))
    return pairs


def compare_dtypes(folder, binary, repeats):
    """Our own bf16 against our own f32, 90M, batch 16."""
    path = Path(folder) / "fixed.jsonl"
    pairs = []
    for _ in range(repeats):
        rate = {}
        for dtype in ("bf16", "f32"):
            found = run_engine(binary, folder, path, 16, dtype)
            rate[dtype] = found["new_tokens"] / found["seconds"]
        pairs.append((rate["bf16"], rate["f32"]))
    return pairs


def row(title, pairs):
    ours, theirs = (statistics.median(side) for side in zip(*pairs))
    ratios = sorted(mine / other for mine, other in pairs)
    return (f"| {title} | {ours:,.0f} | {theirs:,.0f} | **{statistics.median(ratios):.2f}** "
            f"| {ratios[0]:.2f} to {ratios[-1]:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=str(ROOT / "target/release/examples/engine_speed"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--append", type=Path, help="adds the table to this file")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count())
    load_before = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as top:
        for name in MODELS:
            folder = str(Path(top) / name)
            model = make_model(name, folder)
            for workload in WORKLOADS:
                if workload[0] == name:
                    pairs = compare(workload, model, folder, arguments.engine, arguments.repeats)
                    rows.append(row(f"{name} parameters, {workload[1]}, batch {workload[2]}, f32", pairs))
                    print(rows[-1], flush=True)
        pairs = compare_dtypes(folder, arguments.engine, arguments.repeats)
        rows.append(row("90M, our bf16 against our f32, batch 16", pairs))
        print(rows[-1], flush=True)
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.machine())
    text = "\n".join([
        "", "## Generation: the actor's engine against transformers `generate`", "",
        f"{datetime.date.today()}, {os.cpu_count()} cores of {cpu}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Load average before the run {load_before:.1f}, after it {os.getloadavg()[0]:.1f} "
        "(a quiet machine is below 0.5 before; otherwise other work ran beside it).", "",
        f"    python bench/generate/compare.py --repeats {arguments.repeats}", "",
        "Tokens per second, medians of paired runs; fixed: 32 prompt and 128 new tokens; ragged: 8 to 64 prompt and 8 to "
        "256 new tokens, 192 requests.", "",
        "| workload | ours | theirs | ratio, median | ratio, range |", "|---|---|---|---|---|", *rows, ""])
    if arguments.append:
        with arguments.append.open("a") as file:
            file.write(text)


if __name__ == "__main__":
    main()
