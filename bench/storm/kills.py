"""Effective training time: what one SIGKILL every ten steps costs, and how soon a dead actor is noticed.

    python3 bench/storm/kills.py target/release/sluice OUTPUT [--batches 60] [--every 10] [--seconds-a-step 3]

Runs the ring of bench/storm/recipe.toml twice, with steps of some seconds (more passes over more prompts; the script tries
a few steps first to find how many), a staleness of one version and a checkpoint every second batch. The second run loses a
process every so many steps: learner, actor, coordinator, reward server, by turns. Effective training time is the time that
the run in peace took from the end of its fifth step to its last, over the time that the disturbed one took for the same
steps. That needs a quiet machine: on a busy one the median step of a run, times the number of its steps, over the time that
they took says what its own interruptions cost. Ends with 1 when effective training time is below 0.9, when a killed actor
was not known to be gone within 2 seconds, or when anything was lost.
"""

import json
import os
import pathlib
import signal
import statistics
import sys
import threading
import time

import members
import storm

# Steps before the clock starts: processes have just been started.
WARM_UP = 5
ROLES = ["learner", "actor-1", "coordinator", "reward-server-0"]
TRIED_EPOCHS = 4
GOAL = 0.9
NOTICED_SECONDS = 2.0


def steps(output):
    """The recorded steps by batch; the last record of one that was trained again."""
    try:
        lines = (output / "ring" / "steps.jsonl").read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        try:
            step = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[step["batch"]] = step
    return found


def settings(epochs):
    return [
        "coordinator.deterministic=false",
        "coordinator.max_staleness=1",
        "coordinator.batch_prompts=32",
        f"learner.ppo.ppo_epochs={epochs}",
        "learner.checkpoint_every=2",
        "processes.actors=2",
    ]


def tried(binary, output, seconds):
    """How many passes make a step take so long."""
    run = storm.start(binary, output, WARM_UP + 3, settings(TRIED_EPOCHS))
    if run.wait(timeout=storm.RUN_TIMEOUT_SECONDS) != 0:
        sys.exit((output / "log").read_text())
    found = steps(output)
    took = (found[WARM_UP + 3]["time"] - found[WARM_UP]["time"]) / 3000
    return max(TRIED_EPOCHS, round(TRIED_EPOCHS * seconds / took))


def noticed(output, member, killed_at, found):
    """Waits until the coordinator no longer counts on a member; how long that took."""
    while time.monotonic() < killed_at + 30:
        actors = {actor["member"]: actor for actor in members.status(output)["actors"]}
        if member in actors and not actors[member]["connected"]:
            found.append(time.monotonic() - killed_at)
            return
        time.sleep(0.02)
    found.append(float("inf"))


def kill(process, output, every, batches):
    """Kills a process every so many steps; what was killed, and how long actors were thought to be there."""
    killed, seen, watchers = [], [], []
    following = WARM_UP + every
    while process.poll() is None:
        trained = max(steps(output), default=0)
        if trained >= following and following < batches:
            name = ROLES[len(killed) % len(ROLES)]
            running = storm.roles(output)
            if name in running:
                os.kill(running[name], signal.SIGKILL)
                killed.append((name, trained))
                following += every
                if name.startswith("actor"):
                    arguments = (output, name, time.monotonic(), seen)
                    watchers.append(threading.Thread(target=noticed, args=arguments))
                    watchers[-1].start()
        time.sleep(0.05)
    for watcher in watchers:
        watcher.join()
    return killed, seen


def main():
    parser = storm.arguments(__doc__)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seconds-a-step", type=float, default=3.0)
    asked = parser.parse_args()
    epochs = tried(asked.binary, (asked.output / "tried").resolve(), asked.seconds_a_step)
    took, faults = {}, []
    for name in ["peace", "killed"]:
        output = (asked.output / name).resolve()
        process = storm.start(asked.binary, output, asked.batches, settings(epochs))
        killed, seen = kill(process, output, asked.every, asked.batches if name == "killed" else 0)
        result = storm.end(process, output, time.monotonic())
        found = steps(output)
        took[name] = (found[asked.batches]["time"] - found[WARM_UP]["time"]) / 1000
        each = [(found[batch]["time"] - found[batch - 1]["time"]) / 1000 for batch in range(WARM_UP + 1, asked.batches + 1)]
        own = statistics.median(each) * len(each) / took[name]
        print(f"{name}: {asked.batches - WARM_UP} steps in {took[name]:.1f} s, {epochs} passes a step; killed: {killed}")
        print(f"  its median step times their number is {own:.3f} of that; endings: {result['endings']}", flush=True)
        if result["code"] != 0 or result["unaccounted"] != 0:
            faults.append(f"{name}: ended with {result['code']}, {result['unaccounted']} unaccounted for")
        if sorted(set(result["batches"])) != list(range(1, asked.batches + 1)):
            faults.append(f"{name}: a batch is missing")
    effective = took["peace"] / took["killed"]
    print(f"effective training time {effective:.3f}; dead actors were noticed after {[round(s, 2) for s in seen]} s")
    if effective < GOAL:
        faults.append(f"effective training time is below {GOAL}")
    if not seen or max(seen) > NOTICED_SECONDS:
        faults.append(f"a dead actor was not noticed within {NOTICED_SECONDS} s")
    print("\n".join(faults) or "nothing lost")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
