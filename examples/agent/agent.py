"""An agent with a loop of its own plays episodes of a ring, until the ring is over. Standard library only.

    python3 agent.py http://127.0.0.1:7712

The variable SLUICE_TOKEN holds the token of the role `client` where the run has a token file. What calls a base URL and a key
its own (the package `openai`, any framework) takes `episode["base_url"]` and this token.
"""

import json
import os
import re
import sys
import time
import urllib.error
import urllib.request


def post(url, body):
    headers = {"content-type": "application/json", "authorization": "Bearer " + os.environ.get("SLUICE_TOKEN", "none")}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply) if reply.status == 200 else None


def play(episode):
    """The loop: the policy may ask for the sum, and answers in the end. What the episode was worth."""
    messages = list(episode["messages"])
    a, b = (int(number) for number in re.findall(r"\d+", messages[-1]["content"]))
    for _ in range(3):
        reply = post(episode["base_url"] + "/chat/completions", {"model": episode["model"], "messages": messages})
        message = reply["choices"][0]["message"]
        if message["content"] != "add":
            return 1.0 if message["content"] == f"{a + b}." else 0.0
        messages += [message, {"role": "user", "content": str(a + b)}]
    return 0.0


def ending(play, episode):
    try:
        # Without a reward the scorers of the recipe judge the last turn.
        return {"reward": play(episode)}
    except (OSError, ValueError) as problem:
        return {"failed": str(problem)}  # the attempt has failed and is made again; it is no reward of zero


def run(server, play, start_seconds=60):
    """Plays episodes until the actor says that there are no more, or is not there any more."""
    started, played = time.monotonic(), 0
    while True:
        try:
            episode = post(server + "/v1/episodes", {"wait_seconds": 30})
            if episode:
                post(f"{server}/v1/episodes/{episode['id']}/finish", ending(play, episode))
                played += 1
        except urllib.error.HTTPError as refusal:
            said = refusal.read().decode()
            print(refusal.code, said, file=sys.stderr)
            if "is leaving" in said:
                break
            time.sleep(0.5)
        except OSError as problem:
            if played or time.monotonic() - started > start_seconds:
                print("the actor is gone:", problem, file=sys.stderr)
                break
            time.sleep(0.5)
    print(f"{played} episodes played")


if __name__ == "__main__":
    run(sys.argv[1].rstrip("/"), play)
