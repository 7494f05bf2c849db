"""Asks a grading service what programs are worth: python3 grade.py [URL]

The request has the shape of OpenRLHF's remote reward models. A label is the problem with its hidden tests, in
HumanEval's shape; none of it reaches the process that runs the program.
"""

import json
import sys
import urllib.request

PROBLEM = {
    "task_id": "Example/0",
    "prompt": "def middle(values):\n    \"\"\"The middle one of an odd number of values, by size.\"\"\"\n",
    "entry_point": "middle",
    "test": (
        "def check(candidate):\n"
        "    assert candidate([3]) == 3\n"
        "    assert candidate([1, 9, 2]) == 2\n"
        "    assert candidate([5, 4, 3, 2, 1]) == 3\n"
        "    assert candidate([2, 2, 1]) == 2\n"
    ),
}

PROGRAMS = {
    "right": "    return sorted(values)[len(values) // 2]\n",
    "nearly right": "    return values[len(values) // 2]\n",
    "equal to everything": (
        "    class Everything:\n"
        "        def __eq__(self, other):\n"
        "            return True\n"
        "    return Everything()\n"
    ),
    "endless": "    while True:\n        pass\n",
}


def rewards(url, programs):
    prompt = PROBLEM["prompt"]
    body = {
        "query": [prompt + program for program in programs],
        "prompts": [prompt] * len(programs),
        "labels": [PROBLEM] * len(programs),
    }
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["rewards"]


def main():
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/get_reward"
    for name, reward in zip(PROGRAMS, rewards(url, list(PROGRAMS.values()))):
        print(f"{reward:5.2f}  {name}")


main()
