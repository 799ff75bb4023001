# Everything a newcomer needs: `make quickstart` and `make test` set up what they use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup quickstart test test-slurm test-gpu style types check format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## make .venv and install the package into it, once

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[dev]'
	@touch $@

quickstart: setup  ## from recordings to a trained, evaluated audio-LLM and its report
	$(BIN)/python tools/quickstart.py

test: setup  ## run the tests, in two processes: many of them wait for others
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slurm: setup  ## run every scenario on a real Slurm, which must be installed (docs/results/slurm.md)
	PALTRAIN_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m slurm -n 2 --dist loadfile --junitxml=$(VENV)/slurm.xml
	$(BIN)/python -m tests.slurm.summarise $(VENV)/slurm.xml docs/results/slurm.md

test-gpu: setup  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

style: setup  ## lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## mypy, strict
	$(BIN)/mypy

check: style types test  ## style, types and tests

clean:  ## remove the venv and caches; data and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
