# Two commands do all the set-up: `make demo` and `make test`. Everything installs into .venv, with pinned versions.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
BENCH_VENV ?= .venv-bench
OLDEST_PYTHON ?= python3.10
OLDEST_VENV ?= .venv-oldest
HARNESS_VENV ?= .venv-harness
READING_TESTS := tests/cache_store tests/consumers/training tests/pipeline/encoders/test_live_weights.py tests/test_old_scripts.py \
	tests/test_reading_install.py
HARNESS_TESTS := tests/consumers/evaluation/harnesses

.PHONY: install demo check test test-oldest test-harnesses format clean
.PHONY: bench-store bench-pack bench-decode bench-build bench-consumers bench-faults bench-streaming

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

# A test process that dies ends the run: once xdist 3.8 has replaced one, the run may never end (pytest-xdist #1378).
test: install
	$(BIN)/python -m pytest --quiet -n 2 --dist loadfile --max-worker-restart 0 -m "not slow"

# Each benchmark once through, with small sizes, and long tests that others stand in for: ten minutes. Before figures are recorded, and
# for who changes a benchmark or how builds recover.
test-slow: install
	$(BIN)/python -m pytest --quiet -m slow

# The tests that the reading install must pass, in an environment with Python 3.10 and the oldest versions that the base
# install promises. torch 2.1 is published for Linux with CUDA only: what it wants of NVIDIA, 2 GB, is not installed, and
# empty libraries stand in for it. One test builds with Ray, which is not there.
test-oldest: $(OLDEST_VENV)/.installed
	$(OLDEST_VENV)/bin/python -m pytest --quiet $(READING_TESTS) \
		--deselect tests/consumers/training/test_lerobot_features.py::test_a_real_lerobot_set_is_read_beside_its_rows

$(OLDEST_VENV)/.installed: pyproject.toml tests/oldest/requirements.txt tests/oldest/cuda_stand_ins.sh
	$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --no-deps --requirement tests/oldest/requirements.txt
	bash tests/oldest/cuda_stand_ins.sh $(OLDEST_VENV)/lib/python*/site-packages/torch/lib
	$(OLDEST_VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# The adapters against the real lmms-eval, without what it would bring.
test-harnesses: $(HARNESS_VENV)/.installed
	$(HARNESS_VENV)/bin/python -m pytest --quiet $(HARNESS_TESTS)

$(HARNESS_VENV)/.installed: pyproject.toml constraints.txt $(HARNESS_TESTS)/requirements.txt
	$(PYTHON) -m venv $(HARNESS_VENV)
	$(HARNESS_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(HARNESS_VENV)/bin/python -m pip install --quiet --no-deps --requirement $(HARNESS_TESTS)/requirements.txt
	touch $@

# Into an environment of its own, because what is compared pins other versions. OPTIONS="--quick" only shows that it runs;
# OPTIONS=--record rewrites docs/benchmarks.md.
bench-store: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m benchmarks.store $(OPTIONS)

# About a quarter of an hour, beside MosaicML, Lance and WebDataset in the same environment. OPTIONS="--only read" measures one group of rows;
# OPTIONS=--record rewrites docs/benchmarks.md. `million` needs 6 GB of memory or disk below --folder, and is fast on a RAM disk.
bench-pack: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -W ignore -m benchmarks.packed $(OPTIONS)

# `make bench-decode OPTIONS="--data DIR"` measures over the videos below DIR, and over some that it makes; about ten minutes.
bench-decode: install
	$(BIN)/python -W ignore -m benchmarks.decode $(OPTIONS)

# About a quarter of an hour. OPTIONS="--only scheduling" measures one row; OPTIONS=--record rewrites docs/benchmarks.md.
bench-build: install
	$(BIN)/python -W ignore -m benchmarks.build $(OPTIONS)

# About ten minutes, beside MosaicML in its environment. OPTIONS="--only load" measures one group of rows; OPTIONS=--record
# rewrites docs/benchmarks.md.
bench-consumers: $(BENCH_VENV)/.consumers
	$(BENCH_VENV)/bin/python -W ignore -m benchmarks.consumers $(OPTIONS)

$(BENCH_VENV)/.consumers: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,build]'
	touch $@

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
	rm -rf $(VENV) $(BENCH_VENV) $(OLDEST_VENV) $(HARNESS_VENV) demo_run .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
