"""How long to train on very few tiles: the IoU by the number of tiles and of optimizer steps.

    python benchmarks/few_tiles.py --data ../shared/data/places [--folder build/few-tiles] [--write]

In one place of each kind of `laboratory.py`, COUNTS of its training tiles are drawn at random, and the default network
with EfficientNet-Lite0 of its package trains on them for 60 to 360 steps of 8 tiles. It is scored at a threshold of 0.5
on the held-out scenes of the place. Differences are from the training of as many steps as `train` takes at least, on
the same tiles and seeds; scenes are resampled.

Results are cached by place, count, length and seed, so that the same command resumes. --write puts the table into
docs/training.md.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from rasterio.errors import NotGeoreferencedWarning

import machine
import page
from bench_generalisation import HALF, Means, difference_text, ious, scene_weights
from geograft import load_recipe
from geograft.commands.demo import LITE0
from geograft.commands.training_plan import MIN_STEPS
from geograft.dataset.tileset import TileSet
from geograft.files import atomic_write
from laboratory import PLACES, STEPS, Laboratory, Run, Variant, held_out_scenes, probability_histogram, read_scene

COUNTS = (8, 24, 72)
LENGTHS = (60, 120, 180, 360)
BATCH = 8


@dataclass(frozen=True)
class Training:
    """A training of some steps on `count` tiles of the first place of a kind."""

    kind: str
    count: int
    steps: int
    seed: int

    @property
    def place(self) -> str:
        """The place that it trains and is scored in."""
        return PLACES[self.kind][0]

    @property
    def run(self) -> Run:
        """The same as a run of the laboratory."""
        variant = Variant(f"{self.count} tiles {self.steps} steps", lengthening=self.steps / STEPS)
        return Run(variant, self.kind, (self.place,), self.seed)


def passes(count: int, steps: int) -> int:
    """Return the number of passes over the tiles that is nearest to a number of steps."""
    return round(steps / -(-count // BATCH))


def drawn_tiles(tiles: TileSet, count: int, seed: int) -> TileSet:
    """Return a tile set with a random sample of the training tiles, those of a smaller count among them."""
    train = tiles.split("train")
    order = np.random.default_rng(seed).permutation(len(train))
    return replace(tiles, tiles=tuple(train[index] for index in order[:count]))


def counts_of(laboratory: Laboratory, training: Training) -> ndarray:
    """Return the histograms of the held-out scenes, (scenes, 2, 1001). Trains the network if they are missing."""
    path = laboratory.path(training.run)
    if not path.exists():
        whole = laboratory.tiles(training.kind, training.place)
        tiles = drawn_tiles(whole, training.count, training.seed)
        network, scaling = laboratory.train(training.run, path.with_suffix(""), tiles)
        scenes = [read_scene(whole, scene) for scene in held_out_scenes(whole, training.place, training.run)]
        found = np.stack([probability_histogram(network, scaling(image), label) for image, label in scenes])
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez_compressed(file, counts=found)
    with np.load(path, allow_pickle=False) as saved:
        counts: ndarray = saved["counts"].astype(np.int64)
    return counts


def mean_iou(laboratory: Laboratory, kinds: Sequence[str], count: int, steps: int, seeds: Sequence[int]) -> Means:
    """Return the mean IoU over the places, each the mean over seeds."""
    places, units = [], []
    for kind in kinds:
        found = [counts_of(laboratory, Training(kind, count, steps, seed)) for seed in seeds]
        weights = scene_weights(PLACES[kind][0], len(found[0]))
        places.append(np.mean([ious(each, weights, np.array([HALF]))[:, 0] for each in found], axis=0))
        units.append(len(found[0]))
    draws = np.mean(places, axis=0)
    return Means(float(draws[0]), draws[1:], min(units))


def rows(laboratory: Laboratory, seeds: Sequence[int]) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    kinds = list(PLACES)
    for count in COUNTS:
        reference = mean_iou(laboratory, kinds, count, MIN_STEPS, seeds)
        for steps in LENGTHS:
            own = mean_iou(laboratory, kinds, count, steps, seeds)
            shown = f"{own.value:.3f}" if steps == MIN_STEPS else difference_text(own - reference)
            each = [f"{mean_iou(laboratory, [kind], count, steps, seeds).value:.3f}" for kind in kinds]
            yield [str(count), str(steps), str(passes(count, steps)), shown, *each]


def main() -> None:
    """Train the missing networks and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with trees/, roads/ and landslides/")
    parser.add_argument("--folder", type=Path, default=Path("build/few-tiles"), help="where results are cached")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--write", action="store_true", help="put the table into docs/training.md")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    laboratory = Laboratory(given.data, given.folder, load_recipe(Path("default")).with_settings(model=LITE0))
    trainings = [
        Training(kind, count, steps, seed)
        for seed in given.seeds
        for count in COUNTS
        for kind in PLACES
        for steps in LENGTHS
    ]
    missing = [one for one in trainings if not laboratory.path(one.run).exists()]
    for number, one in enumerate(missing, start=1):
        print(f"{number} of {len(missing)} trainings: {one}", file=sys.stderr, flush=True)
        counts_of(laboratory, one)
    head = ["tiles", "steps", "passes", f"IoU, difference from {MIN_STEPS} steps", *PLACES]
    about = (
        f"Encoder: {LITE0['encoder']}. Seeds: {' '.join(map(str, given.seeds))}. {machine.describe(('torch', 'timm'))}"
    )
    content = "\n\n".join([page.table(head, list(rows(laboratory, given.seeds))), about])
    print(content)
    if given.write:
        page.write_section("few tiles", content, page.PAGE.with_name("training.md"))


if __name__ == "__main__":
    main()
