# Each target sets itself up: a fresh machine needs make and Python 3.11 or later, nothing else.
#   make demo      the whole pipeline on the embedded corpus, a few minutes on two cores
#   make test      tests without the slow ones        make test-all   all tests
#   make lint      ruff and mypy                      make bench      benchmarks
#   make gpu-check the recorded values on a GPU (needs a torch built for CUDA)
# PYTHON=python3.12 chooses an interpreter, VENV=dir another folder for the environment.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
WORKERS ?= 2
# of slow tests, which wait for processes much of their time
SLOW_WORKERS ?= 3

# pip reads these in every process it starts, the isolated build environments included.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow test-all lint bench gpu-check install clean
.DELETE_ON_ERROR:

demo: $(RUNTIME)
	$(BIN)/python -m harness run suites/cross_generator.yaml --profile demo

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(SLOW_WORKERS) --dist loadfile

test-all: test test-slow

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy harness detectors reports

bench: $(DEV)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -o addopts="--import-mode=importlib --strict-markers"

gpu-check: $(DEV)
	$(BIN)/python tests/gpu_check.py

install: $(DEV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later found; install one, or say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is not Python 3.11 or later; say another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev]'
	@touch $(RUNTIME) $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
