"""Runs a user's environment for the reward server: functions that a policy calls as tools, or a class.

Arguments: the user's file, the limit of the address space in bytes (0 for none), what the file is ("tools" or
"class"), and the class's name ("" to find it). It speaks as `conversation.py` says.
"""

import asyncio
import inspect
import json
import math
import os
import sys
import traceback
import typing

KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", tuple: "array"}
NAMES = ("Environment", "Env")


def failure(error):
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""
    return f"{type(error).__name__}: {error}{where}"[:600]


def schema_of(kind):
    """The JSON schema of an annotation; anything where there is none, or none that JSON has."""
    if kind in KINDS:
        return {"type": KINDS[kind]}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (list, tuple, set):
        return {"type": "array", "items": schema_of(arguments[0])} if arguments else {"type": "array"}
    if origin is dict:
        return {"type": "object"}
    known = [argument for argument in arguments if argument is not type(None)]
    if len(known) == 1 and len(arguments) == 2:
        return schema_of(known[0])
    return {}


def tool_schema(name, function):
    """As OpenAI's API has it: a docstring's first paragraph describes the tool."""
    hints = typing.get_type_hints(function)
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        properties[parameter.name] = schema_of(hints.get(parameter.name))
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    description = (inspect.getdoc(function) or "").split("\n\n")[0]
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


class Tools:
    """The functions of a file that do not begin with an underscore, or those that its list TOOLS has."""

    def __init__(self, module, loop):
        own = [value for value in vars(module).values()
               if inspect.isfunction(value) and value.__module__ == module.__name__
               and not value.__name__.startswith("_")]
        listed = getattr(module, "TOOLS", own)
        self.functions = {function.__name__: function for function in listed}
        if not self.functions:
            raise AttributeError("defines no function that could be a tool")
        self.loop = loop

    def hello(self):
        return {"tools": [tool_schema(name, function) for name, function in self.functions.items()]}

    def answer(self, request):
        """What a call returns. Whatever goes wrong in it is for the policy to read."""
        name = request["name"]
        function = self.functions.get(name)
        if function is None:
            return {"text": f"Error: there is no tool {name!r}; there are {', '.join(sorted(self.functions))}"}
        try:
            inspect.signature(function).bind(**request["arguments"])
        except TypeError as error:
            return {"text": f"Error: {name}: {error}"}
        try:
            value = result(self.loop, function(**request["arguments"]))
        except MemoryError:
            raise
        except Exception as error:
            return {"text": f"Error: {type(error).__name__}: {error}"}
        return {"text": value if isinstance(value, str) else json.dumps(value, default=str)}


class Episodes:
    """Instances of a class with `reset` and `step`, one for each episode."""

    def __init__(self, module, loop, name):
        self.kind, self.loop, self.episodes = find(module, name), loop, {}

    def hello(self):
        return {"tools": list(getattr(self.kind, "tools", []))}

    def answer(self, request):
        episode = request["episode"]
        for closed in request["closed"]:
            self.close(self.episodes.pop(closed, None))
        if request["op"] == "reset":
            self.episodes[episode] = self.kind()
            begun = result(self.loop, self.wanted(self.episodes[episode].reset, request["fields"]))
            return {"messages": messages(begun)}
        return step(result(self.loop, self.episodes[episode].step(request["text"])))

    def close(self, instance):
        try:
            if hasattr(instance, "close"):
                result(self.loop, instance.close())
        except Exception:
            # Its episode is over: what it says now is for the log.
            traceback.print_exc()

    def wanted(self, reset, fields):
        """`reset` is given those of the prompt's fields that it takes."""
        parameters = inspect.signature(reset).parameters.values()
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return reset(**fields)
        names = [parameter.name for parameter in parameters]
        return reset(**{name: value for name, value in fields.items() if name in names})


def find(module, name):
    """The named class, else one of the known names, else the only one with `reset` and `step`."""
    own = [value for value in vars(module).values()
           if inspect.isclass(value) and value.__module__ == module.__name__
           and callable(getattr(value, "reset", None)) and callable(getattr(value, "step", None))]
    for known in [name] if name else NAMES:
        for found in own:
            if found.__name__ == known:
                return found
    if name or len(own) != 1:
        names = ", ".join(found.__name__ for found in own) or "none"
        wanted = f"no class {name!r}" if name else "not one class"
        raise AttributeError(f"defines {wanted} with reset and step (it has {names}); name one with `class`")
    return own[0]


def result(loop, value):
    return loop.run_until_complete(value) if inspect.isawaitable(value) else value


def messages(said):
    """What an environment says: nothing, a text, or messages as a chat has them."""
    if said is None or said == "":
        return []
    said = [said] if isinstance(said, (str, dict)) else list(said)
    found = []
    for message in said:
        if isinstance(message, str):
            message = {"role": "user", "content": message}
        role, content = message.get("role", "user"), message.get("content")
        if role not in ("user", "tool") or not isinstance(content, str):
            raise TypeError(f"said {message!r:.200}: a message has a role, user or tool, and a text as content")
        found.append({"role": role, "content": content})
    return found


def step(returned):
    """What a step brings: what is said; or with the reward and whether the episode is over, as Gymnasium has it."""
    said, reward, done = returned, 0.0, False
    if isinstance(returned, tuple):
        # observation, reward, terminated[, truncated][, info]
        said, reward = returned[0], returned[1] if len(returned) > 1 else 0.0
        done = any(flag is True for flag in returned[2:4])
    elif isinstance(returned, dict) and "role" not in returned:
        said, reward = returned.get("observation"), returned.get("reward", 0.0)
        done = bool(returned.get("done") or returned.get("terminated") or returned.get("truncated"))
    elif returned is None:
        done = True
    reward = float(reward or 0.0)
    if not math.isfinite(reward):
        raise ValueError(f"a reward of {reward}, must be finite")
    said = messages(said)
    if not said and not done:
        raise ValueError("said nothing, though the episode is not over")
    return {"messages": said, "reward": reward, "done": done}


def main():
    path, memory, kind, name = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    requests, answer = converse(memory)
    loop = asyncio.new_event_loop()
    try:
        module = load_file(path, "environment")
        worker = Tools(module, loop) if kind == "tools" else Episodes(module, loop, name)
        hello = worker.hello()
    except BaseException as error:
        answer({"error": failure(error)})
        return
    answer(hello)
    for request in requests:
        try:
            answer(worker.answer(request))
        except MemoryError:
            raise
        except Exception as error:
            answer({"error": failure(error)})


main()
