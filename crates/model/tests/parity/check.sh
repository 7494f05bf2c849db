#!/bin/sh
# Checks that folders written by Sluice load in transformers 5 and 4 with the same numbers, in a throw-away Python
# environment (a few gigabytes while it runs). The other direction, numbers that transformers made, is tests/parity.rs.
set -eu
cd "$(dirname "$0")/../../../.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
torch=$(grep -o 'torch==[0-9.]*' setup/torch.txt | head -n 1)
for transformers in 'transformers>=5.0,<6' 'transformers>=4.57,<5'; do
    "$environment/bin/pip" install --quiet "$torch" "$transformers" safetensors jinja2
    "$environment/bin/python" crates/model/tests/parity/check_saved.py
done
