"""Plays the episodes of examples/agent with the `openai` package, in a ring of its own.

    crates/openai/tests/peer/check.sh        # from anywhere; makes the environment
"""

import json
import pathlib
import re
import subprocess
import sys
import threading
import time

import openai

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "examples/agent"))
import agent  # noqa: E402

BATCHES = 2


def play(episode):
    """As the example's, but streamed, and through the package."""
    client = openai.OpenAI(base_url=episode["base_url"], api_key="none")
    assert client.models.list().data[0].id == episode["model"]
    messages = list(episode["messages"])
    a, b = (int(number) for number in re.findall(r"\d+", messages[-1]["content"]))
    for turn in range(3):
        if turn == 0:
            chunks = client.chat.completions.create(model="policy", messages=messages, stream=True)
            content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            messages.append({"role": "assistant", "content": content})
        else:
            message = client.chat.completions.create(model="policy", messages=messages).choices[0].message
            content = message.content
            messages.append(message)
        if content != "add":
            return 1.0 if content == f"{a + b}." else 0.0
        messages.append({"role": "user", "content": str(a + b)})
    return 0.0


def check_refusals(episode):
    client = openai.OpenAI(base_url=episode["base_url"], api_key="none")
    try:
        client.chat.completions.create(model="policy", messages=episode["messages"], temperature=0.5)
    except openai.BadRequestError as refusal:
        assert "temperature" in str(refusal), refusal
    else:
        raise AssertionError("another temperature than the run's was not refused")


def checked(episode):
    check_refusals(episode)
    return play(episode)


def main(program, output):
    recipe = ROOT / "examples/agent/recipe.toml"
    settings = [f"output={output}", "actor.serve.listen=127.0.0.1:0", f"coordinator.batches={BATCHES}"]
    ring = subprocess.Popen([program, "run", recipe, *(part for setting in settings for part in ("--set", setting))])
    addresses = output / "ring/actor-0.address.json"
    while not addresses.exists() or "openai" not in json.loads(addresses.read_text()):
        assert ring.poll() is None, "the ring has ended"
        time.sleep(0.2)
    server = "http://" + json.loads(addresses.read_text())["openai"]
    agents = [threading.Thread(target=agent.run, args=(server, checked), daemon=True) for _ in range(2)]
    for thread in agents:
        thread.start()
    assert ring.wait(timeout=600) == 0
    steps = [json.loads(line) for line in (output / "ring/steps.jsonl").read_text().splitlines()]
    assert len(steps) == BATCHES, steps
    for step in steps:
        # The learner computes what was recorded, and finds the sampler's log-probs.
        assert step["metrics"]["rollout_approx_kl"] < 1e-6, step
    print(f"{BATCHES} batches were trained on what the package's calls drew")


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
