# `make demo` and `make test` are the only commands a fresh machine needs. Both set up what is missing first.

CARGO = cargo
DEMO = examples/tiny-coder/recipe.toml

.PHONY: demo demo-interpreter test setup build lint doc deny mutants check-cuda gpu-try parity openai openenv page test-slurm clean-runs

# Trains tiny-coder from nothing through the real ring, and prints what came of it. Finished stages are skipped.
demo: setup
	$(CARGO) build --release --locked --workspace --bins
	target/release/sluice run $(DEMO) --resume

# Trains a policy that learns when to run code (examples/code-interpreter), and prints what came of it.
demo-interpreter: setup
	$(CARGO) build --release --locked --workspace --bins
	target/release/sluice run examples/code-interpreter/recipe.toml --resume
	python3 examples/code-interpreter/measure.py target/release/sluice

# Every test that needs nothing but this machine. Building the tests builds the programs that they start. Without math-verify
# (the Python package index is out of reach): SLUICE_WITHOUT_MATH=1 leaves its tests out. promtool in the
# same way (Debian's packages are out of reach): SLUICE_WITHOUT_PROMTOOL=1. The schemas of Kubernetes too:
# SLUICE_WITHOUT_SCHEMAS=1.
test: setup
	test "$$SLUICE_WITHOUT_MATH" = 1 || setup/install.sh math
	test "$$SLUICE_WITHOUT_PROMTOOL" = 1 || setup/install.sh promtool
	test "$$SLUICE_WITHOUT_SCHEMAS" = 1 || setup/install.sh schemas
	$(CARGO) nextest --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-nextest
	$(CARGO) nextest run --locked --workspace --profile ci
	# Programs of doc tests lie outside target/, where the path to libtorch that is linked into them does not lead.
	LD_LIBRARY_PATH=$(CURDIR)/.deps/python/torch/lib $(CARGO) test --locked --workspace --doc

# libtorch and headers into .deps/ of this checkout.
setup:
	@setup/install.sh

build: setup
	$(CARGO) build --release --locked --workspace --bins

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

# Licences, sources, duplicates and known vulnerabilities of dependencies, by deny.toml. `make test` asserts the first three.
deny:
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check

# Which changes of the mathematics and of the coordinator's state no test notices (.cargo/mutants.toml). Hours; a sample of one in
# twenty: `make mutants SHARD=0/20`.
SHARD = 0/1
mutants: setup
	$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-mutants
	$(CARGO) mutants -p algo -p coordinator --shard $(SHARD) --sharding round-robin -o target

# Compiles everything with NCCL, against the CUDA wheels (about 5 GB into .deps/cuda).
check-cuda:
	setup/install.sh cuda
	LIBTORCH=$(CURDIR)/.deps/cuda/torch $(CARGO) check --locked --workspace --features cli/cuda --target-dir target/cuda

# Tries bench/gpu/all.sh without a GPU: tiny shapes, the programs of this build.
gpu-try: setup
	$(CARGO) build --locked --workspace --example engine_speed --example engine_swap --example steps
	DEVICE=cpu BIN=$(CURDIR)/target/debug/examples LIMIT=300 bench/gpu/all.sh target/gpu-try

# Compares with transformers in a throw-away Python environment (needs the Python package index).
parity: setup
	crates/model/tests/parity/check.sh

# Speaks to `sluice serve` with the openai package, and plays the episodes of rings with it and with agent frameworks, in throw-away
# Python environments.
openai: setup
	crates/openai/tests/peer/check.sh

# Plays episodes in an environment on OpenEnv's own server, in a throw-away Python environment.
openenv: setup
	reward-server/tests/peer/check.sh

# Takes a run through a Slurm cluster of four nodes, in namespaces of this machine (needs root, and Slurm's packages from Debian
# or Ubuntu). Programs of another folder: `make test-slurm SLUICE_BIN=FOLDER`.
test-slurm: setup
	test -n "$(SLUICE_BIN)" || $(CARGO) build --locked --workspace --bins
	SLUICE_BIN="$(or $(SLUICE_BIN),$(CURDIR)/target/debug)" tests/slurm/check.sh

# Looks at the run's page in a headless Chromium, where there is one (and npm, for its driver).
page: setup
	crates/dashboard/tests/browser/check.sh
