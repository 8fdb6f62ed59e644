"""Simulate labelling in a new place: how many tiles there bring a run of another place how close to one trained there.

    python benchmarks/simulate_labelling.py [--data ../shared/data/places] [--folder build/labelling] [--write]

Half of the scenes of the new place are for scoring; the tiles of the others are labelled one by one, in the order of
`geograft suggest` (five at random, then the uncertain ones) or at random. After 3, 5, 10, 20 and 40 tiles, training
continues from the run of the other place with these tiles and 24 of its own. The end is a run trained on all of these
tiles of the new place alone, from ImageNet. Kinds: street trees in three cities, roads in two. --write puts the table
into docs/suggest.md. Trained runs and scores are cached in --folder, so the same command resumes.
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
from geograft import MaskSource, load_recipe, prepare, train
from geograft.card import CARD
from geograft.commands.demo import with_weights
from geograft.commands.evaluate import evaluate
from geograft.commands.suggest import suggest
from geograft.config import EvaluateConfig, PrepareConfig, Recipe, SuggestConfig
from geograft.dataset.folds import write_derived_set
from geograft.dataset.tileset import Tile, TileSet
from geograft.files import write_json

COUNTS = (3, 5, 10, 20, 40)
REHEARSED = 24
"""Tiles of the other place in each training."""
DRAWS = 120
"""Tiles drawn in an epoch."""
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
TILE_PX = 128
SCORED = EvaluateConfig(backend="torch", device="cpu")
PAGE = page.PAGE.with_name("suggest.md")


@dataclass(frozen=True)
class Place:
    """The images and masks of one place, and where its tile sets and runs are cached."""

    kind: str
    name: str
    data: Path
    folder: Path

    def tiles(self, purpose: str, config: PrepareConfig) -> Path:
        """Return a tile set of the place, made if it is missing."""
        sides = {side: self.folder / f"{self.kind}-{self.name}-{side}" for side in ("images", "masks")}
        for side, target in sides.items():
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((self.data / self.kind / side).glob(f"{self.name}_*")):
                if not (target / file.name).exists():
                    (target / file.name).symlink_to(file.resolve())
        out = self.folder / f"{self.kind}-{self.name}-{purpose}"
        if not out.exists():
            prepare(MaskSource(sides["images"], sides["masks"], classes=CLASSES[self.kind]), out, config)
        return out

    def run(self, purpose: str, config: PrepareConfig, recipe: Recipe) -> Path:
        """Return a run trained in the place with the default plan, trained if it is missing."""
        run = self.folder / f"{'run' if purpose == 'split' else 'all'}-{self.kind}-{self.name}"
        if not (run / CARD).exists():
            train(self.tiles(purpose, config), run, recipe, resume=True, chosen=())
        return run


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


def train_on(run: Path, source: TileSet, target: TileSet, chosen: Sequence[Tile], recipe: Recipe, seed: int) -> float:
    """Return the IoU in the new place after training went on from a run with some tiles there and some of its own."""
    folder = run.parent / "step"
    shutil.rmtree(folder, ignore_errors=True)
    own = source.split("train")
    rehearsed = [own[i] for i in np.random.default_rng(seed).permutation(len(own))[:REHEARSED]]
    sets = [
        write_derived_set(source, rehearsed, folder / "source"),
        write_derived_set(target, chosen, folder / "target"),
    ]
    repeat = max(round(DRAWS / (len(rehearsed) + len(chosen))), 1)
    settings = recipe.with_settings(model={"start": str(run)}, train={"repeat": repeat, "seed": seed})
    trained = train(sets, folder / "run", settings)
    iou = evaluate(trained.run, "test", tiles=target.folder, config=SCORED).headline["iou"].value
    shutil.rmtree(folder)
    return iou


def steps(seeds: int, transfers: int) -> Iterator[tuple[int, tuple[str, str, str], str]]:
    """Yield the seed, the transfer and the strategy of each curve: `suggest` in all places first."""
    for seed in range(seeds):
        for strategy in STRATEGIES:
            for transfer in TRANSFERS[:transfers]:
                yield seed, transfer, strategy


def simulate(data: Path, folder: Path, seeds: int, transfers: int) -> dict[str, float]:
    """Return the IoU in the new place by step; known ones are not computed again."""
    recipe, _ = with_weights(load_recipe(Path("demo")))
    split = replace(recipe.prepare, tile_px=TILE_PX, split="scene")
    halves = PrepareConfig(tile_px=TILE_PX, overlap=0.0, split="scene", val=0.0, test=0.5)
    path = folder / "labelling.json"
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for seed, (kind, here, there), strategy in steps(seeds, transfers):
        source, target = Place(kind, here, data, folder), Place(kind, there, data, folder)
        tiles = target.tiles("halves", halves)
        name = f"{kind}: {here} to {there}"
        for key, place, purpose, config in (
            (f"{name}|0", source, "split", split),
            (f"{name}|all", target, "halves", halves),
        ):
            if key not in found:
                run = place.run(purpose, config, recipe)
                found[key] = evaluate(run, "test", tiles=tiles, config=SCORED).headline["iou"].value
                write_json(path, found)
                print(key, f"{found[key]:.3f}", file=sys.stderr, flush=True)
        missing = [count for count in COUNTS if f"{name}|{strategy}|{seed}|{count}" not in found]
        if not missing:
            continue
        run = source.run("split", split, recipe)
        known, whole = TileSet.open(source.tiles("split", split)), TileSet.open(tiles)
        order = (
            order_by_suggest(run, whole, folder / "next.gpkg", seed)
            if strategy == "suggest"
            else order_at_random(whole, seed)
        )
        for count in missing:
            key = f"{name}|{strategy}|{seed}|{count}"
            found[key] = train_on(run, known, whole, order[:count], recipe, seed)
            write_json(path, found)
            print(key, f"{found[key]:.3f}", file=sys.stderr, flush=True)
    return found


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
    """Return a row for each transfer and strategy that is complete, and the means over transfers."""
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
    if given.table:
        found = json.loads((given.folder / "labelling.json").read_text(encoding="utf-8"))
    else:
        found = simulate(given.data, given.folder, given.seeds, given.transfers)
    head = ["IoU after labelling", "order", *(f"{n} tiles" for n in (0, *COUNTS)), "all", "half the gap", "90 % of it"]
    about = f"One training per cell and seed, {given.seeds} seed(s). {machine.describe(('torch',))}"
    text = page.table(head, table_rows(found, given.seeds)) + f"\n\n{about}"
    print(text)
    if given.write:
        page.write_section("simulation of labelling", text, PAGE)


if __name__ == "__main__":
    main()
