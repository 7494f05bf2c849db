#!/bin/sh
# Speaks to `sluice serve` with the `openai` package, and plays episodes of a ring with it and with agent frameworks, in throw-away
# Python environments.
set -eu
cd "$(dirname "$0")/../../../.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
cargo build --quiet --locked --workspace --bins --example folders
target/debug/examples/folders "$environment/folders"
# A small model of random weights, with a tokenizer and a chat template.
model=$environment/folders/llama_plain
cp "$environment/folders/tokenizer"/*token* "$model"
python3 -m venv "$environment/venv"
"$environment/venv/bin/pip" install --quiet 'openai>=2,<3'
"$environment/venv/bin/python" crates/openai/tests/peer/check.py target/debug/sluice "$model"
"$environment/venv/bin/python" crates/openai/tests/peer/agent.py target/debug/sluice "$environment/ring"
# Agent frameworks want another version of the package.
python3 -m venv "$environment/frameworks"
"$environment/frameworks/bin/pip" install --quiet 'openai-agents==0.24.*' 'pydantic-ai-slim[openai]==2.68.*'
"$environment/frameworks/bin/python" crates/openai/tests/peer/frameworks.py target/debug/sluice "$environment/frameworks-rings"
