"""What all.sh runs. Needs nothing but Python; a torch that can be imported measures what the memory and the processors allow."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench/generate"))

from networks import MODELS, begun_folder, elements, shapes  # noqa: E402

DEVICE = os.environ.get("DEVICE", "cuda")
TINY = DEVICE == "cpu"
BIN = Path(os.environ.get("BIN", ROOT / "target/gpu-bin"))
LIMIT = float(os.environ.get("LIMIT", 720))
KEEP_GOING = os.environ.get("KEEP_GOING") == "1"

# What the engine is asked for: model, contexts, batches, new tokens.
SPEEDS = [("tiny", (16, 32), (1, 3), 4)] if TINY else [
    ("0.5B", (256, 1024, 4096, 8192), (1, 16, 64, 256), 64),
    ("7B", (256, 1024, 4096), (1, 64, 256), 64),
]
SWAPS = ["tiny"] if TINY else ["0.5B", "7B"]
# The step: model, sequences, tokens of each.
STEPS = [("tiny", 8, 24)] if TINY else [("0.5B", 64, 1024), ("1.5B", 32, 1024)]
CACHE_LIMIT_TOKENS = 256 * 4096


class Failed(Exception):
    """A stage that did not do what it is for."""


def weights_of(name):
    return sum(elements(shape) for shape in shapes(name).values())


# A random byte with the upper one of a bf16 between 2^-7 and 2^-5, of either sign: about 0.018 in the root of the mean square.
SMALL = bytes((byte & 0x80) | 0x3C for byte in range(256))


def write_folder(name, folder, scalar=False):
    """A model folder of random weights, a few megabytes at a time."""
    rng = random.Random(0)
    with begun_folder(name, folder, scalar) as file:
        for tensor, shape in shapes(name, scalar).items():
            left = elements(shape)
            while left:
                part = min(left, 8 << 20)
                if tensor.endswith("norm.weight"):
                    values = b"\x80\x3f" * part
                else:
                    values = bytearray(rng.randbytes(2 * part))
                    values[1::2] = values[1::2].translate(SMALL)
                file.write(values)
                left -= part


class Run:
    """What is measured, and what time is left."""

    def __init__(self, out):
        self.out, self.began, self.results, self.rows = out, time.monotonic(), {}, []
        self.stages, self.failed, self.peak = [], None, None
        out.mkdir(parents=True, exist_ok=True)

    def left(self):
        return LIMIT - (time.monotonic() - self.began)

    def call(self, stage, command, most):
        """The standard output of a program, which has so many seconds."""
        seconds = min(most, self.left())
        if seconds < 1:
            raise Failed("no time is left")
        env = dict(os.environ)
        log = self.out / f"{stage}.log"
        with log.open("a") as file:
            file.write(f"$ {' '.join(map(str, command))}\n")
            file.flush()
            try:
                done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=file, text=True, timeout=seconds,
                                      env=env)
            except subprocess.TimeoutExpired:
                raise Failed(f"{command[0]} took longer than {seconds:.0f} s") from None
            except OSError as error:
                raise Failed(f"{command[0]}: {error}") from None
            file.write(done.stdout)
        if done.returncode != 0:
            last = log.read_text().strip().splitlines()[-1]
            raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {last}")
        return done.stdout

    def stage(self, name, work):
        """Runs a stage unless one before it has failed."""
        if self.failed and not KEEP_GOING:
            self.stages.append({"stage": name, "outcome": "left out"})
            return
        began, problem = time.monotonic(), None
        try:
            self.results[name] = work(self)
        except Failed as error:
            problem = str(error)
        except Exception as error:  # A stage that breaks must not take the others' results with it.
            problem = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        outcome = {"stage": name, "outcome": "failed" if problem else "done", "seconds": round(seconds, 1)}
        if problem:
            outcome["problem"] = problem
            self.failed = self.failed or outcome
        self.stages.append(outcome)
        print(f"{name}: {outcome['outcome']} after {seconds:.1f} s" + (f": {problem}" if problem else ""), flush=True)
        self.write()

    def write(self):
        document = {"device": DEVICE, "seconds": round(time.monotonic() - self.began, 1), "failed_first": self.failed,
                    "stages": self.stages, "peak_gpu_bytes": self.peak, "results": self.results}
        (self.out / "result.json").write_text(json.dumps(document, indent=1) + "\n")
        lines = ["| stage | outcome | seconds | |", "|---|---|---|---|"]
        lines += [f"| {one['stage']} | {one['outcome']} | {one.get('seconds', '')} | {one.get('problem', '')} |"
                  for one in self.stages]
        lines += ["", "| what | figure | of what is possible |", "|---|---|---|", *self.rows, ""]
        (self.out / "table.md").write_text("\n".join(lines))

    def row(self, what, figure, share=""):
        self.rows.append(f"| {what} | {figure} | {share} |")
        print(self.rows[-1], flush=True)


LIMITS = """
import json, time, torch
device = %r
def wait():
    torch.cuda.synchronize() if device.startswith("cuda") else None
def best(work, times):
    seconds = []
    for _ in range(times):
        wait(); began = time.perf_counter(); work(); wait(); seconds.append(time.perf_counter() - began)
    return min(seconds)
size = 1 << (30 if device.startswith("cuda") else 24)
source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
side = 8192 if device.startswith("cuda") else 256
a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
print(json.dumps({"torch": torch.__version__, "bytes_per_second": 2 * size / best(lambda: target.copy_(source), 5),
                  "flops_per_second": 2 * side ** 3 / best(lambda: a @ b, 10),
                  "name": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"}))
"""


def look(run):
    """The machine, the programs, and what they are linked to."""
    found = {}
    if not TINY:
        asked = "name,driver_version,memory.total,memory.used"
        line = run.call("look", ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"], 30).splitlines()[0]
        found["gpu"] = dict(zip(asked.split(","), map(str.strip, line.split(","))))
        if int(found["gpu"]["driver_version"].split(".")[0]) < 580:
            raise Failed(f"the driver is {found['gpu']['driver_version']}, CUDA 13 needs 580 or newer")
    wanted = ["engine_speed", "engine_swap", "steps"] + ([] if TINY else ["test-engine", "test-cuda", "test-ranks"])
    missing = [name for name in wanted if not (BIN / name).is_file()]
    if missing:
        raise Failed(f"{BIN} lacks {', '.join(missing)}: run bench/gpu/build.sh")
    if not TINY:
        for name in wanted:
            needed = run.call("look", ["readelf", "-d", BIN / name], 30)
            if "libtorch_cuda.so" not in needed:
                raise Failed(f"{name} is not linked to libtorch_cuda: it would see no GPU")
    try:
        found["limits"] = json.loads(run.call("look", [sys.executable, "-c", LIMITS % DEVICE], 90))
    except Failed as error:
        found["limits"] = None
        found["no_limits"] = str(error)
    return found


def tests(run):
    """The tests that need a GPU, and only those."""
    if TINY:
        return "none without a GPU"
    counts = {}
    for name in ("test-cuda", "test-engine"):
        said = run.call("tests", [BIN / name, "gpu::", "--test-threads", "1"], 150)
        counts[name] = passed(said, name)
    return counts


def nccl(run):
    """NCCL of one rank."""
    if TINY:
        return "none without a GPU"
    return passed(run.call("nccl", [BIN / "test-ranks", "gpu::"], 90), "test-ranks")


def passed(said, name):
    count = re.search(r"test result: ok\. (\d+) passed", said)
    if not count or int(count[1]) == 0:
        raise Failed(f"{name} has no test of a GPU: it was built without the feature cuda")
    return int(count[1])


def folder_of(run, name):
    folder = run.models / name
    if not folder.exists():
        write_folder(name, folder)
    return folder


def engine(run):
    """Tokens per second by batch and context."""
    limits = (run.results.get("look") or {}).get("limits")
    rows = []
    for name, contexts, batches, new in SPEEDS:
        hidden, layers, heads, kv_heads, _, vocab, tied = MODELS[name]
        folder, token_bytes = folder_of(run, name), 2 * layers * 2 * kv_heads * (hidden // heads)
        for context in contexts:
            for batch in batches:
                if batch * context > CACHE_LIMIT_TOKENS:
                    continue
                rng = random.Random(batch)
                path = run.models / "requests.jsonl"
                path.write_text("".join(json.dumps({"tokens": [rng.randrange(vocab) for _ in range(context)],
                                                    "max_new_tokens": new}) + "\n" for _ in range(batch)))
                config = {"device": DEVICE, "backend": "aten", "dtype": "bf16", "max_sequences": batch,
                          "kv_cache_bytes": int(1.1 * batch * (context + new + 32) * token_bytes) + (1 << 20)}
                # The difference to a run that ends with the first token is what decoding takes.
                said = run.call("engine", [BIN / "engine_speed", folder, path, json.dumps(config), "2"], 120)
                whole = json.loads(said.splitlines()[-1])
                row = {"model": name, "context": context, "batch": batch, "tokens_per_second": batch * new / whole["seconds"],
                       **whole}
                share = ""
                if limits:
                    read = 2 * (weights_of(name) - (0 if tied else vocab * hidden)) + batch * (context + new / 2) * token_bytes
                    prefill = 2 * weights_of(name) * batch * context / limits["flops_per_second"]
                    possible = batch * new / (new * read / limits["bytes_per_second"] + prefill)
                    row["of_roofline"] = row["tokens_per_second"] / possible
                    share = f"{100 * row['of_roofline']:.0f} % of {possible:,.0f}"
                rows.append(row)
                run.row(f"engine {name}, batch {batch}, context {context}", f"{row['tokens_per_second']:,.0f} tokens/s", share)
    return rows


def swap(run):
    """Seconds of an exchange of weights that lie in the host's memory."""
    rows = []
    for name in SWAPS:
        config = {"device": DEVICE, "backend": "aten", "dtype": "bf16", "kv_cache_blocks": 64}
        row = json.loads(run.call("swap", [BIN / "engine_swap", folder_of(run, name), json.dumps(config), "3"], 120))
        rows.append({"model": name, **row})
        run.row(f"swap {name}", f"{row['prepare_seconds']:.3f} s to prepare, {row['swap_seconds'] * 1e3:.2f} ms to exchange")
    return rows


def step(run):
    """The PPO step: tokens per second, and which part of the processors' products it reaches."""
    limits = (run.results.get("look") or {}).get("limits")
    rows = []
    for name, samples, length in STEPS:
        policy, critic = folder_of(run, name), run.models / f"{name}-critic"
        if not critic.exists():
            write_folder(name, critic, scalar=True)
        rng, vocab, lines = random.Random(1), MODELS[name][5], []
        for at in range(samples):
            prompt = length // 4
            flat = [-8.0] * (length - prompt)
            lines.append({"prompt_id": at // 4, "prompt_tokens": [rng.randrange(vocab) for _ in range(prompt)],
                          "response_tokens": [rng.randrange(vocab) for _ in flat], "rollout_logprobs": flat,
                          "ref_logprobs": flat, "score": rng.gauss(0, 1)})
        batch, config = run.models / "batch.jsonl", run.models / "config.json"
        batch.write_text("".join(json.dumps(line) + "\n" for line in lines))
        config.write_text(json.dumps({"ppo_epochs": 1, "minibatch_size": samples, "shuffle": False, "policy_lr": 1e-6,
                                      "critic_lr": 1e-6, "logprob_alarm": 1000.0, "dtype": "bf16"}))
        said = run.call("step", [BIN / "steps", policy, critic, batch, config, "3", "1", DEVICE], 200)
        seconds = min(json.loads(line)["seconds"] for line in said.splitlines())
        tokens = samples * length
        # Policy and critic, forward and backward: 6 operations a weight and token each.
        work = 6 * 2 * weights_of(name) * tokens
        row = {"model": name, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        share = ""
        if limits:
            row["mfu"] = work / seconds / limits["flops_per_second"]
            share = f"{100 * row['mfu']:.0f} % of a product's"
        rows.append(row)
        run.row(f"PPO step {name}, {tokens} tokens", f"{seconds:.3f} s, {row['tokens_per_second']:,.0f} tokens/s", share)
    return rows


def watch(run, stop):
    """The GPU's memory at its peak, looked at twice a second."""
    while not stop.wait(0.5):
        try:
            said = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                                  stdout=subprocess.PIPE, text=True, timeout=10).stdout
            run.peak = max(run.peak or 0, int(said.split()[0]) << 20)
        except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
            pass


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: all.sh OUT")
    run, stop = Run(Path(sys.argv[1])), threading.Event()
    watching = threading.Thread(target=watch, args=(run, stop), daemon=True)
    if not TINY:
        watching.start()
    with tempfile.TemporaryDirectory() as models:
        run.models = Path(models)
        for work in (look, tests, nccl, engine, swap, step):
            run.stage(work.__name__, work)
    stop.set()
    if run.peak:
        run.row("memory", f"{run.peak / 2**30:.1f} GiB at the peak")
    run.write()
    if run.failed:
        sys.exit(f"failed first: {run.failed['stage']}: {run.failed['problem']} (see {run.out}/{run.failed['stage']}.log)")
    print(f"{run.out}/result.json, {run.out}/table.md")


if __name__ == "__main__":
    main()
