# Every target creates what it needs and may be repeated.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)
# The newest Megatron-Core asks for a newer Python; what it is tested with lives apart from .venv.
PYTHON_NEWEST ?= python3.12
VENV_NEWEST := .venv-newest
BIN_NEWEST := $(VENV_NEWEST)/bin
STAMP_NEWEST := $(VENV_NEWEST)/.installed
# SGLang is a server with an environment of its own, which needs this Python: its wheel is built for no other.
PYTHON_SGLANG ?= python3.11
VENV_SGLANG := .venv-sglang
BIN_SGLANG := $(VENV_SGLANG)/bin
STAMP_SGLANG := $(VENV_SGLANG)/.installed
# Triton alone, beside what .venv has: its interpreter runs GPU kernels on a CPU, and its compiler needs no GPU.
VENV_TRITON := .venv-triton
STAMP_TRITON := $(VENV_TRITON)/.installed
# The version that belongs to the pinned torch.
TRITON := $(shell grep '^triton==' constraints-newest.txt)
TORCH_SGLANG := $(shell grep '^torch==' constraints-sglang.txt)
SLURM_PACKAGES := slurmctld slurmd slurm-client munge iproute2 shellcheck
CODE := megacov tests $(wildcard examples benchmarks)

# One thread a process: ranks share the cores, and two threads each on two cores run ten times slower.
# A module goes to one worker, whose servers or ranks then start once. Three workers share two cores, because tests wait
# for servers, signals and deadlines about half of the time.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder --durations=25
TEST_NEWEST := OMP_NUM_THREADS=1 $(BIN_NEWEST)/python -m pytest -n 2 --dist loadscope --durations=5 -m "not slow"
PIP_NEWEST := $(BIN_NEWEST)/python -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help env lint format sglang try-sglang triton try-triton try-slurm try-browser test test-long test-newest run-test-newest check quickstart bench clean

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

sglang: $(STAMP_SGLANG)  ## make .venv-sglang with the SGLang server that tests start on the CPU

# Without dependencies: what SGLang declares brings CUDA libraries by the gigabyte; what it needs on a CPU is all pinned.
$(STAMP_SGLANG): constraints-sglang.txt
	@command -v $(PYTHON_SGLANG) >/dev/null || test -x $(BIN_SGLANG)/python || \
		{ echo "make: SGLang's servers need Python 3.11, and there is no $(PYTHON_SGLANG)" >&2; exit 1; }
	@echo "installing SGLang into $(VENV_SGLANG), a minute or two and 1.6 GB the first time"
	@$(BIN_SGLANG)/python -m pip --version >/dev/null 2>&1 || $(PYTHON_SGLANG) -m venv --clear $(VENV_SGLANG)
	@$(BIN_SGLANG)/python -m pip install -qq --disable-pip-version-check $(TORCH_SGLANG)
	@$(BIN_SGLANG)/python -m pip install -qq --disable-pip-version-check --no-deps --requirement constraints-sglang.txt
	@touch $@

try-sglang:
	@$(MAKE) --no-print-directory sglang || echo "make: tests marked sglang are skipped: SGLang could not be installed"

triton: env $(STAMP_TRITON)  ## make .venv-triton, in which tests run the GPU kernels on the CPU

$(STAMP_TRITON): $(STAMP) constraints-newest.txt
	@echo "installing Triton into $(VENV_TRITON), some seconds and 700 MB the first time"
	@$(BIN)/python -m venv --clear --without-pip $(VENV_TRITON)
	@site="$$($(VENV_TRITON)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target "$$site" $(TRITON) && \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$$site/venv.pth"
	@touch $@

try-triton:
	@$(MAKE) --no-print-directory triton || echo "make: tests marked triton are skipped: Triton could not be installed"

# SLURM's daemons, for tests that bring up a cluster inside this machine; shellcheck reads job scripts. As root only.
try-slurm:
	@if command -v slurmctld slurmd munged shellcheck ip >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then why="apt-get and root are needed to install SLURM"; \
	elif { timeout 300 apt-get install -qq -y --no-install-recommends $(SLURM_PACKAGES) || \
		{ timeout 120 apt-get update -qq && \
		  timeout 300 apt-get install -qq -y --no-install-recommends $(SLURM_PACKAGES); }; } >/dev/null 2>&1; then exit 0; \
	else why="apt-get could not install SLURM"; fi; \
	echo "make: tests marked slurm are skipped: $$why"

# Debian's Chromium, for tests that look at pages. As root only.
try-browser:
	@if command -v chromium >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then why="apt-get and root are needed to install Chromium"; \
	elif { timeout 300 apt-get install -qq -y --no-install-recommends chromium || \
		{ timeout 120 apt-get update -qq && \
		  timeout 300 apt-get install -qq -y --no-install-recommends chromium; }; } >/dev/null 2>&1; then exit 0; \
	else why="apt-get could not install Chromium"; fi; \
	echo "make: tests marked browser are skipped: $$why"

test: env try-sglang try-triton try-slurm try-browser  ## all quick tests that need no GPU
	$(TEST) -m "not slow"

test-long: env try-sglang try-triton try-slurm try-browser  ## all tests that can run here
	$(TEST)

# A python3.12 on the PATH may be pyenv's, which fails unless that version is selected: so it is run, then pyenv is asked.
test-newest:  ## the Megatron tests with the newest megatron-core, where there is a Python 3.12; not part of check
	@for python in $(PYTHON_NEWEST) "$$(pyenv prefix "$$(pyenv latest 3.12 2>/dev/null)" 2>/dev/null)/bin/python"; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then \
			exec $(MAKE) --no-print-directory run-test-newest PYTHON_NEWEST="$$python"; \
		fi; \
	done; \
	echo "skipped: neither $(PYTHON_NEWEST) nor pyenv has Python 3.12; name one: make test-newest PYTHON_NEWEST=PATH"

run-test-newest: $(STAMP_NEWEST)
	$(TEST_NEWEST) --dist loadfile tests/unit/megatron tests/distributed
	$(TEST_NEWEST) tests/end_to_end/test_train.py -k trains

# Each name is pinned by the first line that has it: constraints-newest.txt holds only what differs.
$(STAMP_NEWEST): pyproject.toml constraints.txt constraints-newest.txt
	@echo "installing into $(VENV_NEWEST), some minutes and 5 GB the first time: torch comes with CUDA"
	@$(BIN_NEWEST)/python -m pip --version >/dev/null 2>&1 || $(PYTHON_NEWEST) -m venv --clear $(VENV_NEWEST)
	@awk -F '==' '!seen[$$1]++' constraints-newest.txt constraints.txt >$(VENV_NEWEST)/constraints.txt
	@$(PIP_NEWEST) --constraint $(VENV_NEWEST)/constraints.txt --editable '.[dev]'
	@touch $@

check: lint test  ## everything that must be green before a commit

quickstart: env  ## train a tiny policy with GRPO, Clip-Cov and KL-Cov and compare them
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.sum_pairs.quickstart

bench: env  ## time log-probs, entropy and selection beside other projects' functions; docs/performance.md
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.ops
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.ops --dtype bfloat16
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.selection

clean:  ## remove caches and environments; runs/ stays
	rm -rf $(VENV) $(VENV_NEWEST) $(VENV_SGLANG) $(VENV_TRITON) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
