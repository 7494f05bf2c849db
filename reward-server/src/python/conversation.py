"""What every worker process of the reward server begins with: how it is asked, how it answers, and when it leaves.

The server puts this text in front of the worker's own.
"""

import importlib.util
import json
import os
import resource
import signal
import sys
import threading
import time


def leave_with_the_server(server):
    while os.getppid() == server:
        time.sleep(1.0)
    os._exit(1)


def converse(memory):
    """The requests, one JSON object a line, and how to answer one.

    Whatever the user's code prints goes to stderr from here on; the address space has `memory` bytes (0: no limit).
    """
    # Slurm, systemd and terminals signal every process of a job: the server finishes what it has first, and needs its
    # workers for that. A handler, unlike SIG_IGN, is not handed on to what the user's code starts.
    signal.signal(signal.SIGTERM, lambda *_: None)
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

    return map(json.loads, requests), answer


def load_file(path, name):
    """The user's file as a module of this name, which may import what lies beside it."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec.loader.exec_module(module)
    return module


