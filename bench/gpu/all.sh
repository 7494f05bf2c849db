#!/bin/sh
# Everything that a GPU has to show, in one command and at most twelve minutes:
#
#     bench/gpu/build.sh              # where the compiler is: makes target/gpu-bin, 64 MiB at most
#     bench/gpu/all.sh OUT            # where the GPU is: OUT/result.json, OUT/table.md, OUT/STAGE.log
#
# It stops at the first stage that fails and says which one it was (KEEP_GOING=1 goes on). DEVICE=cpu tries all of it with tiny
# shapes on a machine without a GPU; BIN names another folder of programs, LIMIT another number of seconds.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec python3 "$here/all.py" "$@"
