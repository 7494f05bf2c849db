"""A reward that takes as long as the file `pace` of its working folder says, so that a test has time to disturb the run."""

import pathlib
import re
import time


def reward(prompt, response, answer):
    pace = pathlib.Path("pace")
    if pace.exists():
        time.sleep(float(pace.read_text() or 0))
    number = re.search(r"-?\d+", response)
    distance = abs(int(number.group()[:6]) - answer) if number else 10
    return 1.0 - min(distance, 10) / 10 - 0.01 * len(response)
