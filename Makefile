# Everything that the README names. `make setup` runs by itself when .venv is missing.
PYTHON ?= python3
# The index engine: cpu, gpu (CUDA 13) or gpu-cuda12, of which each excludes the others: `make clean`
# between them.
ENGINE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find proto -name '*.proto')

.PHONY: setup proto proto-check lint test demo bench-quick bench bench-parts bench-peers gpu-check chaos reshard-check clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt hatch_build.py indexd/ann/native/rescore.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(ENGINE),parquet,local,dev]'
	touch $@

# Regenerates the committed stubs in facegrid/api.
proto: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/generate_api.py facegrid/api

# VECTORS and SUBJECTS reach the shell as variables of the environment, so any path may be given.
demo: setup
	$(BIN)/python -m bench.demo $(if $(VECTORS),--vectors "$$VECTORS") $(if $(SUBJECTS),--subjects "$$SUBJECTS")

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/generate_api.py --check facegrid/api
	$(BIN)/python -m pytest -q tests/tidy

test: lint
	tests/all.sh $(BIN)/python $(WORKERS)

# What needs a GPU, where it was set up with ENGINE=gpu; elsewhere it says why it is skipped.
gpu-check: setup
	$(BIN)/python -m pytest -m gpu tests/conformance tests/unit

bench-quick: setup
	$(BIN)/python -m bench.quick

# The peers' own environment, with the versions of bench/peers/constraints.txt.
.venv-peers/failed.json: bench/peers/constraints.txt bench/peers/requirements.txt | setup
	$(BIN)/python -m bench.peers.environment .venv-peers

bench-peers: setup .venv-peers/failed.json
	$(BIN)/python -m bench.peers $(if $(TEMPLATES),--templates $(TEMPLATES))

# About an hour on two cores; `make bench RESUME=1` goes on where it was broken off.
bench: setup
	$(BIN)/python -m bench.whole $(if $(RESUME),--resume)

bench-parts: setup
	$(BIN)/python -m pytest --benchmark-only bench/parts

chaos: setup
	$(BIN)/python -m bench.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ETCD),--etcd $(ETCD))

reshard-check: setup
	$(BIN)/python -m bench.reshard $(if $(SEED),--seed $(SEED))

clean:
	rm -rf $(VENV)
