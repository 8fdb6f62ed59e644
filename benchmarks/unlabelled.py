"""Measure what pseudo-labels gain: a teacher labels unlabelled tiles, and a student trains on them too.

    python benchmarks/unlabelled.py --weights WEIGHTS [--percent 10 25] [--thresholds 0.9 0.95]

For each percentage and seed, a teacher trains on that part of the training tiles, the one that `geograft curve` draws,
and predicts the others. A pixel whose class has at least the threshold probability gets that class as its label; other
pixels are ignored. A student then trains from scratch on both, with labelled tiles repeated until there is one for
every two unlabelled ones. The teacher repeats its tiles more often, so that both take the same number of steps. Both
are scored on the validation split. The table has means over the seeds with 95 % CIs from resampling scenes, paired for
the gain.

--tiles is a tile set; the default is the one that `make bench-train` prepares. Results are cached in --folder, so the
same command resumes. A training takes about two minutes on one core.
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
from geograft.commands.trials import subset, subset_sizes
from geograft.config import EvaluateConfig, Recipe, load_recipe
from geograft.dataset.folds import write_derived_set
from geograft.dataset.tileset import Tile, TileSet
from geograft.files import json_digest, write_json
from geograft.geo.rasters.raster import close_labels
from geograft.legend import IGNORE
from geograft.mapping.held_out import predict_tiles
from geograft.mapping.models import RunModel
from geograft.mapping.scoring import BootstrapEstimator

ENCODER = "tf_efficientnet_b0"
UNLABELLED_PER_LABELLED = 2
"""Maximum unlabelled tiles per labelled tile in a student's epoch."""
TEACHER = "labelled tiles only"


@dataclass(frozen=True)
class PseudoLabelTrial:
    """A teacher and its students."""

    tile_set: TileSet
    percent: float
    seed: int
    folder: Path
    weights: Path

    @property
    def labelled(self) -> list[Tile]:
        """The training tiles with labels."""
        return [tile for tile in subset(self.tile_set, self.seed, self._count) if tile.split == "train"]

    @property
    def unlabelled(self) -> list[Tile]:
        """The training tiles whose labels are hidden."""
        taken = set(self.labelled)
        return [tile for tile in self.tile_set.split("train") if tile not in taken]

    @property
    def _count(self) -> int:
        return subset_sizes([self.percent], len(self.tile_set.split("train")))[0].tiles

    @property
    def repeats(self) -> int:
        """How often a student's epoch repeats each labelled tile."""
        return ceil(len(self.unlabelled) / UNLABELLED_PER_LABELLED / len(self.labelled))

    def recipe(self, repeat: int) -> Recipe:
        """Return Geograft's default recipe with this seed and `repeat`."""
        model = {"encoder": ENCODER, "weights": str(self.weights)}
        return load_recipe(Path("default")).with_settings(model=model, train={"repeat": repeat, "seed": self.seed})

    def train(self, tiles: Sequence[Tile], masks: Path, repeat: int, name: str) -> Path:
        """Train on some tiles with the labels in `masks`, or resume; return the run."""
        fingerprint = json_digest([self.tile_set.meta.fingerprint, name])
        relabelled = replace(
            self.tile_set, meta=replace(self.tile_set.meta, masks=str(masks.resolve()), fingerprint=fingerprint)
        )
        other_splits = [tile for tile in self.tile_set.tiles if tile.split != "train"]
        write_derived_set(relabelled, [*tiles, *other_splits], self.folder / f"{name}-tiles")
        close_labels()
        train(self.folder / f"{name}-tiles", self.folder / name, self.recipe(repeat), resume=True)
        return self.folder / name


def teacher(trial: PseudoLabelTrial) -> Path:
    """Train on the labelled tiles only, for as many steps as a student; return the run."""
    steps = trial.repeats + len(trial.unlabelled) / len(trial.labelled)
    return trial.train(trial.labelled, trial.tile_set.folder / trial.tile_set.meta.masks, round(steps), "teacher")


def student(trial: PseudoLabelTrial, threshold: float) -> tuple[Path, dict[str, float]]:
    """Train on the pseudo-labels too; return the run and the quality of the pseudo-labels."""
    masks = trial.folder / f"threshold{threshold:g}-masks"
    quality = pseudo_labels(trial, threshold, masks)
    return trial.train(
        [*trial.labelled * trial.repeats, *trial.unlabelled], masks, 1, f"threshold{threshold:g}"
    ), quality


def pseudo_labels(trial: PseudoLabelTrial, threshold: float, masks: Path) -> dict[str, float]:
    """Write masks with the teacher's pseudo-labels in the unlabelled tiles, and return their quality.

    That is the fraction of the pixels that get a label, and the accuracy of those labels.
    """
    shutil.copytree(trial.tile_set.folder / trial.tile_set.meta.masks, masks, dirs_exist_ok=True)
    counts = np.zeros(3)
    for tile, label, truth in iterate_labels(trial, threshold):
        with rasterio.open(masks / f"{tile.scene}.tif", "r+") as mask:
            window = tile.window
            mask.write(label, 1, window=RasterWindow(window.col, window.row, window.width, window.height))
        known = (truth != IGNORE) & (label != IGNORE)
        counts += (truth != IGNORE).sum(), known.sum(), (label[known] == truth[known]).sum()
    close_labels()
    labelled, accuracy = counts[1:] / np.maximum(counts[:-1], 1)
    return {"labelled": float(labelled), "accuracy": float(accuracy)}


def iterate_labels(trial: PseudoLabelTrial, threshold: float) -> Iterator[tuple[Tile, ndarray, ndarray]]:
    """Yield each unlabelled tile with its pseudo-labels and its hidden labels."""
    model = RunModel.open(trial.folder / "teacher", EvaluateConfig())
    samples = replace(trial.tile_set, tiles=tuple(trial.unlabelled)).samples("train")
    for found in predict_tiles(model, trial.tile_set, samples.tiles, "pseudo-labels"):
        p, (_, truth) = found.probabilities, samples[found.index]
        label = np.where((truth != IGNORE) & (p.max(axis=0) >= threshold), p.argmax(axis=0), IGNORE)
        yield samples.tiles[found.index], label.astype(np.uint8), truth


def score_run(trial: PseudoLabelTrial, run: Path) -> dict[str, Any]:
    """Return a run's confusion matrices by unit of the validation split, and a description of the units."""
    result = score_split(RunModel.open(run, EvaluateConfig()), trial.tile_set, "val", EvaluateConfig())
    units = result.counts.units
    close_labels()
    return {"confusion": units.sum_by_unit(result.counts.confusion).tolist(), "units": units.description}


class TrialResults:
    """Results by percentage, seed and run, cached in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.scores: dict[str, dict[str, Any]] = json.loads(path.read_bytes()) if path.exists() else {}

    def fill(self, trial: PseudoLabelTrial, thresholds: Sequence[float]) -> None:
        """Train and score the missing runs of a trial."""
        if self._missing(trial, TEACHER):
            self._put(trial, TEACHER, score_run(trial, teacher(trial)))
        for threshold in thresholds:
            if self._missing(trial, student_name(threshold)):
                run, quality = student(trial, threshold)
                self._put(trial, student_name(threshold), score_run(trial, run) | quality)

    def measure(self, percent: float, name: str, seeds: Sequence[int]) -> BootstrapEstimator:
        """Return an estimator of the mean score over the seeds, from counts by unit and seed."""
        counts = [self.scores[_key(percent, seed, name)]["confusion"] for seed in seeds]
        return BootstrapEstimator(np.stack(counts, axis=1), seed_means)

    def mean(self, percent: float, name: str, seeds: Sequence[int], figure: str) -> float:
        """Return a quality figure of the pseudo-labels, averaged over the seeds."""
        return float(np.mean([self.scores[_key(percent, seed, name)][figure] for seed in seeds]))

    def _missing(self, trial: PseudoLabelTrial, name: str) -> bool:
        return _key(trial.percent, trial.seed, name) not in self.scores

    def _put(self, trial: PseudoLabelTrial, name: str, found: Mapping[str, Any]) -> None:
        self.scores[_key(trial.percent, trial.seed, name)] = dict(found)
        write_json(self._path, self.scores)


def student_name(threshold: float) -> str:
    """Return the name of the student for a threshold."""
    return f"and pseudo-labels above {threshold:g}"


def _key(percent: float, seed: int, name: str) -> str:
    return f"{percent:g} %, seed {seed}, {name}"


def table_rows(
    results: TrialResults, percentages: Sequence[float], thresholds: Sequence[float], seeds: Sequence[int]
) -> list[list[str]]:
    """Return one row per percentage and run: IoU, gain over the teacher with its CI and by seed, label quality."""
    rows = []
    for percent in percentages:
        base = results.measure(percent, TEACHER, seeds)
        rows.append([f"{percent:g} %: {TEACHER}", *_words(base), "", "", "", ""])
        for threshold in thresholds:
            student_scores = results.measure(percent, student_name(threshold), seeds)
            gain = student_scores.difference(base)["iou"]
            each = [_iou(one) - _iou(other) for one, other in zip(_each(student_scores), _each(base), strict=True)]
            quality = [
                f"{results.mean(percent, student_name(threshold), seeds, figure):.1%}"
                for figure in ("labelled", "accuracy")
            ]
            gained = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
            by_seed = ", ".join(f"{value:+.3f}" for value in each)
            rows.append(
                [f"{percent:g} %: {student_name(threshold)}", *_words(student_scores), gained, by_seed, *quality]
            )
    return rows


def _words(measure: BootstrapEstimator) -> list[str]:
    return [" ".join(measure.estimate()["iou"].format())]


def _each(measure: BootstrapEstimator) -> list[ndarray]:
    return [measure.counts[:, seed : seed + 1] for seed in range(measure.counts.shape[1])]


def _iou(counts: ndarray) -> float:
    return float(seed_means(counts.sum(axis=0)[None])["iou"][0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, help="tile set; default: prepare the images beside the project")
    parser.add_argument("--weights", type=Path, required=True, help=f"weights of {ENCODER}")
    parser.add_argument(
        "--percent", type=float, nargs="+", default=[10, 25], help="percent of the training tiles that are labelled"
    )
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.95], help="minimum probability")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--folder", type=Path, default=Path("build/bench/unlabelled"), help="where results are cached")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    whole, results = TileSet.open(tile_set(given.tiles, given.folder)), TrialResults(given.folder / "results.json")
    for seed in given.seeds:
        for percent in given.percent:
            where = given.folder / f"percent{percent:g}" / f"seed{seed}"
            results.fill(PseudoLabelTrial(whole, percent, seed, where, given.weights), given.thresholds)
    head = ["trained on", "IoU", "gain", "by seed", "pixels labelled", "label accuracy"]
    rows = table_rows(results, given.percent, given.thresholds, given.seeds)
    print(f"{page.table(head, rows)}\n\n{machine.describe(('torch', 'timm'))}")


if __name__ == "__main__":
    main()
