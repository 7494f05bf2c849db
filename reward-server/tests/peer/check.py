"""Plays episodes of one to three turns on OpenEnv's server, several at a time, and looks at what came of them.

Usage: check.py SLUICE MODEL PORT FOLDER
"""

import json
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

sluice, model, port, folder = sys.argv[1:]
folder = pathlib.Path(folder)

for _ in range(120):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
        break
    except (urllib.error.URLError, ConnectionError):
        time.sleep(1)
else:
    sys.exit("OpenEnv's server does not answer")

prompts = folder / "prompts.jsonl"
prompts.write_text("".join(json.dumps({"prompt": f"Say {n}: ", "limit": n}) + "\n" for n in (1, 2, 3)))
recipe = folder / "recipe.toml"
recipe.write_text(f"""
[reward_server.environment]
kind = "http"
url = "ws://127.0.0.1:{port}"
observation_field = "text"
[[reward_server.scorers]]
kind = "environment"
""")
rows = folder / "rows.jsonl"
arguments = ["--model", model, "--problems", prompts, "--scorers", recipe, "--output", rows, "--json"]
stops = [argument for letter in "aeiotns" for argument in ("--stop", letter)]
drawn = ["--n", "8", "--temperature", "1", "--max-new-tokens", "64", "--threads", "1", *stops]
done = subprocess.run([sluice, "eval", *arguments, *drawn], check=True, stdout=subprocess.PIPE)
said = json.loads(done.stdout)
finished = 0
for line in map(json.loads, rows.read_text().splitlines()):
    limit, turns = line["id"], [turn["role"] for turn in line["turns"]]
    # One whose turn was cut off at its longest length ends there.
    if line["end"] == "finished":
        finished += 1
        assert turns == ["user", "assistant"] * limit, line
        assert line["turns"][0]["content"] == f"turn 1 of {limit}\n", line
        assert abs(line["score"] - 0.25 * limit) < 1e-6, line
assert said["episodes"]["episodes"] == 24 and finished > 12, said
print(f"{finished} of 24 episodes were played to their end on OpenEnv's server: {said['episodes']}")
