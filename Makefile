# One entry for everything; each target installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= digits
PIP_OPTIONS := --quiet --disable-pip-version-check --constraint constraints.txt
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo test test-all test-deps lint format bench clean

help:
	@echo "make install | demo [DEMO=digits|faces] | test | test-all | lint | format | bench | clean"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) --editable '.[all,server,dev]'
	# The tutorial's package, for comparison in tests: its U-Net needs nothing but torch, its dependencies are many.
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps labml-nn
	touch $@

demo: install
	@$(BIN)/python -m cluster demo $(DEMO)

# Three processes share the tests, which often wait: file by file, the longest first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder
test: install
	$(PYTEST) -m "not slow"

# What repeats a property at other sizes as well, and the whole demo: half an hour.
test-all: install
	$(PYTEST)

# Debian packages that some tests need; without them those tests skip (and fail where CI=true is set).
test-deps:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(shell cat tests/debian-packages.txt)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Peers to measure against, without their dependencies: their version bounds exclude ours.
PEERS := mosaicml-streaming litdata lightning-utilities xxhash zstd python-snappy cramjam brotli catalogue \
	transformers tokenizers typer opencv-python-headless torch-fidelity pytorch-fid
bench: install
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps $(PEERS)
	PYTHONPATH=. $(BIN)/python benchmarks/data_streams.py
	PYTHONPATH=. $(BIN)/python benchmarks/data_streams.py --beside-training --num-images 1000 --rounds 5 --seconds 2
	PYTHONPATH=. $(BIN)/python benchmarks/data_packing.py
	PYTHONPATH=. $(BIN)/python benchmarks/evaluation.py
	PYTHONPATH=. $(BIN)/python benchmarks/training.py
	PYTHONPATH=. $(BIN)/python benchmarks/recovery.py
	PYTHONPATH=. $(BIN)/python benchmarks/failures.py
	PYTHONPATH=. $(BIN)/python benchmarks/soak.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
