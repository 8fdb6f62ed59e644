"""Trainings that are done and kept: one JSON file each, so that a stopped benchmark goes on where it was."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.config import Recipe, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.files import file_digest, json_digest, write_json
from geograft.metrics.intervals import confidence_intervals, paired_confidence_intervals
from geograft.metrics.scores import class_scores
from trainees import ARTICLE, OURS, TRAINEES, Job, default_recipe, needs_own_run

Ends = tuple[float, float]


@dataclass(frozen=True)
class Kept:
    """What is kept of one contestant's trainings of so many epochs, by seed."""

    by_seed: Mapping[int, Mapping[str, Any]]

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len(self.by_seed)

    def mean(self, name: str) -> float:
        """Return the mean of a figure over the seeds."""
        return fmean(each[name] for each in self.by_seed.values())

    def iou_after(self, epochs: int) -> float:
        """Return the mean IoU over the seeds after the first `epochs` epochs; NaN after none."""
        if not epochs:
            return math.nan
        return fmean(each["ious"][min(epochs, len(each["ious"])) - 1] for each in self.by_seed.values())

    def iou(self, weights: str) -> float:
        """Return the mean IoU over the seeds with the `last` or `best` weights."""
        return float(mean_iou(self.counts(weights).sum(axis=0)[None])[0, 0])

    def counts(self, weights: str) -> ndarray:
        """Return the counts of every scene, those of the seeds side by side: (scenes, seeds * 4)."""
        by_seed = [np.array(each[weights]).reshape(len(each[weights]), 4) for each in self.by_seed.values()]
        return np.hstack(by_seed)

    def interval(self, weights: str) -> Ends:
        """Return the 95 % interval of `iou`, resampling scenes."""
        low, high = confidence_intervals(self.counts(weights), mean_iou)[0]
        return float(low), float(high)

    def less(self, other: "Kept", weights: str) -> tuple[float, Ends]:
        """Return the difference of `iou` from another contestant's, and its 95 % interval on the same scenes."""
        low, high = paired_confidence_intervals(self.counts(weights), other.counts(weights), mean_iou)[0]
        return self.iou(weights) - other.iou(weights), (float(low), float(high))

    @property
    def epoch_seconds(self) -> float:
        """What one epoch took, with its validation."""
        return fmean(each["seconds"] / len(each["ious"]) for each in self.by_seed.values())


def mean_iou(sums: ndarray) -> ndarray:
    """Return the mean over the seeds of the IoU of class 1, of sums of counts (draws, seeds * 4), as (draws, 1)."""
    by_seed = class_scores(sums.reshape(len(sums), -1, 2, 2))["iou"][..., 1]
    mean: ndarray = by_seed.mean(axis=1, keepdims=True)
    return mean


def epochs_in(seconds: float, kept: Kept, epochs: int) -> int:
    """Return how many of its epochs a contestant ends within `seconds`, at most `epochs`."""
    # A hundred-thousandth of an epoch is no less of one: the clock's sums are rounded.
    return min(epochs, math.floor(seconds / kept.epoch_seconds + 1e-5))


class Shelf:
    """The folder of what is kept. A file counts only for the data, weights and settings that it was made with."""

    def __init__(self, folder: Path, job: Job) -> None:
        self._folder, self._job = folder, job
        self._given = [TileSet.open(job.tiles).meta.fingerprint, file_digest(job.weights)]

    def read(self, job: Job) -> dict[str, Any] | None:
        """Return what is kept of a job; None where there is nothing, or what is there is of other settings."""
        try:
            content: dict[str, Any] = json.loads(self._path(job).read_text(encoding="utf-8"))
        except OSError:
            return None
        return content if content["key"] == self._key(job) else None

    def write(self, job: Job, content: Mapping[str, Any]) -> None:
        """Keep what a job gave."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(job), {"key": self._key(job), **content})

    def forget(self, name: str) -> None:
        """Remove what is kept of one name."""
        for path in self._folder.glob(f"{name}-seed*-epochs*.json"):
            path.unlink()

    def kept(self, name: str, seeds: int, epochs: int) -> Kept | None:
        """Return a contestant's trainings of so many epochs with the first `seeds` seeds; None where there are none."""
        jobs = [replace(self._job, name=name, seed=seed, epochs=epochs) for seed in range(seeds)]
        found = {job.seed: content for job in jobs if (content := self.read(job)) is not None}
        return Kept(found) if found else None

    def _path(self, job: Job) -> Path:
        return self._folder / f"{job.name}-seed{job.seed}-epochs{job.epochs}.json"

    def _key(self, job: Job) -> str:
        recipe = recipe_of(job)
        model = {name: value for name, value in asdict(recipe.model).items() if name != "weights"}
        return json_digest(
            [*self._given, job.name, job.limit, job.threads, job.clock, job.epochs, model, asdict(recipe.train)]
        )


def recipe_of(job: Job) -> Recipe:
    """Return the recipe that decides a job: for loops of their own the article's; for no training the default's."""
    if job.name not in TRAINEES:
        return default_recipe(job)
    own = TRAINEES[job.name].recipe
    return own(job) if own is not None else load_recipe(ARTICLE)


def at_equal_time(shelf: Shelf, name: str, seeds: int, job: Job) -> tuple[int, Kept | None]:
    """Return how many epochs a contestant ends while Geograft's default trains, and its trainings that say what they
    give.

    None where there is none yet: a schedule that knows its end needs a training of its own.
    """
    ours, own = shelf.kept(OURS, seeds, job.epochs), shelf.kept(name, seeds, job.epochs)
    if ours is None or own is None:
        return 0, None
    epochs = epochs_in(ours.mean("seconds"), own, job.epochs)
    by_own_loop = TRAINEES[name].recipe is None
    if by_own_loop or not needs_own_run(recipe_of(replace(job, name=name))) or epochs in (0, job.epochs):
        return epochs, own
    return epochs, shelf.kept(name, seeds, epochs)
