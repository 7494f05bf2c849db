"""Two checkers as they are commonly written, to compare with: everything in one interpreter, and everything in bubblewrap.

Neither is safe; they are here to be measured, and run only what this folder and the attack corpus give them.
"""

import builtins
import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile

BWRAP = [
    "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--proc", "/proc", "--dev", "/dev",
    "--tmpfs", "/tmp", "--ro-bind", "/usr", "/usr", "--ro-bind", "/lib", "/lib", "--ro-bind-try", "/lib64", "/lib64",
    "--chdir", "/tmp", "/usr/bin/python3", "-I", "-S", "-c",
]


def whole(program, test, entry_point):
    return f"{program}\n{test}\ncheck({entry_point})\n"


def guard():
    """What OpenAI's harness takes away from the program (`reliability_guard` of openai/human-eval)."""
    os.environ["OMP_NUM_THREADS"] = "1"
    builtins.exit = builtins.quit = None
    for name in """kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate
                   replace unlink fchmod fchown chmod chown chroot lchown getcwd chdir""".split():
        setattr(os, name, None)
    shutil.rmtree = shutil.move = shutil.chown = None
    subprocess.Popen = None
    for name in ("ipdb", "joblib", "resource", "psutil", "tkinter"):
        sys.modules[name] = None


def late(_signal, _frame):
    raise TimeoutError


def execute(source, timeout, result):
    rmtree, rmdir, chdir = shutil.rmtree, os.rmdir, os.chdir
    # Nothing keeps these programs from writing: what some leave behind must not lie in the checkout.
    os.chdir(tempfile.gettempdir())
    guard()
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            exec(source, {})
        result.append("passed")
    except BaseException as error:
        result.append(f"failed: {error}")
    signal.setitimer(signal.ITIMER_REAL, 0)
    shutil.rmtree, os.rmdir, os.chdir = rmtree, rmdir, chdir


def one_interpreter(program, test, entry_point, timeout=3.0):
    """The shape of OpenAI's harness: a process, a manager's list for the verdict, the tests in the program's interpreter."""
    with multiprocessing.Manager() as manager:
        result = manager.list()
        process = multiprocessing.Process(target=execute, args=(whole(program, test, entry_point), timeout, result))
        process.start()
        process.join(timeout + 1)
        if process.is_alive():
            process.kill()
            process.join()
        try:
            return list(result)[:1] == ["passed"]
        except (EOFError, ConnectionError):
            return False


def bubblewrap(program, test, entry_point, timeout=3.0):
    """Namespaces around a fresh interpreter; the verdict is the exit code."""
    try:
        ended = subprocess.run(
            BWRAP + [whole(program, test, entry_point)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0
