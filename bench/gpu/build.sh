#!/bin/sh
# Makes the folder of programs that all.sh runs: examples in release, and the test programs that have tests of a GPU.
#
#     bench/gpu/build.sh              # with CUDA (setup/install.sh cuda: 5 GB), into target/gpu-bin
#     DEVICE=cpu bench/gpu/build.sh   # without, to try the programs
set -eu
cd "$(dirname "$0")/../.."
out=${BIN:-target/gpu-bin}
if [ "${DEVICE:-cuda}" = cpu ]; then
    features=; target=target
else
    features="--features cli/cuda"; target=target/cuda
    export LIBTORCH="$PWD/.deps/cuda/torch"
fi
cargo build --release --locked --workspace $features --target-dir "$target" \
    --example engine_speed --example engine_swap --example steps
rm -rf "$out"
mkdir -p "$out"
for program in engine_speed engine_swap steps; do
    cp "$target/release/examples/$program" "$out/"
done
# Their names have a hash: cargo says where they are.
cargo test --no-run --locked --workspace $features --target-dir "$target" --test engine --test cuda --test ranks \
    --message-format json | python3 -c '
import json, shutil, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("reason") == "compiler-artifact" and made.get("executable") and made["profile"]["test"]:
        shutil.copy(made["executable"], sys.argv[1] + "/test-" + made["target"]["name"])
' "$out"
strip "$out"/*
du -sh "$out"
