"""Broadcast and all-reduce of the crate `collective` against raw c10d (torch.distributed), by turns on this machine.

    python3 bench/broadcast/compare.py [--rounds N] [--python PYTHON]

Needs a Python that imports torch 2.11 (the wheel with all its dependencies; `setup/install.sh cuda` puts one into
.deps/cuda, which is found by itself). Prints, for each operation, number of ranks and size, the median GB/s of both and
their ratio. Single figures depend on what else the machine does; the ratio comes from runs that took turns.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]


def lines(command, environment):
    output = subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        name, ranks, size, microseconds, _ = line.split("\t")
        yield (name, int(ranks), int(size)), float(microseconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--python", default=sys.executable, help="the Python that imports torch")
    arguments = parser.parse_args()

    build = ["cargo", "build", "--release", "-p", "collective", "--example", "bandwidth"]
    subprocess.run(build, cwd=CHECKOUT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", CHECKOUT / "target"))
    ours = [str(target / "release/examples/bandwidth")]
    raw = [arguments.python, "-W", "ignore", str(HERE / "raw.py")]
    raw_environment = dict(os.environ, GLOO_SOCKET_IFNAME="lo")
    wheels = CHECKOUT / ".deps/cuda"
    if wheels.is_dir():
        raw_environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(wheels), os.environ.get("PYTHONPATH")]))

    times = {}
    for _ in range(arguments.rounds):
        for side, command, environment in [("ours", ours, dict(os.environ)), ("raw", raw, raw_environment)]:
            for key, microseconds in lines(command, environment):
                times.setdefault(key, {}).setdefault(side, []).append(microseconds)

    print(f"{'operation':<11}{'ranks':>6}{'size':>10}{'ours GB/s':>11}{'raw GB/s':>10}{'ours/raw':>10}{'ours us':>10}{'raw us':>10}")
    for (name, ranks, size), sides in sorted(times.items(), key=lambda item: (item[0][0], item[0][1], item[0][2])):
        mine, theirs = (statistics.median(sides[side]) for side in ("ours", "raw"))
        shown = f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
        speed = [size / microseconds / 1e3 for microseconds in (mine, theirs)]
        print(f"{name:<11}{ranks:>6}{shown:>10}{speed[0]:>11.3f}{speed[1]:>10.3f}{theirs / mine:>10.2f}{mine:>10.1f}{theirs:>10.1f}")


if __name__ == "__main__":
    main()
