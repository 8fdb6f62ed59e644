"""`geograft jaccard`: the DSTL competition's own score of polygons, with intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from geograft.errors import InputError
from geograft.files import refuse_existing, write_json
from geograft.geo.accuracy.jaccard import Layers, area_counts, jaccard_index
from geograft.geo.tilesets.dstl import NAMES, group, labels_table, read_wkt
from geograft.intervals import caveat, intervals
from geograft.scores import present_mean
from geograft.table import table
from geograft.wording import counted


@dataclass(frozen=True)
class ClassJaccard:
    """The index of one class."""

    number: int
    name: str
    index: float
    low: float
    high: float


@dataclass(frozen=True)
class DstlScore:
    """The score of some scenes."""

    score: float
    """Mean of the classes' indices."""
    low: float
    """Of the 95 % interval over scenes; NaN for a single place."""
    high: float
    classes: tuple[ClassJaccard, ...]
    scenes: tuple[str, ...]
    warning: str

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        rows = [(str(c.number), c.name, f"{c.index:.4f}", _between(c.low, c.high)) for c in self.classes]
        return [
            *table([("class", "", "Jaccard", "95 % interval"), *rows]),
            f"mean {self.score:.4f} ({_between(self.low, self.high)}) over {counted(len(self.scenes), 'scene')}",
            *filter(None, [self.warning]),
        ]


def jaccard(submissions: Sequence[Path], labels: Path, out: Path | None = None) -> DstlScore:
    """Score DSTL submissions against the labels of their scenes by the competition's rule: areas summed by class.

    `submissions` are tables as `geograft polygons --out IMAGE.csv` writes them, together one submission; `labels` is
    Kaggle's folder, or train_wkt_v4.csv itself. Scored are the scenes of the submissions and the classes that they or
    their labels hold. With `out`, all figures go there as JSON. Seconds a scene.

    Raises:
        InputError: when a table cannot be read, two hold the same scene, or a scene has no labels.
        OutputError: when `out` exists or cannot be written.
    """
    if out is not None:
        refuse_existing(out)
    predicted = _together(submissions)
    known, _ = read_wkt(labels_table(labels), tuple(NAMES))
    strange = sorted(set(predicted) - set(known))
    if strange:
        raise InputError(f"{labels} holds no labels of {', '.join(strange)}. Score scenes that have some.")
    true = {scene: known[scene] for scene in predicted}
    classes = sorted({number for side in (predicted, true) for of in side.values() for number in of if len(of[number])})
    result = _score(area_counts(predicted, true, classes), tuple(true), classes)
    if out is not None:
        write_json(out, asdict(result))
    return result


def _together(submissions: Sequence[Path]) -> dict[str, Layers]:
    found: dict[str, Layers] = {}
    for path in submissions:
        scenes, _ = read_wkt(path, tuple(NAMES))
        twice = sorted(set(scenes) & set(found))
        if twice:
            raise InputError(f"{path} holds {twice[0]}, and so does another table. Give each scene once.")
        found |= scenes
    return found


def _score(counts: Float64[ndarray, "s k 3"], scenes: tuple[str, ...], classes: Sequence[int]) -> DstlScore:
    grounds = list(dict.fromkeys(map(group, scenes)))
    by_ground = np.stack([counts[[group(scene) == ground for scene in scenes]].sum(axis=0) for ground in grounds])

    def figures(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n f"]:
        index = jaccard_index(sums.reshape(len(sums), -1, 3))
        return np.column_stack([present_mean(index), index])

    flat = by_ground.reshape(len(grounds), -1)
    values, ends = figures(flat.sum(axis=0)[None])[0].tolist(), intervals(flat, figures).tolist()
    rows = zip(classes, values[1:], ends[1:], strict=True)
    each = tuple(ClassJaccard(number, NAMES[number], value, low, high) for number, value, (low, high) in rows)
    (low, high), *_ = ends
    return DstlScore(values[0], low, high, each, scenes, caveat(len(grounds)))


def _between(low: float, high: float) -> str:
    return "no interval" if np.isnan(low) else f"{low:.4f} to {high:.4f}"
