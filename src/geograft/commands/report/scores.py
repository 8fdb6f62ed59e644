"""The JSON files of `geograft evaluate`, `compare` and `area`, read and validated. Newer keys are optional."""

import math
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as record

from geograft.bundle import BundleMember
from geograft.errors import InputError
from geograft.metrics.confusion import ConfusionScheme

# Keys that the report does not use are ignored.
LENIENT = ConfigDict(extra="ignore")
Content = TypeVar("Content")
Interval = tuple[float, float] | None
"""Bounds of a 95 % confidence interval, or None."""
Matrix = tuple[tuple[int, ...], ...] | tuple[tuple[tuple[int, ...], ...], ...]
"""A confusion matrix (k, k), or (k, 2, 2) for overlapping classes."""
Column = tuple[float | None, ...]


@record(frozen=True, config=LENIENT)
class PrecisionRecall:
    """Precision and recall at every threshold."""

    threshold: Column
    precision: Column
    recall: Column


@record(frozen=True, config=LENIENT)
class Score:
    """Scores of one class or one scene; None where a score is undefined."""

    iou: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    pixels: int
    name: str = Field(validation_alias=AliasChoices("class", "scene"))
    intervals: dict[str, Interval] = Field(default_factory=dict)
    precision_recall: PrecisionRecall | None = None
    """Only for overlapping classes."""


@record(frozen=True, config=LENIENT)
class IntervalInfo:
    """The units that the bootstrap resampled."""

    units: int
    unit: str
    """"scene", "group" or "block"."""
    description: str


@record(frozen=True, config=LENIENT)
class UnitCounts:
    """The confusion matrix of one block or scene; those with the same `unit` are resampled together."""

    unit: str
    scene: str
    confusion: Matrix


@record(frozen=True, config=LENIENT)
class ReliabilityBin:
    """The pixels in one bin of confidence: number, mean confidence and observed frequency of the class."""

    pixels: int
    confidence: float | None
    observed_frequency: float | None


@record(frozen=True, config=LENIENT)
class BoundaryScore:
    """Boundary scores of one class."""

    f1: float | None
    precision: float | None
    recall: float | None
    name: str = Field(validation_alias="class")
    intervals: dict[str, Interval] = Field(default_factory=dict)


@record(frozen=True, config=LENIENT)
class BoundaryScores:
    """Boundary scores within a tolerance."""

    tolerance_m: float
    per_class: tuple[BoundaryScore, ...]


@record(frozen=True, config=LENIENT)
class ObjectScores:
    """Object scores of one class."""

    matched: int
    mapped: int
    labelled: int
    precision: float | None
    recall: float | None
    f1: float | None
    count_error: float | None
    name: str = Field(validation_alias="class")
    intervals: dict[str, Interval] = Field(default_factory=dict)


@record(frozen=True, config=LENIENT)
class Decision:
    """Threshold and temperature by which probabilities became classes."""

    threshold: float
    temperature: float
    calibrated: str
    thresholds: tuple[float, ...] = ()
    """By overlapping class."""


@record(frozen=True, config=LENIENT)
class RunDifference:
    """Differences in score to another run on the same tiles."""

    run: str
    overall: dict[str, float | None]
    overall_intervals: dict[str, Interval]


@record(frozen=True, config=LENIENT)
class PartFile:
    """The scores in place or elsewhere, or those of one place."""

    tiles: int
    overall: dict[str, float | None]
    overall_intervals: dict[str, Interval]
    place: str = ""
    where: str = ""
    """"in place" or "elsewhere"; empty for a part that has no name."""


@record(frozen=True, config=LENIENT)
class PlacesFile:
    """Scores in place, where the run has training tiles in the same place, and elsewhere."""

    in_place: PartFile | None = None
    elsewhere: PartFile | None = None
    per_place: tuple[PartFile, ...] = ()

    @property
    def parts(self) -> dict[str, PartFile]:
        """The parts that have tiles, by name."""
        both = {"in place": self.in_place, "elsewhere": self.elsewhere}
        return {name: part for name, part in both.items() if part}


@record(frozen=True, config=LENIENT)
class ScoreTable:
    """The content of scores-NAME.json: the scores of one run on one split of one tile set."""

    name: str
    split: str
    tiles: str
    classes: tuple[str, ...]
    confusion: Matrix
    """Pixel counts; rows are labels, columns the map."""
    overall: dict[str, float | None]
    per_class: tuple[Score, ...]
    per_scene: tuple[Score, ...]
    tiles_scored: int
    interval: IntervalInfo | None = None
    """None in files of versions without intervals."""
    overall_intervals: dict[str, Interval] = Field(default_factory=dict)
    per_unit: tuple[UnitCounts, ...] = ()
    decision: Decision | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    precision_recall: PrecisionRecall | None = None
    boundary: BoundaryScores | None = None
    objects: ObjectScores | None = None
    against: RunDifference | None = None
    places: PlacesFile = Field(default_factory=PlacesFile)
    """Without parts in files of earlier versions, and where the tile set of the run was not there."""

    @property
    def where(self) -> str:
        """Where all tiles are, "in place" or "elsewhere"; empty if they are in both, or it is unknown."""
        return next(iter(self.places.parts)) if len(self.places.parts) == 1 else ""

    @property
    def scheme(self) -> ConfusionScheme:
        """The layout of the confusion matrix."""
        return ConfusionScheme(len(self.classes), overlapping=np.ndim(self.confusion) == 3)

    @property
    def iou(self) -> float:
        """IoU of the positive class, or the mean over several classes; NaN if undefined."""
        value = self.overall.get("iou")
        return math.nan if value is None else value

    @property
    def scene_count(self) -> int:
        """Number of scored scenes."""
        return len({cell.scene for cell in self.per_unit} or {scene.name for scene in self.per_scene})

    @property
    def counts_by_unit(self) -> dict[str, Int64[ndarray, "..."]]:
        """Confusion matrices by unit; empty in files without them."""
        matrices: dict[str, Int64[ndarray, ...]] = {}
        for cell in self.per_unit:
            counts = np.array(cell.confusion, np.int64)
            matrices[cell.unit] = matrices[cell.unit] + counts if cell.unit in matrices else counts
        return matrices


@record(frozen=True, config=LENIENT)
class FoldScores:
    """The scores of one network over all folds, or the first network's scores minus the second's."""

    overall: dict[str, float | None]
    overall_intervals: dict[str, Interval]
    variant: str = ""
    first: str = ""
    second: str = ""


@record(frozen=True, config=LENIENT)
class FoldInterval:
    """The number of units scored over all folds."""

    units: int


@record(frozen=True, config=LENIENT)
class FoldPart:
    """Scores over all folds of tiles in the places that a network was trained in."""

    interval: FoldInterval
    variants: tuple[FoldScores, ...]


@record(frozen=True, config=LENIENT)
class FoldsFile:
    """The content of folds.json, written by `geograft compare --folds` and `--leave-one-place-out`."""

    interval: FoldInterval
    variants: tuple[FoldScores, ...]
    differences: tuple[FoldScores, ...] = ()
    places: tuple[str, ...] = ()
    """The places that the folds leave out: the scores are those elsewhere. Empty if folds are no places."""
    in_place: FoldPart | None = None

    def in_place_scores(self, variant: str) -> FoldScores | None:
        """Return the scores of a network in the places that it was trained in; None if there are none."""
        found = self.in_place.variants if self.in_place else ()
        return next((one for one in found if one.variant == variant), None)


@record(frozen=True, config=LENIENT)
class IntervalEstimate:
    """An estimate with its 95 % confidence interval; None where undefined."""

    estimate: float | None
    low: float | None
    high: float | None


@record(frozen=True, config=LENIENT)
class ClassArea:
    """One class of a map: its mapped area, and area and accuracies estimated from reference points."""

    mapped_area: float
    area: IntervalEstimate
    users_accuracy: IntervalEstimate
    producers_accuracy: IntervalEstimate
    name: str = Field(validation_alias="class")


@record(frozen=True, config=LENIENT)
class AreaFile:
    """The content of the file that `geograft area --out` writes."""

    map: str
    headline: str
    unit: str
    labelled: int
    classes: tuple[ClassArea, ...]
    notes: tuple[str, ...] = ()


def read_json(path: Path | BundleMember, schema: type[Content]) -> Content:
    """Read a JSON file as `schema`.

    Raises:
        InputError: naming the file and what is wrong in it.
    """
    try:
        return TypeAdapter(schema).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the folder.") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise InputError(
            f"{path}: {where}: {fault['msg']}. Write it again with the command that created it."
        ) from error
