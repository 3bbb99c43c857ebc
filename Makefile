# Two commands work on a fresh clone with Python 3.10+ and nothing else: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= demo
EXPERIMENTS_OUT ?= experiments
REAL ?= downloads/real
REAL_OUT ?= real
BIN := $(VENV)/bin

.PHONY: demo experiments real test check bench install clean

demo: $(VENV)/.installed  ## the whole chain on the synthetic world, CPU only; results in $(DEMO_OUT)/
	$(BIN)/python -m jobs.demo --out $(DEMO_OUT)

experiments: $(VENV)/.installed  ## all methods over three seeds on the synthetic world; goes on where it stopped
	$(BIN)/python -m jobs.experiments --out $(EXPERIMENTS_OUT) --seeds 0 1 2

real: $(VENV)/.installed  ## the tables of docs/results.md from the data in $(REAL); goes on where it stopped
	$(BIN)/python -m jobs.experiments --data $(REAL) --out $(REAL_OUT)

# A file of tests belongs to one process (tests/conftest.py says which go together, and in which order); two at a time,
# with one thread each. What C libraries say of a crash is shown.
TESTS := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	--max-worker-restart 0 --capture=sys

test: $(VENV)/.installed-test  ## every test, the slow ones too
	$(TESTS) --durations=15

check: $(VENV)/.installed-check  ## format, lint, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TESTS) -m "not slow"

bench: $(VENV)/.installed-test  ## benchmarks: both sides and the ratio, never a test
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.paste

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

$(VENV)/.installed-check: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,check]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
