"""Actors come and go while a ring runs: from one to as many as asked and back, again and again.

    python3 bench/storm/members.py target/release/sluice OUTPUT [--actors 16] [--rounds 10]

Runs the ring of bench/storm/recipe.toml, not deterministic, with one actor of its own. A round starts the other actors as
processes, waits until each of them has generated with the weights of the run, and asks them to leave by SIGTERM. Says where
they had their weights from, and how long a batch took with one actor and with many. Ends with 1 unless every batch was
trained, the accounts balance, no response failed, and every actor left with code 0.
"""

import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

import storm

JOIN_TIMEOUT_SECONDS = 300
LEAVE_TIMEOUT_SECONDS = 60


def status(output):
    """What the run says of itself now."""
    try:
        address = json.loads((output / "ring" / "coordinator.address.json").read_text())["metrics"]
        with urllib.request.urlopen(f"http://{address}/status.json", timeout=5) as answer:
            return json.load(answer)
    except (OSError, json.JSONDecodeError):
        return {"trained": 0, "actors": []}


def wait(what, timeout, holds, processes=()):
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            for process in processes:
                process.terminate()
            sys.exit(f"after {timeout} s still not: {what}")
        time.sleep(0.1)


def start_actor(binary, output, name):
    config = output / "ring" / "config" / "actor-0.toml"
    actor = pathlib.Path(binary).with_name("sluice-actor")
    command = [actor, "--config", config, "--set", f"member={name}", "--set", "service.listen_metrics=127.0.0.1:0"]
    command += ["--set", "service.log=info,actor=debug"]
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    log = open(output / f"{name}.log", "a")
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def main():
    parser = storm.arguments(__doc__)
    parser.add_argument("--actors", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    output = asked.output.resolve()
    settings = ["processes.actors=1", "processes.reward_servers=1", "coordinator.deterministic=false"]
    # A prompt for each of them, so that nobody is without work.
    settings += [f"coordinator.batch_prompts={max(asked.actors, 8)}", "coordinator.lease_prompts=1"]
    # And room for no second one: on a busy machine the first to have new weights would take all of them.
    settings += ["actor.engine.max_sequences=4"]
    run = storm.start(asked.binary, output, 1_000_000, settings)
    names = [f"extra-{number}" for number in range(asked.actors - 1)]
    faults, spans = [], []
    wait("a batch is trained", JOIN_TIMEOUT_SECONDS, lambda: status(output)["trained"] > 0 or run.poll() is not None, [run])
    for number in range(asked.rounds):
        began, before = time.monotonic(), status(output)["trained"]
        actors = [start_actor(asked.binary, output, name) for name in names]
        generating = lambda: {
            actor["member"] for actor in status(output)["actors"] if actor["connected"] and actor["generated_tokens"] > 0
        }
        is_done = lambda: generating() >= set(names) or run.poll() is not None
        wait("all actors generate", JOIN_TIMEOUT_SECONDS, is_done, [run, *actors])
        joined = time.monotonic() - began
        for actor in actors:
            actor.send_signal(signal.SIGTERM)
        codes = [actor.wait(timeout=LEAVE_TIMEOUT_SECONDS) for actor in actors]
        faults += [f"round {number}: an actor left with {code}" for code in codes if code != 0]
        trained = status(output)["trained"] - before
        spans.append((time.monotonic() - began) / max(trained, 1))
        print(f"round {number}: {asked.actors} actors after {joined:.1f} s, {trained} batches meanwhile", flush=True)
    run.send_signal(signal.SIGTERM)
    result = storm.end(run, output, time.monotonic())
    steps = [json.loads(line) for line in open(output / "ring" / "steps.jsonl")]
    pauses = sorted((b["time"] - a["time"]) / 1000 for a, b in zip(steps, steps[1:]))
    print(f"{len(steps)} batches, one every {statistics.median(pauses):.2f} s (median), {pauses[-1]:.2f} s at most")
    sources = re.findall(r"pull ordered.*?source=(\S+)", "".join(p.read_text() for p in output.glob("extra-*.log")))
    print(f"{len(sources)} pulls from {len(set(sources))} sources; endings: {result['endings']}")
    failed = {ending: count for ending, count in result["endings"].items() if ending.startswith("failed")}
    if failed or result["unaccounted"]:
        faults.append(f"lost: {failed}, {result['unaccounted']} unaccounted for")
    if result["batches"] != list(range(1, len(steps) + 1)):
        faults.append("a batch is missing or there twice")
    if result["code"] != 0:
        faults.append(f"the run ended with {result['code']}")
    print("\n".join(faults) or "nothing lost")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
