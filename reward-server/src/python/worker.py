"""Runs a user's reward function for the reward server.

Arguments: the user's file, the limit of the address space in bytes (0 for none). Requests come on stdin and answers
go to what was stdout, one JSON object a line; whatever the user's code prints goes to stderr.
"""

import importlib.util
import inspect
import json
import math
import os
import resource
import sys
import threading
import time
import traceback


def leave_with_the_server(server):
    while os.getppid() == server:
        time.sleep(1.0)
    os._exit(1)


def load(path):
    spec = importlib.util.spec_from_file_location("reward", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reward"] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec.loader.exec_module(module)
    batch = getattr(module, "reward_batch", None)
    single = getattr(module, "reward", None)
    if not callable(batch) and not callable(single):
        raise AttributeError("defines neither reward(prompt, response, **fields) nor reward_batch(prompts, responses, fields)")
    return batch if callable(batch) else None, single


def keywords(function):
    """The names of fields that the function takes; None for all."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters[2:]}


def number(value):
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"returned {value}, must be finite")
    return {"score": value}


def failure(error):
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""
    return {"error": f"{type(error).__name__}: {error}{where}"[:400]}


def score_one(single, wanted, prompt, response, fields):
    given = {name: value for name, value in fields.items() if name not in ("prompt", "response")}
    if wanted is not None:
        given = {name: value for name, value in given.items() if name in wanted}
    try:
        return number(single(prompt, response, **given))
    except MemoryError:
        raise
    except Exception as error:
        return failure(error)


def score_batch(batch, prompts, responses, fields):
    try:
        values = list(batch(prompts, responses, fields))
        if len(values) != len(responses):
            raise ValueError(f"returned {len(values)} scores for {len(responses)} responses")
    except MemoryError:
        raise
    except Exception as error:
        return [failure(error)] * len(responses)
    results = []
    for value in values:
        try:
            results.append(number(value))
        except Exception as error:
            results.append(failure(error))
    return results


def main():
    path, memory = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    threading.Thread(target=leave_with_the_server, args=(os.getppid(),), daemon=True).start()
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    def answer(message):
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        batch, single = load(path)
        wanted = keywords(single) if batch is None else None
    except BaseException as error:
        answer(failure(error))
        return
    answer({"batched": batch is not None})
    for line in requests:
        request = json.loads(line)
        prompts, responses, fields = request["prompts"], request["responses"], request["fields"]
        if batch is not None:
            results = score_batch(batch, prompts, responses, fields)
        else:
            each = zip(prompts, responses, fields)
            results = [score_one(single, wanted, *arguments) for arguments in each]
        answer({"results": results})


main()
