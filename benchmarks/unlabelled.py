"""Whether tiles without labels help: a run labels them where it is sure, and a new one trains on them too.

    python benchmarks/unlabelled.py --weights WEIGHTS [--shares 10 25] [--bars 0.9 0.95] [--seeds 0 1 2]

For each share and seed a teacher trains on so many percent of the training tiles, those that `geograft curve` draws. It
maps the others. A pixel whose class has at least the bar's probability gets it as its label, the rest get none. A
student trains anew on both: labelled tiles are repeated until there is one for every two others. The teacher sees its
tiles as much more often, so that both take as many steps. Both are scored on the val part. The table has means over the
seeds with 95 % intervals over scenes, paired for the gain.

`--tiles` is a tile set; by default the images in ../shared/data/amazon, as `make bench-train` prepares them. Results
are kept in build/bench/unlabelled; the same command goes on from there. A training takes some two minutes of one core.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy import ndarray
from rasterio.windows import Window as RasterWindow

import machine
import page
from bench_train import tile_set
from geograft.commands.curve import seed_means
from geograft.commands.evaluate import score_split
from geograft.commands.train import train
from geograft.commands.trials import subset_sizes, subset
from geograft.config import EvaluateConfig, Recipe, load_recipe
from geograft.dataset.folds import write_derived_set
from geograft.dataset.tileset import Tile, TileSet
from geograft.files import json_digest, write_json
from geograft.geo.rasters.raster import close_labels
from geograft.inference.predictor import Predictor
from geograft.legend import IGNORE
from geograft.mapping.scoring import BootstrapEstimator, batch_indices, read_batches, stack_tiles

ENCODER = "tf_efficientnet_b0"
OTHERS = 2
"""Tiles without labels for each with labels, at most, in a student's epoch."""
TEACHER = "labelled tiles alone"


@dataclass(frozen=True)
class Place:
    """One teacher and its students."""

    whole: TileSet
    share: float
    seed: int
    folder: Path
    weights: Path

    @property
    def labelled(self) -> list[Tile]:
        """The training tiles with labels."""
        return [tile for tile in subset(self.whole, self.seed, self._count) if tile.split == "train"]

    @property
    def others(self) -> list[Tile]:
        """The training tiles whose labels nobody sees."""
        taken = set(self.labelled)
        return [tile for tile in self.whole.split("train") if tile not in taken]

    @property
    def _count(self) -> int:
        return subset_sizes([self.share], len(self.whole.split("train")))[0].tiles

    @property
    def times(self) -> int:
        """How often a labelled tile comes in a student's epoch."""
        return ceil(len(self.others) / OTHERS / len(self.labelled))

    def recipe(self, repeat: int) -> Recipe:
        """Return Geograft's default with this seed, and each tile so often in an epoch."""
        model = {"encoder": ENCODER, "weights": str(self.weights)}
        return load_recipe(Path("default")).with_settings(model=model, train={"repeat": repeat, "seed": self.seed})

    def trained(self, tiles: Sequence[Tile], masks: Path, repeat: int, name: str) -> Path:
        """Return the run that is trained on some tiles with the labels in `masks`; what is there already stays."""
        marked = json_digest([self.whole.meta.fingerprint, name])
        seen = replace(self.whole, meta=replace(self.whole.meta, masks=str(masks.resolve()), fingerprint=marked))
        held = [tile for tile in self.whole.tiles if tile.split != "train"]
        write_derived_set(seen, [*tiles, *held], self.folder / f"{name}-tiles")
        close_labels()
        train(self.folder / f"{name}-tiles", self.folder / name, self.recipe(repeat), resume=True)
        return self.folder / name


def teacher(place: Place) -> Path:
    """Return the run that saw the labelled tiles alone, for as many steps as a student takes."""
    steps = place.times + len(place.others) / len(place.labelled)
    return place.trained(place.labelled, place.whole.folder / place.whole.meta.masks, round(steps), "teacher")


def student(place: Place, bar: float) -> tuple[Path, dict[str, float]]:
    """Return the run that saw what the teacher is sure of too, and how much of the other tiles that is."""
    masks = place.folder / f"bar{bar:g}-masks"
    said = pseudo_labels(place, bar, masks)
    return place.trained([*place.labelled * place.times, *place.others], masks, 1, f"bar{bar:g}"), said


def pseudo_labels(place: Place, bar: float, masks: Path) -> dict[str, float]:
    """Write masks with the teacher's labels in the tiles that have none, and return what they are worth.

    That is the share of the pixels that get a label, and of these the share whose label is true.
    """
    shutil.copytree(place.whole.folder / place.whole.meta.masks, masks, dirs_exist_ok=True)
    counted = np.zeros(3)
    for tile, label, truth in labels(place, bar):
        with rasterio.open(masks / f"{tile.scene}.tif", "r+") as mask:
            window = tile.window
            mask.write(label, 1, window=RasterWindow(window.col, window.row, window.width, window.height))
        known = (truth != IGNORE) & (label != IGNORE)
        counted += (truth != IGNORE).sum(), known.sum(), (label[known] == truth[known]).sum()
    close_labels()
    labelled, right = counted[1:] / np.maximum(counted[:-1], 1)
    return {"labelled": float(labelled), "right": float(right)}


def labels(place: Place, bar: float) -> Iterator[tuple[Tile, ndarray, ndarray]]:
    """Yield each tile without labels, with the teacher's labels and the hidden ones."""
    predictor = Predictor.load(place.folder / "teacher")
    samples = replace(place.whole, tiles=tuple(place.others)).samples("train")
    batches = batch_indices(range(len(samples)))
    for indices, tiles in read_batches(samples, batches):
        likely = predictor(*stack_tiles(tiles))
        sure = np.where(likely.max(axis=1) >= bar, likely.argmax(axis=1), IGNORE).astype(np.uint8)
        for index, (_, truth), label in zip(indices, tiles, sure, strict=True):
            yield samples.tiles[index], np.where(truth == IGNORE, IGNORE, label).astype(np.uint8), truth


def point(place: Place, run: Path) -> dict[str, Any]:
    """Return the pixel counts of a run by unit of the val part, and what the units are."""
    result = score_split(run, Predictor.load(run), place.whole, "val", EvaluateConfig())
    units = result.counts.units
    close_labels()
    return {"confusion": units.sum_by_unit(result.counts.confusion).tolist(), "units": units.description}


class Shelf:
    """Results by share, seed and run, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.points: dict[str, dict[str, Any]] = json.loads(path.read_bytes()) if path.exists() else {}

    def fill(self, place: Place, bars: Sequence[float]) -> None:
        """Train and score what is missing of a place."""
        if self._missing(place, TEACHER):
            self._put(place, TEACHER, point(place, teacher(place)))
        for bar in bars:
            if self._missing(place, name_of(bar)):
                run, said = student(place, bar)
                self._put(place, name_of(bar), point(place, run) | said)

    def measure(self, share: float, name: str, seeds: Sequence[int]) -> BootstrapEstimator:
        """Return the counts of a network by unit and seed, and the mean of its scores over the seeds."""
        counts = [self.points[_key(share, seed, name)]["confusion"] for seed in seeds]
        return BootstrapEstimator(np.stack(counts, axis=1), seed_means)

    def mean(self, share: float, name: str, seeds: Sequence[int], figure: str) -> float:
        """Return what the teachers said, the mean over the seeds."""
        return float(np.mean([self.points[_key(share, seed, name)][figure] for seed in seeds]))

    def _missing(self, place: Place, name: str) -> bool:
        return _key(place.share, place.seed, name) not in self.points

    def _put(self, place: Place, name: str, found: Mapping[str, Any]) -> None:
        self.points[_key(place.share, place.seed, name)] = dict(found)
        write_json(self._path, self.points)


def name_of(bar: float) -> str:
    """Return what a student is called."""
    return f"and what is {bar:g} sure"


def _key(share: float, seed: int, name: str) -> str:
    return f"{share:g} %, seed {seed}, {name}"


def rows_of(shelf: Shelf, shares: Sequence[float], bars: Sequence[float], seeds: Sequence[int]) -> list[list[str]]:
    """Return a row a share and network: IoU, the gain on the teacher with its interval and by seed, its labels."""
    rows = []
    for share in shares:
        base = shelf.measure(share, TEACHER, seeds)
        rows.append([f"{share:g} %: {TEACHER}", *_words(base), "", "", "", ""])
        for bar in bars:
            mine = shelf.measure(share, name_of(bar), seeds)
            gain = mine.difference(base)["iou"]
            each = [_iou(one) - _iou(other) for one, other in zip(_each(mine), _each(base), strict=True)]
            said = [f"{shelf.mean(share, name_of(bar), seeds, figure):.1%}" for figure in ("labelled", "right")]
            gained = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
            by_seed = ", ".join(f"{value:+.3f}" for value in each)
            rows.append([f"{share:g} %: {name_of(bar)}", *_words(mine), gained, by_seed, *said])
    return rows


def _words(measure: BootstrapEstimator) -> list[str]:
    return [" ".join(measure.estimate()["iou"].format())]


def _each(measure: BootstrapEstimator) -> list[ndarray]:
    return [measure.counts[:, seed : seed + 1] for seed in range(measure.counts.shape[1])]


def _iou(counts: ndarray) -> float:
    return float(seed_means(counts.sum(axis=0)[None])["iou"][0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, help="a tile set; default: the images beside the project")
    parser.add_argument("--weights", type=Path, required=True, help=f"weights of {ENCODER}")
    parser.add_argument("--shares", type=float, nargs="+", default=[10, 25], help="percent of the training tiles")
    parser.add_argument("--bars", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("build/bench/unlabelled"))
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    whole, shelf = TileSet.open(tile_set(given.tiles, given.folder)), Shelf(given.folder / "results.json")
    for seed in given.seeds:
        for share in given.shares:
            where = given.folder / f"share{share:g}" / f"seed{seed}"
            shelf.fill(Place(whole, share, seed, where, given.weights), given.bars)
    head = ["trained on", "IoU", "gain", "by seed", "pixels labelled", "of these right"]
    rows = rows_of(shelf, given.shares, given.bars, given.seeds)
    print(f"{page.table(head, rows)}\n\n{machine.described(('torch', 'timm'))}")


if __name__ == "__main__":
    main()
