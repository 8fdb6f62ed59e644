"""What `geograft evaluate` and `geograft area` leave behind, read and checked. Keys of later versions may lack."""

import math
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as record

from geograft.errors import InputError
from geograft.metrics.confusion import Counting

# The files may hold more than a report shows.
LENIENT = ConfigDict(extra="ignore")
Content = TypeVar("Content")
Ends = tuple[float, float] | None
"""A 95 % interval; None where there is none."""
Matrix = tuple[tuple[int, ...], ...] | tuple[tuple[tuple[int, ...], ...], ...]
"""Of all classes together; or of each overlapping class, outside and inside it."""
Column = tuple[float | None, ...]


@record(frozen=True, config=LENIENT)
class PrecisionRecall:
    """Precision and recall at every threshold."""

    threshold: Column
    precision: Column
    recall: Column


@record(frozen=True, config=LENIENT)
class Score:
    """How well one class is mapped, or one scene; None where a figure does not exist."""

    iou: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    pixels: int
    name: str = Field(validation_alias=AliasChoices("class", "scene"))
    intervals: dict[str, Ends] = Field(default_factory=dict)
    precision_recall: PrecisionRecall | None = None
    """Of a class that overlaps others."""


@record(frozen=True, config=LENIENT)
class IntervalNote:
    """What the intervals are over."""

    units: int
    unit: str
    """"scene", "group" or "block"."""
    words: str


@record(frozen=True, config=LENIENT)
class UnitCounts:
    """The confusion matrix of one cell of ground; cells of one unit are drawn together."""

    unit: str
    scene: str
    confusion: Matrix


@record(frozen=True, config=LENIENT)
class ReliabilityBin:
    """Pixels whose confidence lies in one bin, their mean confidence and the share of them that is right."""

    pixels: int
    confidence: float | None
    right: float | None


@record(frozen=True, config=LENIENT)
class EdgeScore:
    """How well the edges of one class are mapped."""

    f1: float | None
    precision: float | None
    recall: float | None
    name: str = Field(validation_alias="class")
    intervals: dict[str, Ends] = Field(default_factory=dict)


@record(frozen=True, config=LENIENT)
class Edges:
    """Scores of boundaries within a tolerance."""

    tolerance_m: float
    per_class: tuple[EdgeScore, ...]


@record(frozen=True, config=LENIENT)
class Objects:
    """Scores of the objects of one class."""

    matched: int
    mapped: int
    labelled: int
    precision: float | None
    recall: float | None
    f1: float | None
    count_error: float | None
    name: str = Field(validation_alias="class")
    intervals: dict[str, Ends] = Field(default_factory=dict)


@record(frozen=True, config=LENIENT)
class Decision:
    """How probabilities became classes."""

    threshold: float
    temperature: float
    calibrated: str
    thresholds: tuple[float, ...] = ()
    """Of each overlapping class."""


@record(frozen=True, config=LENIENT)
class Against:
    """Differences to another run on the same tiles."""

    run: str
    overall: dict[str, float | None]
    overall_intervals: dict[str, Ends]


@record(frozen=True, config=LENIENT)
class ScoreTable:
    """What scores-NAME.json holds: the scores of one run on one split of one tile set."""

    name: str
    split: str
    tiles: str
    classes: tuple[str, ...]
    confusion: Matrix
    """Pixel counts: rows are the label, columns the map."""
    overall: dict[str, float | None]
    per_class: tuple[Score, ...]
    per_scene: tuple[Score, ...]
    tiles_scored: int
    interval: IntervalNote | None = None
    """None in files from before there were intervals."""
    overall_intervals: dict[str, Ends] = Field(default_factory=dict)
    per_unit: tuple[UnitCounts, ...] = ()
    decision: Decision | None = None
    reliability: tuple[ReliabilityBin, ...] = ()
    precision_recall: PrecisionRecall | None = None
    boundary: Edges | None = None
    objects: Objects | None = None
    against: Against | None = None

    @property
    def counting(self) -> Counting:
        """How the pixels were counted."""
        return Counting(len(self.classes), overlapping=np.ndim(self.confusion) == 3)

    @property
    def iou(self) -> float:
        """IoU of class 1 of two, else the mean over the classes; NaN where it does not exist."""
        value = self.overall.get("iou")
        return math.nan if value is None else value

    @property
    def scenes(self) -> int:
        """How many scenes were scored."""
        return len({cell.scene for cell in self.per_unit} or {scene.name for scene in self.per_scene})

    @property
    def by_unit(self) -> dict[str, Int64[ndarray, "..."]]:
        """Pixel counts by unit; empty in files that have none."""
        found: dict[str, Int64[ndarray, ...]] = {}
        for cell in self.per_unit:
            counts = np.array(cell.confusion, np.int64)
            found[cell.unit] = found[cell.unit] + counts if cell.unit in found else counts
        return found


@record(frozen=True, config=LENIENT)
class Across:
    """The figures of one network over all folds, or how far the first of two is better than the second."""

    overall: dict[str, float | None]
    overall_intervals: dict[str, Ends]
    variant: str = ""
    first: str = ""
    second: str = ""


@record(frozen=True, config=LENIENT)
class FoldUnits:
    """How many pieces of ground were scored over all folds."""

    units: int


@record(frozen=True, config=LENIENT)
class FoldsFile:
    """What `geograft compare --folds` writes beside the comparison."""

    interval: FoldUnits
    variants: tuple[Across, ...]
    differences: tuple[Across, ...] = ()


@record(frozen=True, config=LENIENT)
class Measured:
    """An estimate with its 95 % interval; None where it does not exist."""

    estimate: float | None
    low: float | None
    high: float | None


@record(frozen=True, config=LENIENT)
class ClassArea:
    """One class of a map: what the map shows, and what the reference points say."""

    mapped_area: float
    area: Measured
    users_accuracy: Measured
    producers_accuracy: Measured
    name: str = Field(validation_alias="class")


@record(frozen=True, config=LENIENT)
class AreaFile:
    """What `geograft area --out` writes."""

    map: str
    headline: str
    unit: str
    labelled: int
    classes: tuple[ClassArea, ...]
    notes: tuple[str, ...] = ()


def read_json(path: Path, kind: type[Content]) -> Content:
    """Return what a JSON file holds as `kind`.

    Raises:
        InputError: naming the file and what is wrong in it.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the folder.") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {fault['msg']}. Write it again with the command that made it.") from error
