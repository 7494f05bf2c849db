#!/bin/sh
# Plays episodes in an environment on OpenEnv's own server, over its WebSocket, in a throw-away Python environment.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../../.."
environment=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server"; rm -rf "$environment"' EXIT
cargo build --quiet --locked --workspace --bins --example folders
target/debug/examples/folders "$environment/folders"
# A small model of random weights: whatever it says is a turn.
model=$environment/folders/llama_plain
cp "$environment/folders/tokenizer"/*token* "$model"
python3 -m venv "$environment/venv"
python=$environment/venv/bin/python
"$python" -m pip install --quiet 'openenv-core>=0.3,<0.5'
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$python" "$here/server.py" "$port" &
server=$!
"$python" "$here/check.py" target/debug/sluice "$model" "$port" "$environment"
