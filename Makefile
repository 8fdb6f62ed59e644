# Two commands matter: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test check lint bench docs clean

demo: $(READY)  ## the main job on the embedded scene: three models compared, a map, polygons, a report
	$(BIN)/tilth demo --out demo-out

test: $(READY)  ## every test, lint and types included
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: lint test  ## what a change must pass

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## speed and memory, ours beside the limit, in one run
	$(BIN)/python benchmarks/bench_tiles.py

docs: $(READY)  ## docs pages from the commands' own help and real output
	$(BIN)/python scripts/make_docs.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out build dist
