"""`geograft evaluate`: a run and a split become scores with intervals; every pixel of the split counts once.

What an evaluation found: the scores file, and the lines that the command line prints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from geograft.card import ModelCard, tiles_of
from geograft.config import EvaluateConfig
from geograft.dataset.tileset import Split, TileSet, check_fit
from geograft.dataset.units import units_of
from geograft.errors import InputError, SettingError
from geograft.files import refuse_existing, write_json
from geograft.inference.predictor import Predictor
from geograft.mapping.scoring import (
    Confusion,
    Counts,
    Figure,
    Figures,
    between,
    count,
    headline,
    key,
    measures,
    plain,
    plain_ends,
    shown,
)
from geograft.mapping.shapes import ShapeCounter, Wanted, class_index
from geograft.metrics.calibration import THRESHOLDS, calibration_error, precision_recall, reliability_rows
from geograft.metrics.confusion import Counting
from geograft.metrics.intervals import DRAWS, LEVEL, caveat
from geograft.metrics.scores import HEADLINES
from geograft.text import table

CURVE_STEP = 10
"""The curve in the file has every tenth of the thousand thresholds; average precision is of all."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one run on one split. Confusion matrices have the truth in rows, the map in columns.

    Overlapping classes have a matrix (2, 2) each, of pixels outside and inside.
    """

    run: Path
    split: Split
    tiles: Path
    card: ModelCard
    tiles_scored: int
    counts: Counts
    settings: Mapping[str, Any]
    """Tolerance of boundaries and class of objects, where they were asked for."""
    rival: "Evaluation | None" = None
    """Another run on the same tiles."""
    notes: tuple[str, ...] = ()

    @property
    def counting(self) -> Counting:
        """How pixels are counted."""
        return self.counts.counting

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes by index."""
        return self.card.legend.names

    @property
    def confusion(self) -> Confusion:
        """Pixel counts over all scenes."""
        return self.counts.total

    @property
    def by_scene(self) -> dict[str, Confusion]:
        """Pixel counts by scene."""
        return self.counts.units.by_scene(self.counts.confusion)

    @cached_property
    def figures(self) -> dict[str, Figures]:
        """All figures with their intervals, by what they are taken of."""
        return {name: measure.figures() for name, measure in measures(self.counts).items()}

    @property
    def headline(self) -> Figures:
        """The figures of class 1 of two, else the means over the classes, by the names of the scores."""
        return _overall(self.figures)

    @cached_property
    def differences(self) -> dict[str, Figures]:
        """The same of this run less the rival's; empty without a rival."""
        if self.rival is None:
            return {}
        theirs = measures(self.rival.counts)
        return {name: measure.less(theirs[name]) for name, measure in measures(self.counts).items()}

    @property
    def reliability(self) -> Float64[ndarray, "15 3"]:
        """Counts of the reliability diagram over all cells."""
        total: Float64[ndarray, "15 3"] = self.counts.reliability.sum(axis=0)
        return total

    def content(self, name: str) -> dict[str, Any]:
        """Return what the scores file holds: JSON, null where a figure does not exist."""
        overall = self.headline
        ece = {"ece": _number(float(calibration_error(self.reliability)))}
        return {
            "name": name,
            "split": self.split,
            "tiles": str(self.tiles),
            "tiles_scored": self.tiles_scored,
            "classes": list(self.classes),
            "interval": self._interval(),
            "decision": _decision(self.card),
            "confusion": self.confusion.tolist(),
            "overall": plain(overall) | ece,
            "overall_intervals": plain_ends(overall),
            "per_class": self._per_class(),
            "per_scene": [
                {"scene": scene} | headline(counts, self.counting) | {"pixels": self.counting.pixels(counts)}
                for scene, counts in self.by_scene.items()
            ],
            "per_unit": [
                {"unit": cell.unit, "scene": cell.scene, **asdict(cell.window), "confusion": counts.tolist()}
                for cell, counts in zip(self.counts.units.cells, self.counts.confusion, strict=True)
            ],
            "reliability": reliability_rows(self.reliability),
            **self._curve(),
            **self._shapes(),
            **self._against(),
            "notes": list(self.notes),
        }

    def _interval(self) -> dict[str, Any]:
        units = self.counts.units
        return {
            "level": LEVEL,
            "units": len(units.names),
            "unit": units.kind,
            "words": units.words,
            "warning": " ".join(filter(None, (caveat(len(units.names)), units.caveat))),
            "method": f"bootstrap of units, {DRAWS:,} draws, expanded percentiles (Hesterberg 2015)",
        }

    def _per_class(self) -> list[dict[str, Any]]:
        if not self.counting.overlapping:
            return _class_rows(self.figures["classes"], self.classes, HEADLINES, self._labelled())
        figures = self.figures["classes"] | self.figures["probability"]
        rows = _class_rows(figures, self.classes, (*HEADLINES, "average_precision"), self._labelled())
        total = self.counts.probability.sum(axis=0)
        return [row | {"precision_recall": _curve_columns(own)} for row, own in zip(rows, total, strict=True)]

    def _labelled(self) -> ndarray:
        return self.counting.labelled(self.confusion)

    def _curve(self) -> dict[str, Any]:
        if not self.counting.binary:
            return {}
        return {"precision_recall": _curve_columns(self.counts.probability.sum(axis=0))}

    def _shapes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "boundary" in self.figures:
            figures = self.figures["boundary"]
            found["boundary"] = {
                "tolerance_m": self.settings["boundary_m"],
                "per_class": _class_rows(figures, self.classes, ("f1", "precision", "recall")),
                "macro_f1": figures["macro_f1"].plain,
                "macro_f1_interval": figures["macro_f1"].ends,
            }
        if self.counts.shapes is not None and self.counts.shapes.objects is not None:
            figures = self.figures["objects"]
            matched, mapped, labelled = self.counts.shapes.objects.sum(axis=0).tolist()
            numbers = {"matched": matched, "mapped": mapped, "labelled": labelled}
            scored = plain(figures) | {"intervals": plain_ends(figures)}
            found["objects"] = {"class": self.settings["objects"], "iou": 0.5} | numbers | scored
        return found

    def _against(self) -> dict[str, Any]:
        if self.rival is None:
            return {}
        overall = _overall(self.differences)
        return {
            "against": {
                "run": str(self.rival.run),
                "overall": plain(overall),
                "overall_intervals": plain_ends(overall),
                "per_class": _class_rows(self.differences["classes"], self.classes, HEADLINES),
            }
        }

    def lines(self) -> list[str]:
        """Return what the command line prints: by class with intervals, by scene where there are several, the rest."""
        content = self.content(self.split)
        overall = _overall(self.figures)
        several = [_scene_row(row) for row in content["per_scene"]] if len(content["per_scene"]) > 1 else []
        return [
            f"{self.run} on {self.tiles_scored} {self.split} tiles of {self.tiles}: "
            f"accuracy {_text(overall['accuracy'])}, kappa {_text(overall['kappa'])}",
            *table([CLASS_HEADER, *(_class_line(row) for row in content["per_class"]), self._mean_line(overall)]),
            *(table([("scene", "IoU", "F1", "precision", "recall", "pixels"), *several]) if several else []),
            *self._probability_lines(content),
            *_shape_lines(content),
            *_against_lines(content),
            *(f"Note: {note}" for note in self.notes),
            f"In brackets: 95 % interval over {content['interval']['words']}. {content['interval']['warning']}".strip(),
        ]

    def _mean_line(self, overall: Figures) -> tuple[str, ...]:
        means = [overall[f"macro_{name}"] for name in HEADLINES]
        values = [shown(mean.plain) for mean in means]
        intervals = (values[0], between(means[0].ends), values[1], between(means[1].ends))
        return ("mean", *intervals, values[2], values[3], f"{self.counting.pixels(self.confusion):,}")

    def _probability_lines(self, content: Mapping[str, Any]) -> list[str]:
        overall = _overall(self.figures)
        ap = f"average precision {_text(overall['average_precision'])}; " if overall.get("average_precision") else ""
        ece = shown(content["overall"]["ece"])
        return [f"probabilities: {ap}calibration error {ece}, Brier score {_text(overall['brier'])}"]


CLASS_HEADER = ("class", "IoU", "", "F1", "", "precision", "recall", "pixels")


def _overall(figures: Mapping[str, Figures]) -> Figures:
    curve = {"average_precision": figures["probability"]["average_precision"]} if "probability" in figures else {}
    return figures["overall"] | curve | figures["brier"]


def _decision(card: ModelCard) -> dict[str, Any]:
    found = {name: getattr(card, name) for name in ("threshold", "temperature", "calibrated")}
    return found | ({"thresholds": list(card.cuts)} if card.legend.overlapping else {})


def _curve_columns(counts: Int64[ndarray, "2 1001"]) -> dict[str, list[float | None]]:
    precision, recall = precision_recall(counts)
    columns = {"threshold": THRESHOLDS, "precision": precision, "recall": recall}
    return {name: [_number(value) for value in column[::CURVE_STEP].tolist()] for name, column in columns.items()}


def _class_rows(
    figures: Figures, classes: Sequence[str], names: Sequence[str], pixels: ndarray | None = None
) -> list[dict[str, Any]]:
    rows = []
    for index, label in enumerate(classes):
        mine = {name: figures[key(index, name)] for name in names}
        counted = {} if pixels is None else {"pixels": int(pixels[index])}
        rows.append({"class": label} | plain(mine) | counted | {"intervals": plain_ends(mine)})
    return rows


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _class_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    ends = row["intervals"]
    intervals = (shown(row["iou"]), between(ends["iou"]), shown(row["f1"]), between(ends["f1"]))
    return (row["class"], *intervals, shown(row["precision"]), shown(row["recall"]), f"{row['pixels']:,}")


def _scene_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["scene"], *(shown(row[score]) for score in HEADLINES), f"{row['pixels']:,}")


def _shape_lines(content: Mapping[str, Any]) -> list[str]:
    lines = []
    if boundary := content.get("boundary"):
        rows = [
            (row["class"], shown(row["f1"]), between(row["intervals"]["f1"]), *(shown(row[n]) for n in WAYS))
            for row in boundary["per_class"]
        ]
        lines += table([(f"boundaries within {boundary['tolerance_m']:g} m", "F1", "", *WAYS), *rows])
    if objects := content.get("objects"):
        f1 = Figure(*(_or_nan(value) for value in (objects["f1"], *(objects["intervals"]["f1"] or (None, None)))))
        lines.append(
            f"objects of {objects['class']}: F1 {_text(f1)}; {objects['matched']:,} matched at IoU over 0.5, of "
            f"{objects['mapped']:,} mapped (precision {shown(objects['precision'])}) and {objects['labelled']:,} "
            f"labelled (recall {shown(objects['recall'])})"
        )
    return lines


WAYS = ("precision", "recall")


def _against_lines(content: Mapping[str, Any]) -> list[str]:
    if "against" not in content:
        return []
    against = content["against"]
    rows = [
        (name, shown(against["overall"][score], "+.3f"), between(against["overall_intervals"][score], "+.3f"))
        for name, score in (("accuracy", "accuracy"), ("IoU", "iou"), ("F1", "f1"))
    ]
    return table([(f"better than {against['run']} by", "", ""), *rows])


def _text(figure: Figure) -> str:
    return " ".join(filter(None, figure.words()))


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


DEFAULT = EvaluateConfig()


def evaluate(
    run: Path,
    split: Split = "test",
    tiles: Path | None = None,
    out: Path | None = None,
    against: Path | None = None,
    config: EvaluateConfig = DEFAULT,
) -> Evaluation:
    """Score a run on one split, with 95 % intervals, and write the scores as JSON to `out`.

    `tiles` is another tile set with the same classes and bands; by default the run's own. `out` is by default
    scores-SPLIT.json in the run, or scores-FOLDER-SPLIT.json for the tile set FOLDER; these are replaced. With
    `against`, another run is scored on the same tiles, and the differences have intervals of their own. Takes about as
    long as predicting the tiles, for each run. Memory: a few tiles, 16 kB a block, and the canvases of `shapes` where
    boundaries or objects are asked for.

    Raises:
        InputError: when the run or the tile set cannot be used, do not fit each other, or the split has no tile.
        SettingError: for a class of objects that is not there.
        OutputError: when `out` exists or cannot be written.
    """
    if out is not None:
        refuse_existing(out)
    predictor = Predictor.load(run)
    tile_set = TileSet.open(tiles or tiles_of(run))
    rival = None if against is None else _rival(against, predictor.card, tile_set)
    result = scored(run, predictor, tile_set, split, config)
    if rival is not None and against is not None:
        theirs = scored(against, rival, tile_set, split, config)
        result = replace(result, rival=theirs, notes=(*result.notes, *_strange(against, tile_set)))
    other = "" if tiles is None else f"{tile_set.folder.resolve().name}-"
    path = out or run / f"scores-{other}{split}.json"
    write_json(path, result.content(path.stem.removeprefix("scores-")))
    return result


def scored(run: Path, predictor: Predictor, tile_set: TileSet, split: Split, config: EvaluateConfig) -> Evaluation:
    """Return the scores of an opened run on one split of an opened tile set. Nothing is written.

    Raises:
        InputError: when they do not fit each other, or the split has no tile.
        SettingError: for a class of objects that is not there.
    """
    card = predictor.card
    check_fit(card, tile_set)
    tiles = tile_set.split(split)
    if not tiles:
        raise InputError(f"{tile_set.folder} has no {split} tiles. Choose another --split.")
    names = card.legend.names
    objects = class_index(config.objects, names)
    wanted = Wanted(len(names), config.boundary_m, objects, card.legend.overlapping)
    units = units_of(tile_set, split)
    shapes = ShapeCounter(wanted, tile_set, tiles, units)
    counts = count(predictor, tile_set, tile_set.samples(split, once=True, means=card.mean), units, shapes)
    chosen = split == "val" and card.calibrated
    notes = ("threshold and temperature were chosen on validation tiles: these scores flatter.",) if chosen else ()
    return Evaluation(run, split, tile_set.folder, card, len(tiles), counts, asdict(config), notes=notes)


def _rival(run: Path, card: ModelCard, tile_set: TileSet) -> Predictor:
    predictor = Predictor.load(run)
    check_fit(predictor.card, tile_set)
    if predictor.card.legend.names != card.legend.names:
        raise SettingError(f"--against {run} has the classes {predictor.card.legend.names}; give a run with the same.")
    return predictor


def _strange(run: Path, tile_set: TileSet) -> tuple[str, ...]:
    """Return a note when a run was trained on other tiles than it is scored on, for it may have seen these."""
    try:
        own = TileSet.open(tiles_of(run)).meta.fingerprint
    except InputError:
        own = ""
    if own == tile_set.meta.fingerprint:
        return ()
    return (f"{run} was trained on another tile set: make sure that it did not train on the ground scored here.",)
