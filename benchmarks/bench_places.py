"""What a few labelled tiles of another place are worth: thresholds by `geograft calibrate --place-tiles`, simulated.

    python benchmarks/bench_places.py [--data ../shared/data/places] [--folder build/places] [--draws 500] [--write]

A run is trained in each place with the demo's recipe and maps every other place of its kind once. Then random tiles of
that place are drawn many times, a threshold is chosen on them by several rules, and the IoU of all other tiles is
computed from the histograms of their probabilities. Kinds: the tree crowns of the package and its other scene; with
--data street trees in three cities and landslides in two places. --write puts the tables into docs/places.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy import ndarray
from scipy.special import expit, logit

import machine
import page
from geograft import MaskSource, VectorSource, load_recipe, prepare, train
from geograft.card import CARD, read_card
from geograft.commands.demo import ALL_TEST, with_weights
from geograft.config import InferenceConfig, Recipe
from geograft.dataset.tileset import TileSet
from geograft.mapping.logit_sample import sample_logits
from geograft.mapping.models import RunModel
from geograft.mapping.run_calibration import LIMITS, UNCALIBRATED
from geograft.metrics.calibration import STEPS, choose_threshold
from geograft.networks.network import FROZEN_STAGES
from rasters import SCENE

COUNTS = (3, 5, 10)
NONE = np.array([], int)
KINDS = {
    "trees": ("claremont", "riverside", "long_beach", {1: "tree", 0: "other"}),
    "landslides": ("sichuan", "nepal", {1: "landslide", 0: "other"}),
}
Rule = Callable[[ndarray, float], float]
RULES: dict[str, Rule] = {
    "the run's": lambda _counts, own: own,
    "0.5": lambda _counts, _own: UNCALIBRATED,
    "best on the tiles": lambda counts, own: choose_threshold(counts, own, 1 / STEPS, 1 - 1 / STEPS).best,
    "best on the tiles, 0.1 to 0.9": lambda counts, own: choose_threshold(counts, own, *LIMITS).best,
    "**calibrate --place-tiles**": lambda counts, own: choose_threshold(counts, own, *LIMITS).threshold,
}
"""The threshold from the histograms of the drawn tiles, and from the run's own threshold, fitted in place."""


@dataclass(frozen=True)
class Transfer:
    """A run away from where it was trained."""

    name: str
    counts: ndarray
    """Histograms of the probability by tile, (tiles, 2, 1001)."""
    own: float
    """The threshold of the run, in the probabilities of the histograms."""

    def iou(self, threshold: float, without: ndarray) -> float:
        """Return the IoU of the positive class over the tiles other than `without`."""
        rest = np.delete(self.counts, without, axis=0).sum(axis=0)
        false_positive, true_positive = rest[:, round(threshold * STEPS) :].sum(axis=1)
        return float(true_positive / max(false_positive + rest[1].sum(), 1))

    @property
    def best(self) -> float:
        """The IoU at the best of all thresholds, on all tiles: an upper bound."""
        return max(self.iou(i / STEPS, NONE) for i in range(1, STEPS))


def mask_set(data: Path, kind: str, place: str, folder: Path, recipe: Recipe) -> Path:
    """Return the tile set of the images of one place, made if it is missing."""
    *_, classes = KINDS[kind]
    sides = {side: folder / f"{kind}-{place}-{side}" for side in ("images", "masks")}
    for side, target in sides.items():
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((data / kind / side).glob(f"{place}_*")):
            if not (target / file.name).exists():
                (target / file.name).symlink_to(file.resolve())
    out = folder / f"{kind}-{place}-{'test' if recipe.prepare.test == 1 else 'split'}"
    if not out.exists():
        prepare(MaskSource(sides["images"], sides["masks"], classes=classes), out, recipe.prepare)
    return out


def transfers(folder: Path, recipe: Recipe, data: Path | None) -> Iterator[tuple[str, Path, Path, Path]]:
    """Yield the name of each transfer, the tile set to train on, the run and the tile set of the other place."""
    everything = recipe.with_settings(prepare=ALL_TEST)
    here, there = SCENE, SCENE.with_name("elsewhere.tif")
    for scene, own in ((here, recipe), (there, everything)):
        if not (folder / scene.stem).exists():
            source = VectorSource((scene,), scene.with_suffix(".gpkg"), class_field="class")
            prepare(source, folder / scene.stem, own.prepare)
    yield "crowns: meadow to forest", folder / here.stem, folder / "run-crowns", folder / there.stem
    for kind in KINDS if data else ():
        small = {"tile_px": 128, "split": "scene"}
        split, test = (each.with_settings(prepare=small) for each in (recipe, everything))
        for source_place, target in permutations(KINDS[kind][:-1], 2):
            if source_place == "nepal":  # 0.6 % landslide: too few to train on
                continue
            tiles = mask_set(data, kind, source_place, folder, split)
            run = folder / f"run-{kind}-{source_place}"
            yield f"{kind}: {source_place} to {target}", tiles, run, mask_set(data, kind, target, folder, test)


def own_threshold(run: Path) -> float:
    """Return the threshold of a run, in probabilities at temperature 1."""
    card = read_card(run)
    return float(expit(logit(card.threshold) * card.temperature))


def measure(name: str, run: Path, tiles: TileSet) -> Transfer:
    """Return the histograms of a run on all tiles of a set."""
    model = RunModel.open(run, InferenceConfig(device="cpu"), temperature=1.0)
    everything = replace(tiles, tiles=tuple(replace(tile, split="val") for tile in tiles.tiles))
    return Transfer(name, sample_logits(model, everything).group_counts[:, 0], own_threshold(run))


def simulate(one: Transfer, draws: int, seed: int = 0) -> dict[tuple[int, str], ndarray]:
    """Return the IoU of the tiles that were not drawn, for each number of tiles and rule, by draw."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[int, str], list[float]] = {}
    for count in COUNTS:
        for _ in range(draws):
            drawn = rng.choice(len(one.counts), count, replace=False)
            for rule, choose in RULES.items():
                found.setdefault((count, rule), []).append(one.iou(choose(one.counts[drawn], one.own), drawn))
    return {key: np.array(values) for key, values in found.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with trees/ and landslides/, each with images/ and masks/")
    parser.add_argument("--folder", type=Path, default=Path("build/places"), help="where sets and runs are cached")
    parser.add_argument("--draws", type=int, default=500, help="random draws of tiles (default 500)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/places.md")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    # The tables are of runs with the same number on four bands, too.
    same = {"frozen_stages": FROZEN_STAGES}
    recipe, weights_from = with_weights(load_recipe(Path("demo")).with_settings(model=same))
    rows, results, in_place = [], [], {}
    for name, tiles, run, target in transfers(given.folder, recipe, given.data):
        if not (run / CARD).exists() or not read_card(run).calibrated:
            train(tiles, run, recipe, resume=True, chosen=())
        if run.name not in in_place:
            own_set = TileSet.open(tiles)
            own = measure(name.partition(" to ")[0], run, replace(own_set, tiles=own_set.split("test")))
            in_place[run.name] = [own.name, *(f"{own.iou(each, NONE):.3f}" for each in (own.own, UNCALIBRATED))]
        one = measure(name, run, TileSet.open(target))
        found = simulate(one, given.draws)
        results.append(found)
        cells = [f"{found[5, rule].mean():.3f}" for rule in RULES]
        rows.append([one.name, f"{len(one.counts):,}", *cells, f"{one.best:.3f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    by_place = page.table(["IoU of the other tiles, after five", "tiles", *RULES, "best of all"], rows)
    own, *others = RULES
    summary = []
    for rule in others:
        gains = [np.concatenate([found[n, rule] - found[n, own] for found in results]) for n in COUNTS]
        cells = [(f"{each.mean():+.3f}", f"{100 * (each < -0.01).mean():.0f} %") for each in gains]
        summary.append([rule, *(text for pair in cells for text in pair)])
    head = ["gain in IoU; draws that lose more than 0.01", *(t for n in COUNTS for t in (f"{n} tiles", "worse"))]
    about = (
        f"Encoder weights: {weights_from}; one training in each place, {given.draws} draws. "
        f"{machine.describe(('torch', 'onnxruntime', 'openvino'))}"
    )
    here = page.table(["IoU of the run's own test tiles", "the run's", "0.5"], list(in_place.values()))
    content = "\n\n".join([about, by_place, page.table(head, summary), here])
    print(content)
    if given.write:
        page.write_section("places", content, page.PAGE.with_name("places.md"))


if __name__ == "__main__":
    main()
