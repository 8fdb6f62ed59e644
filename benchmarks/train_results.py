"""Cached training results, one JSON file each, so that an interrupted benchmark resumes."""

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
from geograft.metrics.confusion import class_scores
from geograft.metrics.intervals import confidence_intervals, paired_confidence_intervals
from trainees import ARTICLE, OURS, TRAINEES, TrainingJob, default_recipe, needs_own_run

Interval = tuple[float, float]


@dataclass(frozen=True)
class SeedResults:
    """One contestant's trainings with the same number of epochs, by seed."""

    by_seed: Mapping[int, Mapping[str, Any]]

    @property
    def seeds(self) -> int:
        """The number of seeds."""
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
        """Return the confusion matrices by scene, flattened, with the seeds side by side: (scenes, seeds * 4)."""
        by_seed = [np.array(each[weights]).reshape(len(each[weights]), 4) for each in self.by_seed.values()]
        return np.hstack(by_seed)

    def interval(self, weights: str) -> Interval:
        """Return the 95 % CI of `iou`, from resampling scenes."""
        low, high = confidence_intervals(self.counts(weights), mean_iou)[0]
        return float(low), float(high)

    def difference(self, other: "SeedResults", weights: str) -> tuple[float, Interval]:
        """Return the difference of `iou` from another contestant's, and its paired 95 % CI over the same scenes."""
        low, high = paired_confidence_intervals(self.counts(weights), other.counts(weights), mean_iou)[0]
        return self.iou(weights) - other.iou(weights), (float(low), float(high))

    @property
    def epoch_seconds(self) -> float:
        """Mean seconds of an epoch, with its validation."""
        return fmean(each["seconds"] / len(each["ious"]) for each in self.by_seed.values())


def mean_iou(sums: ndarray) -> ndarray:
    """Return the IoU of class 1 averaged over the seeds, (draws, 1), from summed counts, (draws, seeds * 4)."""
    by_seed = class_scores(sums.reshape(len(sums), -1, 2, 2))["iou"][..., 1]
    mean: ndarray = by_seed.mean(axis=1, keepdims=True)
    return mean


def epochs_within(seconds: float, results: SeedResults, epochs: int) -> int:
    """Return how many epochs a contestant completes within `seconds`, at most `epochs`."""
    # The tolerance allows for rounding in the sum of seconds.
    return min(epochs, math.floor(seconds / results.epoch_seconds + 1e-5))


class ResultStore:
    """A folder of results. A file is used only for the data, weights and settings that it was made with."""

    def __init__(self, folder: Path, job: TrainingJob) -> None:
        self._folder, self._job = folder, job
        self._inputs = [TileSet.open(job.tiles).meta.fingerprint, file_digest(job.weights)]

    def read(self, job: TrainingJob) -> dict[str, Any] | None:
        """Return a job's result, or None if it is missing or was made with other settings."""
        try:
            content: dict[str, Any] = json.loads(self._path(job).read_text(encoding="utf-8"))
        except OSError:
            return None
        return content if content["key"] == self._key(job) else None

    def write(self, job: TrainingJob, content: Mapping[str, Any]) -> None:
        """Save a job's result."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(job), {"key": self._key(job), **content})

    def forget(self, name: str) -> None:
        """Delete the results of one contestant or measurement."""
        for path in self._folder.glob(f"{name}-seed*-epochs*.json"):
            path.unlink()

    def results(self, name: str, seeds: int, epochs: int) -> SeedResults | None:
        """Return a contestant's trainings with the first `seeds` seeds, or None if there are none."""
        jobs = [replace(self._job, name=name, seed=seed, epochs=epochs) for seed in range(seeds)]
        by_seed = {job.seed: content for job in jobs if (content := self.read(job)) is not None}
        return SeedResults(by_seed) if by_seed else None

    def _path(self, job: TrainingJob) -> Path:
        return self._folder / f"{job.name}-seed{job.seed}-epochs{job.epochs}.json"

    def _key(self, job: TrainingJob) -> str:
        recipe = recipe_for(job)
        model = {name: value for name, value in asdict(recipe.model).items() if name != "weights"}
        return json_digest(
            [*self._inputs, job.name, job.limit, job.threads, job.clock, job.epochs, model, asdict(recipe.train)]
        )


def recipe_for(job: TrainingJob) -> Recipe:
    """Return the recipe that a job depends on: the article's for plain loops, the default for measurements."""
    if job.name not in TRAINEES:
        return default_recipe(job)
    own = TRAINEES[job.name].recipe
    return own(job) if own is not None else load_recipe(ARTICLE)


def results_at_equal_time(
    store: ResultStore, name: str, seeds: int, job: TrainingJob
) -> tuple[int, SeedResults | None]:
    """Return the epochs that a contestant completes in the time of Geograft's default, and the results for them.

    The results are None if they are missing: a cosine schedule needs a training with just that number of epochs.
    """
    ours, own = store.results(OURS, seeds, job.epochs), store.results(name, seeds, job.epochs)
    if ours is None or own is None:
        return 0, None
    epochs = epochs_within(ours.mean("seconds"), own, job.epochs)
    by_own_loop = TRAINEES[name].recipe is None
    if by_own_loop or not needs_own_run(recipe_for(replace(job, name=name))) or epochs in (0, job.epochs):
        return epochs, own
    return epochs, store.results(name, seeds, epochs)
