"""Runs a user's reward function for the reward server.

Arguments: the user's file, the limit of the address space in bytes (0 for none), the function's name ("" to find
it), and the source where the file is none of the user's. It speaks as `conversation.py` says.
"""

import asyncio
import inspect
import json
import math
import os
import sys
import traceback
import types

SHAPES = """\
  reward(prompt, response, **fields)
  reward_batch(prompts, responses, fields)
  compute_score(data_source, solution_str, ground_truth, extra_info)   as verl calls it
  any_name(prompts, completions, **columns)                            as TRL calls it
  reward_func(queries, prompts, labels)                                as OpenRLHF calls it"""
NAMES = ("reward_batch", "reward", "compute_score", "reward_func")
MARKS = ("solution_str", "completions", "queries")


def load(path, source):
    if source:
        module = types.ModuleType("reward")
        sys.modules["reward"] = module
        exec(compile(source, path, "exec"), module.__dict__)
        return module
    return load_file(path, "reward")


def find(module, name):
    """The user's function: the named one, else one of the known names, else the only one of a known shape."""
    if name:
        function = getattr(module, name, None)
        if not callable(function):
            raise AttributeError(f"defines no function {name!r}")
        return function
    for known in NAMES:
        if callable(getattr(module, known, None)):
            return getattr(module, known)
    own = [value for value in vars(module).values()
           if inspect.isfunction(value) and value.__module__ == module.__name__ and not value.__name__.startswith("_")]
    shaped = [function for function in own if any(mark in inspect.signature(function).parameters for mark in MARKS)]
    if len(shaped) > 1:
        names = ", ".join(function.__name__ for function in shaped)
        raise AttributeError(f"defines several reward functions ({names}): name one with `function`")
    if not shaped:
        raise AttributeError(f"defines no reward function; it may be one of\n{SHAPES}")
    return shaped[0]


class Function:
    """The user's function in one of the shapes."""

    def __init__(self, function):
        self.function = function
        parameters = list(inspect.signature(function).parameters.values())
        self.names = [parameter.name for parameter in parameters]
        self.takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        if "solution_str" in self.names or function.__name__ == "compute_score":
            self.batched, self.call = False, self.as_verl
        elif "completions" in self.names:
            self.batched, self.call = True, self.as_trl
        elif "queries" in self.names or function.__name__ == "reward_func":
            self.batched, self.call = True, self.as_openrlhf
        elif function.__name__ == "reward_batch":
            self.batched, self.call = True, self.as_batch
        else:
            self.batched, self.call = False, self.as_single
        self.loop = asyncio.new_event_loop()

    def result(self, *arguments, **named):
        value = self.function(*arguments, **named)
        return self.loop.run_until_complete(value) if inspect.isawaitable(value) else value

    def wanted(self, named):
        """Of these arguments those that the function takes."""
        return named if self.takes_all else {name: value for name, value in named.items() if name in self.names}

    def as_single(self, prompts, responses, fields):
        given = {name: value for name, value in fields[0].items() if name not in ("prompt", "response")}
        if not self.takes_all:
            given = {name: value for name, value in given.items() if name in self.names[2:]}
        return [self.result(prompts[0], responses[0], **given)]

    def as_batch(self, prompts, responses, fields):
        return self.result(prompts, responses, fields)

    def as_verl(self, prompts, responses, fields):
        line = fields[0]
        reward_model = line.get("reward_model")
        truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
        truths = [truth] + [line.get(name) for name in ("ground_truth", "label", "answer")]
        truth = next((truth for truth in truths if truth is not None), None)
        given = {"data_source": line.get("data_source"), "solution_str": responses[0], "ground_truth": truth,
                 "extra_info": line.get("extra_info")}
        return [self.result(**self.wanted(given))]

    def as_trl(self, prompts, responses, fields):
        columns = {name: [line.get(name) for line in fields] for line in fields for name in line}
        # TRL's two kinds of data: texts, and conversations.
        conversations = [line.get("messages") or line.get("prompt") for line in fields]
        if all(isinstance(messages, list) for messages in conversations):
            prompts = conversations
            responses = [[{"role": "assistant", "content": response}] for response in responses]
        columns.update(prompts=prompts, completions=responses)
        columns.pop("prompt", None)
        columns.pop("completion", None)
        return self.result(**self.wanted(columns))

    def as_openrlhf(self, prompts, responses, fields):
        queries = [prompt + response for prompt, response in zip(prompts, responses)]
        labels = [line["label"] if "label" in line else json.dumps(line) for line in fields]
        return self.result(queries, prompts, labels)


def plain(value):
    """Tensors and arrays as lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def numbers(returned, count):
    """One value for each response of what a function returned."""
    returned = plain(returned)
    if isinstance(returned, dict):
        name = next((name for name in ("rewards", "scores", "reward", "score") if name in returned), None)
        if name is None:
            raise ValueError(f"returned a dict with {sorted(returned)}, which has no rewards and no scores")
        returned = plain(returned[name])
    if count == 1 and not isinstance(returned, (list, tuple)):
        returned = [returned]
    values = list(returned)
    if len(values) != count:
        raise ValueError(f"returned {len(values)} scores for {count} responses")
    return values


def number(value, at, count):
    value = plain(value)
    if isinstance(value, dict):
        value = plain(next((value[name] for name in ("score", "reward") if name in value), value))
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    where = f" for response {at + 1} of {count}" if count > 1 else ""
    if not isinstance(value, (int, float)):
        raise TypeError(f"returned {value!r:.200}{where}, must be a number")
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"returned {value}{where}, must be finite")
    return {"score": value}


def failure(error):
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""
    if last and last[0].filename == "<string>":
        where = ""
    # What says that it cannot judge is no failure of the function.
    unsupported = isinstance(error, NotImplementedError)
    return {"error": f"{type(error).__name__}: {error}{where}"[:600], "unsupported": unsupported}


def score(function, prompts, responses, fields):
    count = len(responses)
    try:
        values = numbers(function.call(prompts, responses, fields), count)
    except MemoryError:
        raise
    except Exception as error:
        return [failure(error)] * count
    results = []
    for at, value in enumerate(values):
        try:
            results.append(number(value, at, count))
        except Exception as error:
            results.append(failure(error))
    return results


def main():
    path, memory, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    source = sys.argv[4] if len(sys.argv) > 4 else ""
    requests, answer = converse(memory)
    try:
        function = Function(find(load(path, source), name))
    except BaseException as error:
        answer(failure(error))
        return
    answer({"batched": function.batched})
    for request in requests:
        prompts, responses, fields = request["prompts"], request["responses"], request["fields"]
        if function.batched:
            results = score(function, prompts, responses, fields)
        else:
            each = zip(prompts, responses, fields)
            results = [score(function, [prompt], [response], [line])[0] for prompt, response, line in each]
        answer({"results": results})


main()
