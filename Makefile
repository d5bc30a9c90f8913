# Everything that the README names. `make setup` runs by itself when .venv is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find proto -name '*.proto')

.PHONY: setup proto proto-check lint test demo bench-quick chaos clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,parquet,local,dev]'
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
	$(BIN)/python -m pytest

bench-quick: setup
	$(BIN)/python -m bench.quick

chaos: setup
	$(BIN)/python -m bench.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ETCD),--etcd $(ETCD))

clean:
	rm -rf $(VENV)
