"""The rounds of labelling and training of a project: their scores, and the areas that follow from them.

A round is recorded when the scores of the run change. The areas of its classes are added when its maps are made: they
are estimated from the labelled random areas, since the area of a map is biased by its errors.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from geograft.card import CARD
from geograft.config.recipes import RUN, TILES
from geograft.errors import GeograftError
from geograft.files import file_digest, json_digest, write_json
from geograft.geo.coverage import SAMPLE
from geograft.geo.vectors.label_edits import read_features
from geograft.metrics.estimation import estimate_class_areas
from geograft.server.jobs import number_or_none
from geograft.server.layers import Subject, file_revision, map_classes, read_info
from geograft.server.measures import value_sums

ROUNDS = ".rounds.json"
SCORES, TILE_INDEX = Path(RUN, "scores-test.json"), Path(TILES, "tiles.gpkg")
DAMAGED = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
"""What a file of scores that somebody edited can raise."""


@dataclass(frozen=True)
class ClassArea:
    """The area of a class in all images, with its 95 % confidence interval."""

    name: str
    mapped: FiniteFloat
    """As in the maps, with their errors."""
    estimate: FiniteFloat | None
    """From the labelled random areas; None if they do not determine it."""
    low: FiniteFloat | None
    high: FiniteFloat | None


@dataclass(frozen=True)
class Round:
    """The scores and areas of a project after one round of labelling and training."""

    round: int
    tiles: int | None
    """Number of training tiles; None if unknown."""
    iou: FiniteFloat | None
    iou_low: FiniteFloat | None
    iou_high: FiniteFloat | None
    """95 % confidence interval."""
    scores: str
    """Digest of the file of scores."""
    areas: tuple[ClassArea, ...] = ()
    """Without the background; empty before the maps are made."""
    unit: str = "m2"
    """Of the areas; px without CRS."""


class Rounds:
    """The rounds of a project, in a file of its folder."""

    def __init__(self, subject: Subject, store: bool = True) -> None:
        """Take the project, and whether what is new is stored in its folder."""
        assert subject.folder is not None, "a run has no rounds"
        self._subject, self._folder, self._store = subject, subject.folder, store
        self._lock = threading.Lock()
        self._rounds = self._known()
        self._measured = ""

    @property
    def all(self) -> list[dict[str, Any]]:
        """All rounds, as far as `update` and `measure` have seen them."""
        content = [asdict(each) for each in self._rounds]
        return [{name: value for name, value in each.items() if name != "scores"} for each in content]

    @property
    def revision(self) -> str:
        """A text that changes when a round does."""
        return json_digest(self.all)[:16]

    def update(self) -> None:
        """Record the present scores, if they are new."""
        with self._lock:
            digest, rounds = self._scores_digest(), self._rounds
            latest = None if digest in ["", *(each.scores for each in rounds[-1:])] else self._latest(digest)
            if latest:
                self._keep([*rounds, latest])

    def measure(self) -> None:
        """Add the areas of the last round, when all its maps are there. Reads them once."""
        with self._lock:
            state = self._state()
            if state in ("", self._measured):
                return
            self._measured = state
            # A map or scores that cannot be read now have no areas; when they change, they are read again.
            with suppress(GeograftError, *DAMAGED):
                content = json.loads((self._folder / SCORES).read_bytes())
                areas, unit = class_areas(content, [path for _, path in self._subject.maps])
                self._keep([*self._rounds[:-1], replace(self._rounds[-1], areas=areas, unit=unit)])

    def _state(self) -> str:
        """Return a text that changes with scores and maps; empty unless the maps are those of the last round."""
        maps, card = [path for _, path in self._subject.maps], self._folder / RUN / CARD
        try:
            if not self._rounds or self._scores_digest() != self._rounds[-1].scores:
                return ""
            if any(path.stat().st_mtime_ns < card.stat().st_mtime_ns for path in maps):
                return ""
        except OSError:
            return ""
        return file_revision(self._folder / SCORES, *maps)

    def _keep(self, rounds: list[Round]) -> None:
        self._rounds = rounds
        # In a folder that cannot be written, rounds are known until the server ends.
        with suppress(GeograftError):
            if self._store:
                write_json(self._folder / ROUNDS, [asdict(each) for each in rounds])

    def _known(self) -> list[Round]:
        try:
            return TypeAdapter(list[Round]).validate_json((self._folder / ROUNDS).read_bytes())
        except (OSError, ValidationError):
            return []

    def _scores_digest(self) -> str:
        try:
            return file_digest(self._folder / SCORES)
        except OSError:
            return ""

    def _latest(self, digest: str) -> Round | None:
        try:
            content = json.loads((self._folder / SCORES).read_bytes())
            iou, interval = content["overall"]["iou"], content["overall_intervals"]["iou"] or (None, None)
            low, high = (number_or_none(value) for value in interval)
            number = len(self._rounds) + 1
            return Round(number, self._training_tiles(), number_or_none(iou), low, high, digest)
        except DAMAGED:
            return None

    def _training_tiles(self) -> int | None:
        try:
            with read_features(self._folder / TILE_INDEX, None) as file:
                rows = [row for layer in file.layers for row in file.rows(layer)]
        except GeograftError:
            return None
        return sum(row.values.get("split") == "train" for row in rows)


def class_areas(scores: Mapping[str, Any], maps: Sequence[Path]) -> tuple[tuple[ClassArea, ...], str]:
    """Return the area of each class that is mapped, from scores and all maps of a run, and the unit: m2 or px.

    Empty if the scores are not those of random areas, which alone are a sample of the images.

    Raises:
        InputError: when a map cannot be read.
        ValueError, KeyError, TypeError: for scores that are none, or of other classes than the maps.
    """
    infos = [read_info(path) for path in maps]
    legend, unit = map_classes(infos[0]), "m2" if all(info.grid.crs for info in infos) else "px"
    if scores["interval"]["unit"] != SAMPLE:
        return (), unit
    if any(map_classes(info) != legend for info in infos) or list(legend.names) != scores["classes"]:
        raise ValueError("the classes of scores and maps differ")
    counts = _counts_by_unit(scores["per_unit"])
    if legend.overlapping:
        # Each class has a matrix, and a band of the map, of its own.
        mapped = np.stack([_mapped(maps, (0, 1), band, unit) for band in range(1, len(legend.names) + 1)])
        found = np.stack([estimate_class_areas(counts[:, i], own)[1] for i, own in enumerate(mapped)])
        mapped = mapped[:, 1]
    else:
        mapped = _mapped(maps, legend.values, 1, unit)
        found = estimate_class_areas(counts, mapped)
    rows = [[None if np.isnan(value) else value for value in row] for row in found.tolist()]
    every = [ClassArea(*each, *row) for *each, row in zip(legend.names, mapped.tolist(), rows, strict=True)]
    return tuple(every[1:] if legend.binary else every), unit


def _counts_by_unit(rows: Sequence[Mapping[str, Any]]) -> Int64[ndarray, "..."]:
    """Return the confusion matrices of the units, each the sum of its cells."""
    units: dict[str, ndarray] = {}
    for row in rows:
        units[row["unit"]] = units.get(row["unit"], 0) + np.array(row["confusion"], np.int64)
    return np.stack([*units.values()])


def _mapped(maps: Sequence[Path], values: Sequence[int], band: int, unit: str) -> Float64[ndarray, " k"]:
    """Return the area of each value of a band over all maps."""
    sums = [value_sums(path, band) for path in maps]
    areas = np.array([each.m2 if unit == "m2" else each.pixels for each in sums], np.float64)
    total: ndarray = areas.sum(axis=0)[list(values)]
    return total
