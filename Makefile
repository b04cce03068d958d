# Two commands, each from a bare machine with Python >= 3.10:
#   make demo   teach the embedded backbone 500 real facts; writes runs/demo (report.md, results.json, memory/)
#   make test   lint, types and tests; make test-all has the long tests too
# Variables: PYTHON (the interpreter the environment is made with), VENV (where it lives), OUT (the demo's folder).

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo

BIN := $(VENV)/bin
# Modules are compiled when they are first imported, which is a fraction of those that are installed.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile
OLDEST_PEFT := 0.20.0
# The tuner's tests in which peft has a part; the others are the same on any.
PEFT_TESTS := config.py handle.py model.py saving.py

# One thread a worker: two workers on two cores would otherwise run four or more threads and wait for each other. Each
# worker takes half of the tests, in their order, and then of the other's what is left: what a module's tests share is
# made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
WORKERS := -n 2 --dist worksteal

.PHONY: demo test test-all suite lint test-oldest-peft clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/memlayers demo --out $(OUT)

test: lint
	$(PYTEST) $(WORKERS)

test-all: lint
	$(PYTEST) $(WORKERS) -m ""

# The tests alone: .ci/run has linted before.
suite: $(VENV)/.installed-dev
	$(PYTEST) $(WORKERS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The oldest supported peft lies in a folder of its own, which comes before the environment's newer one on the path.
test-oldest-peft: $(VENV)/peft-$(OLDEST_PEFT)
	PYTHONPATH=$(abspath $<) $(BIN)/python -c "import peft; assert peft.__version__ == '$(OLDEST_PEFT)', peft.__version__"
	PYTHONPATH=$(abspath $<) $(PYTEST) $(addprefix tests/tuner/test_,$(PEFT_TESTS))

# Stamp files: a second call installs nothing unless the project's requirements changed.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.installed

$(VENV)/peft-$(OLDEST_PEFT): $(VENV)/.installed-dev
	rm -rf $@
	$(PIP) --no-deps --target $@ peft==$(OLDEST_PEFT)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
