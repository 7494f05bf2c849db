"""A reward: how near the first number of a response is to the right one, and a little for being brief.

The reward server calls `reward` for each response, in worker processes of its own. Arguments after the first two are
fields of the prompt's line, by name; `**fields` takes all of them. An exception is a failed sample, never a reward.
"""

import re


def reward(prompt, response, answer):
    number = re.search(r"-?\d+", response)
    distance = abs(int(number.group()[:6]) - answer) if number else 10
    return 1.0 - min(distance, 10) / 10 - 0.01 * len(response)
