# Two commands do all the set-up: `make demo` and `make test`. Everything installs into .venv, with pinned versions.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
BENCH_VENV ?= .venv-bench

.PHONY: install demo check test bench-store bench-decode bench-build bench-faults bench-streaming format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/vlm-cache demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

test: install
	$(BIN)/python -m pytest --quiet -n 2 --dist loadfile

# Into an environment of its own, because what is compared pins other versions. OPTIONS="--quick" only shows that it runs;
# OPTIONS=--record rewrites docs/benchmarks.md.
bench-store: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m benchmarks.store $(OPTIONS)

# `make bench-decode OPTIONS="--data DIR"` measures over the videos below DIR, and over some that it makes; about ten minutes.
bench-decode: install
	$(BIN)/python -W ignore -m benchmarks.decode $(OPTIONS)

# About a quarter of an hour. OPTIONS="--only scheduling" measures one row; OPTIONS=--record rewrites docs/benchmarks.md.
bench-build: install
	$(BIN)/python -W ignore -m benchmarks.build $(OPTIONS)

# About half an hour; `make bench-faults OPTIONS="kill9 --count 500"` runs one script for a minute.
bench-faults: install
	$(BIN)/python -W ignore -m benchmarks.faults $(OPTIONS)

# A few minutes. OPTIONS="--device cuda --model DIR" measures a checkpoint on a GPU; OPTIONS=--record rewrites docs/benchmarks.md.
bench-streaming: install
	$(BIN)/python -W ignore -m benchmarks.streaming $(OPTIONS)

$(BENCH_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps mosaicml-streaming
	touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(BENCH_VENV) demo_run .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
