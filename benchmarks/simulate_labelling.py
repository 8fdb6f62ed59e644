"""Simulate labelling in a new place: how many tiles there bring a run of another place how close to one trained there.

    python benchmarks/simulate_labelling.py [--data ../shared/data/places] [--folder build/labelling] [--write]

Half of the scenes of each place are for scoring, and a run of each place is trained on the others, from ImageNet. The
tiles of the new place are labelled in the order of `geograft suggest` (five at random, then the uncertain ones) or at
random. After 5, 10, 20 and 40 tiles, the run of the other place is trained further on them, as `geograft adapt` does,
and scored in the new place at a threshold of 0.5 and at the best one. The end is the new place's own run. Kinds: street
trees in three cities, roads in two. Trained runs and scores are cached in --folder, so the same command resumes.
--write puts the tables into docs/suggest.md.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression

import machine
import page
from bench_adapt import CPU, THRESHOLDS, continue_training, iou_at
from geograft import MaskSource, load_recipe, prepare, train
from geograft.card import ModelCard, read_card
from geograft.commands.demo import with_weights
from geograft.commands.suggest import suggest
from geograft.config import AdaptConfig, PrepareConfig, Recipe, SuggestConfig
from geograft.dataset.tileset import Tile, TileSet
from geograft.files import write_json
from geograft.mapping.adaptation import count_tiles
from geograft.mapping.models import RunModel
from geograft.networks.network import FROZEN_STAGES
from models import is_finished

COUNTS = (5, 10, 20, 40)
STEPS = 180
"""Optimizer steps of the run of a place; `geograft adapt` adds 120."""
MIN_GAP = 0.02
"""A smaller gap in IoU is no larger than what another seed changes."""
STRATEGIES = ("suggest", "random")
CLASSES = {"trees": {1: "tree", 0: "other"}, "roads": {1: "road", 0: "other"}}
TRANSFERS = (
    ("trees", "claremont", "riverside"),
    ("roads", "japan", "vegas"),
    ("trees", "riverside", "long_beach"),
    ("roads", "vegas", "japan"),
    ("trees", "long_beach", "claremont"),
)
"""Kind of labels, place of the run and new place."""
HALVES = PrepareConfig(tile_px=128, overlap=0.0, split="scene", val=0.0, test=0.5)
Scores = tuple[float, float]
"""IoU at a threshold of 0.5, and at the best one."""
PAGE = page.PAGE.with_name("suggest.md")


@dataclass(frozen=True)
class Place:
    """The images and masks of one place, and where its tile sets and runs are cached."""

    kind: str
    name: str
    data: Path
    folder: Path

    def tiles(self) -> TileSet:
        """Return the tile set of the place, prepared if it is missing: half of the scenes are its test split."""
        sides = {side: self.folder / f"{self.kind}-{self.name}-{side}" for side in ("images", "masks")}
        for side, target in sides.items():
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((self.data / self.kind / side).glob(f"{self.name}_*")):
                if not (target / file.name).exists():
                    (target / file.name).symlink_to(file.resolve())
        out = self.folder / f"{self.kind}-{self.name}-halves"
        if not out.exists():
            prepare(MaskSource(sides["images"], sides["masks"], classes=CLASSES[self.kind]), out, HALVES)
        return TileSet.open(out)

    def run(self, recipe: Recipe) -> Path:
        """Return a run trained in the place, trained if it is missing."""
        run, tiles = self.folder / f"run-{self.kind}-{self.name}", self.tiles()
        if not is_finished(run):
            epochs = max(1, round(STEPS * recipe.train.batch_size / len(tiles.split("train"))))
            settings = {"epochs": epochs, "repeat": 1, "device": "cpu"}
            train(tiles.folder, run, recipe.with_settings(train=settings), resume=True)
        return run


def score(run: Path, card: ModelCard, tiles: TileSet) -> Scores:
    """Return the IoU of a run on the test split of a place."""
    test = [i for i, tile in enumerate(tiles.tiles) if tile.split == "test"]
    model = RunModel((run,), card, CPU, {"cards": (card,)})
    histogram = count_tiles(model, tiles, test).probability.sum(axis=0)[0]
    return iou_at(histogram, 0.5), max(iou_at(histogram, each) for each in THRESHOLDS)


def order_by_suggest(run: Path, target: TileSet, out: Path, seed: int) -> list[Tile]:
    """Return the first tiles of the new place that `geograft suggest` suggests, in its order."""
    pool = {(str(target.image_path(tile.scene)), tile.window): tile for tile in target.split("train")}
    images = sorted({Path(image) for image, _ in pool})
    config = SuggestConfig(device="cpu", backend="torch", tiles=max(COUNTS), first=5, seed=seed)
    found = suggest(run, images, out, config)
    out.unlink()
    return [
        pool[str(images[one.raster]), one.window]
        for one in found.tiles
        if (str(images[one.raster]), one.window) in pool
    ]


def order_at_random(target: TileSet, seed: int) -> list[Tile]:
    """Return the tiles of the new place in random order."""
    tiles = target.split("train")
    return [tiles[i] for i in np.random.default_rng(seed).permutation(len(tiles))]


def train_on(run: Path, source: TileSet, target: TileSet, chosen: Sequence[Tile], seed: int) -> Scores:
    """Return the scores in the new place after a run of another place was trained further on some tiles there."""
    folder = run.parent / "step"
    shutil.rmtree(folder, ignore_errors=True)
    labelled = replace(target, tiles=tuple(chosen))
    found = score(*continue_training(run, source, labelled, AdaptConfig(seed=seed, device="cpu"), folder), target)
    shutil.rmtree(folder)
    return found


@dataclass
class Simulation:
    """The scores by step, cached in a file."""

    data: Path
    folder: Path
    recipe: Recipe

    def __post_init__(self) -> None:
        self._path = self.folder / "labelling.json"
        known = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self.found: dict[str, Scores] = {key: (float(half), float(best)) for key, (half, best) in known.items()}

    def fill(self, transfer: tuple[str, str, str], strategy: str, seed: int) -> None:
        """Compute what is missing of one curve."""
        kind, here, there = transfer
        name = f"{kind}: {here} to {there}"
        missing = [count for count in COUNTS if f"{name}|{strategy}|{seed}|{count}" not in self.found]
        if not missing:
            return
        source, target = (Place(kind, each, self.data, self.folder) for each in (here, there))
        run, whole = source.run(self.recipe), target.tiles()
        for key, place in ((f"{name}|0", source), (f"{name}|all", target)):
            if key not in self.found:
                own = place.run(self.recipe)
                self._put(key, score(own, read_card(own), whole))
        order = (
            order_by_suggest(run, whole, self.folder / "next.gpkg", seed)
            if strategy == "suggest"
            else order_at_random(whole, seed)
        )
        for count in missing:
            key = f"{name}|{strategy}|{seed}|{count}"
            self._put(key, train_on(run, source.tiles(), whole, order[:count], seed))

    def _put(self, key: str, scores: Scores) -> None:
        self.found[key] = scores
        write_json(self._path, self.found)
        print(key, *(f"{each:.3f}" for each in scores), file=sys.stderr, flush=True)


def steps(seeds: int, transfers: int) -> Iterator[tuple[tuple[str, str, str], str, int]]:
    """Yield the transfer, the strategy and the seed of each curve: `suggest` in all places first."""
    for seed in range(seeds):
        for strategy in STRATEGIES:
            for transfer in TRANSFERS[:transfers]:
                yield transfer, strategy, seed


def tiles_needed(ious: Sequence[float], fraction: float, last: float) -> str:
    """Return the number of tiles that close a fraction of the gap between none and all tiles, by interpolation.

    `ious` are those after 0 and COUNTS tiles, made non-decreasing first.
    """
    smoothed = isotonic_regression(np.array(ious)).x
    goal = ious[0] + fraction * (last - ious[0])
    if last < ious[0] + MIN_GAP:
        return "no gap"
    if smoothed[-1] < goal:
        return f"more than {COUNTS[-1]}"
    return f"{np.ceil(np.interp(goal, *_rising(smoothed))):.0f}"


def _rising(smoothed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a non-decreasing curve without repetitions, and the first number of tiles of each."""
    values, first = np.unique(smoothed, return_index=True)
    return values, np.array((0, *COUNTS))[first]


def table_rows(found: dict[str, float], seeds: int) -> list[list[str]]:
    """Return a row for each transfer and strategy that is complete, and the means over transfers.

    `found` has the scores at one of the thresholds.
    """
    rows = []
    for strategy in STRATEGIES:
        curves = []
        for kind, here, there in TRANSFERS:
            name = f"{kind}: {here} to {there}"
            keys = [[f"{name}|{strategy}|{seed}|{count}" for seed in range(seeds)] for count in COUNTS]
            if not all(key in found for each in keys for key in each):
                continue
            ious = [found[f"{name}|0"], *(float(np.mean([found[key] for key in each])) for each in keys)]
            curves.append([*ious, found[f"{name}|all"]])
            rows.append([name, strategy, *_cells(curves[-1])])
        if curves:
            rows.append([f"**mean of {len(curves)}**", strategy, *_cells(np.mean(curves, axis=0).tolist())])
    return rows


def _cells(curve: Sequence[float]) -> list[str]:
    *ious, last = curve
    return [*(f"{iou:.3f}" for iou in curve), *(tiles_needed(ious, fraction, last) for fraction in (0.5, 0.9))]


def main() -> None:
    """Run the simulation and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/places"), help="folder with trees/ and roads/"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/labelling"), help="where everything is cached")
    parser.add_argument("--seeds", type=int, default=1, help="orders of tiles and trainings (default 1)")
    parser.add_argument("--transfers", type=int, default=len(TRANSFERS), help="only so many (default all)")
    parser.add_argument("--table", action="store_true", help="only print the table of what is known")
    parser.add_argument("--write", action="store_true", help="put the table into docs/suggest.md")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    # The tables are of runs with the same number on four bands, too.
    same = {"frozen_stages": FROZEN_STAGES}
    recipe, weights_from = with_weights(load_recipe(Path("demo")).with_settings(model=same))
    simulation = Simulation(given.data, given.folder, recipe)
    for curve in () if given.table else steps(given.seeds, given.transfers):
        simulation.fill(*curve)
    tables = []
    for index, title in enumerate(("IoU at 0.5", "IoU at the best threshold")):
        head = [title, "order", *(f"{n} tiles" for n in (0, *COUNTS)), "all", "half the gap", "90 % of it"]
        found = {key: scores[index] for key, scores in simulation.found.items()}
        tables.append(page.table(head, table_rows(found, given.seeds)))
    about = (
        f"Encoder weights: {weights_from}. One training per cell and seed, {given.seeds} seed(s). "
        f"{machine.describe(('torch',))}"
    )
    text = "\n\n".join([*tables, about])
    print(text)
    if given.write:
        page.write_section("simulation of labelling", text, PAGE)


if __name__ == "__main__":
    main()
