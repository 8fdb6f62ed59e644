# Two commands matter: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo article test quick fuzz fuzz-inputs lint bench bench-predict bench-windows bench-threads bench-steps bench-train bench-memory bench-suggest bench-unlabelled bench-ideas bench-libraries bench-places bench-labelling bench-adapt bench-in-place bench-few bench-generalisation bench-weights bench-export bench-serve bench-first-map bench-gpu bench-scale bench-cost bench-quick docs site clean

demo: $(READY)  ## the main job on the embedded scene: train, score, map another scene; polygons, a report
	$(BIN)/geograft demo --out demo-out

article: $(READY)  ## the same with the article's three networks beside Geograft's default
	$(BIN)/geograft demo --compare --out article-out

# One thread per worker: two workers with two threads each would wait for each other on two cores.
test: lint  ## everything: lint, types and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not ray"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray tests/mapping/test_ray.py

quick: lint  ## lint, types, and the tests of modules that differ from HEAD or import one that does
	OMP_NUM_THREADS=1 $(BIN)/python scripts/quick.py

fuzz: $(READY)  ## property tests with new random examples; add what they find as an @example
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile fuzz $$(grep -rl --include=test_*.py "@given" tests)

fuzz-inputs: $(READY)  ## hostile input to every command; FUZZ="--seed 1 --family card": other damage, one family
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fuzz_inputs.py $(FUZZ)

lint: $(READY)  ## style, format, words and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_words.py
	$(BIN)/mypy

bench: $(READY)  ## speed and memory of tiles and training, relative to the hardware's limit
	$(BIN)/python benchmarks/bench_tiles.py

bench-predict: $(READY)  ## speed, memory, stages and seams of maps, beside plain loops and other packages; BENCH=--write: docs/speed.md
	$(BIN)/python benchmarks/bench_maps.py $(BENCH)
	PEER_PYTHON=$(or $(PEER_PYTHON),$(BIN)/python) $(BIN)/python benchmarks/bench_predict.py $(BENCH)

bench-windows: $(READY)  ## IoU, speed and memory of windows of several sizes; BENCH=--write: docs/speed.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_windows.py --data $(DATA) $(BENCH)

bench-threads: $(READY)  ## training beside another process by how threads wait; BENCH=--write: docs/training.md
	$(BIN)/python benchmarks/bench_threads.py $(BENCH)

bench-steps: $(READY)  ## a training step on one core by memory format, optimizer and checkpointing; BENCH=--write: docs/speed.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/step_options.py $(BENCH)

bench-train: $(READY)  ## speed, memory and IoU of training, beside plain loops and other packages; BENCH=--write: docs/training.md
	PEER_PYTHON=$(or $(PEER_PYTHON),$(BIN)/python) $(BIN)/python benchmarks/bench_train.py $(BENCH)

bench-memory: $(READY)  ## peak memory of maps and polygons of very large rasters
	$(BIN)/python benchmarks/bench_memory.py $(BENCH)

DATA ?= ../shared/data/amazon
WEIGHTS ?= ../shared/weights/tf_efficientnet_b0_encoder.safetensors
bench-suggest: $(READY)  ## simulation of the labels that `geograft suggest` saves; BENCH=--write: docs/suggest.md
	$(BIN)/python benchmarks/simulate_suggest.py crowns $(BENCH)
	$(BIN)/python benchmarks/simulate_suggest.py forest --data $(DATA) --weights $(WEIGHTS) $(BENCH)

bench-unlabelled: $(READY)  ## self-training on unlabelled tiles with pseudo-labels
	$(BIN)/python benchmarks/unlabelled.py --weights $(WEIGHTS) $(BENCH)

bench-ideas: $(READY)  ## ablations of the default, on two data sets; BENCH=--write: LOG.md
	$(BIN)/python benchmarks/bench_ideas.py --weights $(WEIGHTS) $(BENCH)

bench-places: $(READY)  ## thresholds from a few labelled tiles of another place, simulated; BENCH=--write: docs/places.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_places.py --data $(DATA)/../places $(BENCH)

B0_IN_PLACE = --encoder tf_efficientnet_b0 --weights $(WEIGHTS) --folder build/in-place
COLOURS = --variants "colour augmentation" "3 times as many steps" "3 times as many steps, colour augmentation"
bench-generalisation: $(READY)  ## what in training helps in other places, at no cost in place; BENCH=--write: docs/places.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_generalisation.py --data $(DATA)/../places --kinds trees roads $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_generalisation.py --data $(DATA)/../places --kinds landslides forest crowns --fresh-seeds 1 --section "generalisation of other kinds" $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_generalisation.py --data $(DATA)/../places $(COLOURS) --fresh-seeds 1 --section "generalisation of longer training" $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_generalisation.py --data $(DATA)/../places $(B0_IN_PLACE) --variants "nothing frozen" "3 times as many steps" $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/label_free.py --data $(DATA)/../places $(B0_IN_PLACE) --seeds 0 1 $(BENCH)

bench-weights: $(READY)  ## pretrained weights of several encoders, in place and elsewhere; BENCH="--csmask FILE --write": docs/places.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pretrained_weights.py --data $(DATA)/../places --b0 $(WEIGHTS) $(BENCH)

bench-labelling: $(READY)  ## tiles to label in a new place, simulated; BENCH=--write: docs/suggest.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/simulate_labelling.py --data $(DATA)/../places $(BENCH)

bench-adapt: $(READY)  ## five labelled tiles of another place: adapted runs, and fractions of rehearsal; BENCH=--write: docs/places.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_adapt.py --data $(DATA)/../places $(BENCH)

bench-in-place: $(READY)  ## what makes a model better where it was trained, and its cost; BENCH=--write: docs/training.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_in_place.py --data $(DATA)/../places --weights $(WEIGHTS) $(BENCH)

bench-few: $(READY)  ## how long to train on very few tiles; BENCH=--write: docs/training.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/few_tiles.py --data $(DATA)/../places $(BENCH)

bench-libraries: $(READY)  ## our outlines, overviews and EMA, and those of shapely, GDAL and torch; BENCH=ema: one of them
	$(BIN)/python benchmarks/bench_libraries.py $(BENCH)

RUN ?= demo-out/run
bench-export: $(READY)  ## size, agreement with torch and speed of exported files of a run, by default that of `make demo`; BENCH=--write: docs/export.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_export.py $(RUN) $(BENCH)

bench-serve: $(READY)  ## the web server with 8 clients for 10 minutes: time of answers, memory, errors
	$(BIN)/python benchmarks/bench_serve.py $(BENCH)

bench-quick: $(READY)  ## train --quick beside full training, by the number of tiles; BENCH="--default --write": docs/training.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_quick.py --weights $(WEIGHTS) $(BENCH)

bench-first-map: $(READY)  ## seconds from the first labels in `geograft serve` to the quick map; BENCH=--write: docs/serve.md
	$(BIN)/python benchmarks/bench_first_map.py $(BENCH)

bench-gpu: $(READY)  ## one NVIDIA GPU in six minutes: bits, speeds and memory; BENCH="--device cpu --small": rehearse it
	$(BIN)/python benchmarks/bench_gpu.py $(BENCH)

bench-scale: $(READY)  ## one map by one process, one worker and two, one thread each: the halo, and what two do in the time of one; polygons by units; BENCH=--write: docs/scale.md
	$(BIN)/python benchmarks/bench_scale.py $(BENCH)
	$(BIN)/python benchmarks/polygon_units.py $(BENCH)

bench-cost: $(READY)  ## a cost model of maps, fitted on small rasters, checked on larger, and a million km²; BENCH=--write: docs/scale.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_cost.py $(RUN) $(BENCH)

docs: $(READY)  ## docs/commands.md from the commands' help
	$(BIN)/python scripts/make_docs.py

site: $(READY)  ## the documentation as web pages in site/; a warning is an error
	$(BIN)/python scripts/make_site.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out article-out build dist site
