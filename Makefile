# Every target creates what it needs and may be repeated.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
CODE := megacov tests $(wildcard examples benchmarks)

# One thread a process: ranks share the cores, and two threads each on two cores run ten times slower.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=15

.DEFAULT_GOAL := help
.PHONY: help env lint format test test-long check quickstart clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## make .venv with everything that needs no GPU

# torch comes first and pinned: a range would take the newest build and gigabytes of CUDA libraries with it.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || test -x $(BIN)/python || \
		{ echo "make: $(PYTHON) is not installed; install it, or name another: make env PYTHON=python3.12" >&2; exit 1; }
	@echo "installing into $(VENV), some minutes the first time"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(TORCH)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lint: env  ## formatting, ruff, types, docstrings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet $(CODE)

format: env  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: env  ## all quick tests that need no GPU
	$(TEST) -m "not slow"

test-long: env  ## all tests that can run here
	$(TEST)

check: lint test  ## everything that must be green before a commit

quickstart: env  ## train a tiny policy with GRPO, Clip-Cov and KL-Cov and compare them
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.sum_pairs.quickstart

clean:  ## remove caches and .venv; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
