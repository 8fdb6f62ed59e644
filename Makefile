# Two commands matter: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test fuzz check lint bench bench-predict bench-train bench-memory bench-suggest bench-unlabelled bench-ideas docs clean

demo: $(READY)  ## the main job on the embedded scene: four networks compared, a map, polygons, a report
	$(BIN)/geograft demo --out demo-out

# One thread a worker: two workers of two threads each would wait for each other on two cores.
test: $(READY)  ## every test, lint and types included
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: $(READY)  ## property tests with examples never tried before; what they find becomes an @example
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile fuzz $$(grep -rl --include=test_*.py "@given" tests)

check: lint test  ## what a change must pass

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## speed and memory, ours beside the limit, in one run
	$(BIN)/python benchmarks/bench_tiles.py

bench-predict: $(READY)  ## maps by Geograft, a plain loop and other packages: speed, memory, seams; BENCH=--write: docs/speed.md
	PEER_PYTHON=$(or $(PEER_PYTHON),$(BIN)/python) $(BIN)/python benchmarks/bench_predict.py $(BENCH)

bench-train: $(READY)  ## training by Geograft, plain loops and other packages: speed, memory, IoU; BENCH=--write: docs/training.md
	PEER_PYTHON=$(or $(PEER_PYTHON),$(BIN)/python) $(BIN)/python benchmarks/bench_train.py $(BENCH)

bench-memory: $(READY)  ## the most memory of maps and polygons of very large rasters
	$(BIN)/python benchmarks/bench_memory.py $(BENCH)

DATA ?= ../shared/data/amazon
WEIGHTS ?= ../shared/weights/tf_efficientnet_b0_encoder.safetensors
bench-suggest: $(READY)  ## labels that `geograft suggest` saves, simulated; BENCH=--write: docs/suggest.md
	$(BIN)/python benchmarks/simulate_suggest.py crowns $(BENCH)
	$(BIN)/python benchmarks/simulate_suggest.py forest --data $(DATA) --weights $(WEIGHTS) $(BENCH)

bench-unlabelled: $(READY)  ## whether tiles without labels help: a run labels them where it is sure, and a new one trains on them too
	$(BIN)/python benchmarks/unlabelled.py --weights $(WEIGHTS) $(BENCH)

bench-ideas: $(READY)  ## what was tried against the default, each idea alone, on two grounds; BENCH=--write: LOG.md
	$(BIN)/python benchmarks/bench_ideas.py --weights $(WEIGHTS) $(BENCH)

docs: $(READY)  ## docs pages from the commands' own help and real output
	$(BIN)/python scripts/make_docs.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out build dist
