"""`geograft evaluate`: score a run on one split, with confidence intervals. Every pixel of the split counts once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from geograft.card import ModelCard, read_card
from geograft.commands.audit import audit_tile_set
from geograft.config import EvaluateConfig
from geograft.dataset.joined import check_fit, open_run_tiles
from geograft.dataset.places import known_scenes_in_place, place_names
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import SettingError
from geograft.files import StrPath, optional_path, refuse_existing, write_json
from geograft.locks import lock_output
from geograft.mapping.models import RunModel
from geograft.mapping.plan import resolution_note, tile_set_band_notes
from geograft.mapping.score_units import ScoreTask
from geograft.mapping.scoring import (
    Confusion,
    Metric,
    Metrics,
    ScoresByPlace,
    SplitCounts,
    class_key,
    estimators,
    format_interval,
    format_value,
    headline_scores,
    json_intervals,
    json_values,
    read_scores_in_place,
    score_places,
)
from geograft.metrics.calibration import (
    THRESHOLDS,
    expected_calibration_error,
    precision_recall_curve,
    reliability_diagram,
)
from geograft.metrics.confusion import HEADLINE_SCORES, ConfusionScheme
from geograft.metrics.intervals import DRAWS, LEVEL, few_units_warning
from geograft.runs import is_bundle, to_runs, unchanged_bundle_error
from geograft.text import format_table, html_table

CURVE_STEP = 10
"""The precision-recall curve in the file has every tenth threshold; average precision uses all of them."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one run on one split. Confusion matrices have labels in rows and predictions in columns.

    Overlapping classes have a binary confusion matrix (2, 2) each.
    """

    run: Path
    split: Split
    tiles: Path
    card: ModelCard
    tiles_scored: int
    counts: SplitCounts
    settings: Mapping[str, Any]
    """The fields of EvaluateConfig: boundary tolerance and class of objects."""
    baseline: "Evaluation | None" = None
    """Evaluation of another run on the same tiles, to compare with."""
    notes: tuple[str, ...] = ()
    places: ScoresByPlace | None = None
    """The scores in place and elsewhere; None if the tile set of the run is not there."""
    prediction: Mapping[str, Any] = field(default_factory=dict)
    """What the map depends on: digests of weights, and settings. Scores with equal ones can stand side by side."""
    verdict: str = ""
    """Whether the split leaks, by `geograft audit` without autocorrelation: OK, CAUTION or LEAK; empty on another tile
    set than that of training."""

    @property
    def scheme(self) -> ConfusionScheme:
        """Layout of the confusion counts."""
        return self.counts.scheme

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.card.legend.names

    @property
    def confusion(self) -> Confusion:
        """Confusion counts over all scenes."""
        return self.counts.total

    @property
    def by_scene(self) -> dict[str, Confusion]:
        """Confusion counts by scene."""
        return self.counts.units.sum_by_scene(self.counts.confusion)

    @cached_property
    def metrics(self) -> dict[str, Metrics]:
        """All metrics with their confidence intervals, by group; see `geograft.mapping.scoring.estimators`."""
        return {name: estimator.estimate() for name, estimator in estimators(self.counts).items()}

    @property
    def headline(self) -> Metrics:
        """The metrics of the positive class if binary, else the means over classes, by name."""
        return _overall(self.metrics)

    @cached_property
    def differences(self) -> dict[str, Metrics]:
        """Metrics of this run minus those of the baseline, with paired intervals; empty without a baseline."""
        if self.baseline is None:
            return {}
        theirs = estimators(self.baseline.counts)
        return {name: estimator.difference(theirs[name]) for name, estimator in estimators(self.counts).items()}

    @property
    def reliability(self) -> Float64[ndarray, "15 3"]:
        """Counts of the reliability diagram over all cells."""
        total: Float64[ndarray, "15 3"] = self.counts.reliability.sum(axis=0)
        return total

    def content(self, name: str) -> dict[str, Any]:
        """Return the content of the scores file, with None for undefined scores."""
        overall = self.headline
        ece = {"ece": _number(float(expected_calibration_error(self.reliability)))}
        return {
            "name": name,
            "split": self.split,
            "tiles": str(self.tiles),
            "tiles_scored": self.tiles_scored,
            **({"audit": self.verdict} if self.verdict else {}),
            "classes": list(self.classes),
            "interval": self._interval(),
            "decision": _decision(self.card),
            "prediction": dict(self.prediction),
            "confusion": self.confusion.tolist(),
            "overall": json_values(overall) | ece,
            "overall_intervals": json_intervals(overall),
            "per_class": self._per_class(),
            "per_scene": [
                {"scene": scene} | headline_scores(counts, self.scheme) | {"pixels": self.scheme.pixels(counts)}
                for scene, counts in self.by_scene.items()
            ],
            "per_unit": [
                {"unit": cell.unit, "scene": cell.scene, **asdict(cell.window), "confusion": counts.tolist()}
                for cell, counts in zip(self.counts.units.cells, self.counts.confusion, strict=True)
            ],
            **({"places": self.places.content()} if self.places else {}),
            "reliability": reliability_diagram(self.reliability),
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
            "description": units.description,
            "warning": " ".join(filter(None, (few_units_warning(len(units.names)), units.caveat))),
            "method": f"bootstrap of units, {DRAWS:,} draws, expanded percentiles (Hesterberg 2015)",
        }

    def _per_class(self) -> list[dict[str, Any]]:
        if not self.scheme.overlapping:
            return _class_rows(self.metrics["classes"], self.classes, HEADLINE_SCORES, self._support())
        metrics = self.metrics["classes"] | self.metrics["probability"]
        rows = _class_rows(metrics, self.classes, (*HEADLINE_SCORES, "average_precision"), self._support())
        counts = self.counts.probability.sum(axis=0)
        return [row | {"precision_recall": _curve_columns(own)} for row, own in zip(rows, counts, strict=True)]

    def _support(self) -> ndarray:
        return self.scheme.support(self.confusion)

    def _curve(self) -> dict[str, Any]:
        if not self.scheme.binary:
            return {}
        return {"precision_recall": _curve_columns(self.counts.probability.sum(axis=0))}

    def _shapes(self) -> dict[str, Any]:
        content: dict[str, Any] = {}
        if "boundary" in self.metrics:
            metrics = self.metrics["boundary"]
            content["boundary"] = {
                "tolerance_m": self.settings["boundary_m"],
                "per_class": _class_rows(metrics, self.classes, ("f1", "precision", "recall")),
                "macro_f1": metrics["macro_f1"].json_value,
                "macro_f1_interval": metrics["macro_f1"].interval,
            }
        if self.counts.shapes is not None and self.counts.shapes.objects is not None:
            metrics = self.metrics["objects"]
            matched, mapped, labelled = self.counts.shapes.objects.sum(axis=0).tolist()
            counts = {"matched": matched, "mapped": mapped, "labelled": labelled}
            scores = json_values(metrics) | {"intervals": json_intervals(metrics)}
            content["objects"] = {"class": self.settings["objects"], "iou": 0.5} | counts | scores
        return content

    def _against(self) -> dict[str, Any]:
        if self.baseline is None:
            return {}
        overall = _overall(self.differences)
        return {
            "against": {
                "run": str(self.baseline.run),
                "overall": json_values(overall),
                "overall_intervals": json_intervals(overall),
                "per_class": _class_rows(self.differences["classes"], self.classes, HEADLINE_SCORES),
            }
        }

    def lines(self) -> list[str]:
        """Return the output of the command line: scores per class, per scene if there are several, and the rest."""
        content = self.content(self.split)
        overall = _overall(self.metrics)
        scenes = [_scene_row(row) for row in content["per_scene"]] if len(content["per_scene"]) > 1 else []
        interval = content["interval"]
        verdict = f", split {self.verdict}" if self.verdict else ""
        return [
            f"{self.run} on {self.tiles_scored} {self.split} tiles of {self.tiles}{verdict}: "
            f"accuracy {_text(overall['accuracy'])}, kappa {_text(overall['kappa'])}",
            *format_table(
                [CLASS_HEADER, *(_class_line(row) for row in content["per_class"]), self._mean_line(overall)]
            ),
            *(format_table([("scene", "IoU", "F1", "precision", "recall", "pixels"), *scenes]) if scenes else []),
            *(self.places.lines() if self.places else []),
            *self._probability_lines(content),
            *_shape_lines(content),
            *_against_lines(content),
            *(f"Note: {note}" for note in self.notes),
            f"In brackets: 95 % confidence interval over {interval['description']}. {interval['warning']}".strip(),
        ]

    def plot(self, score: str = "iou", ax: Any = None) -> Any:
        """Draw a score of each class (iou, f1, precision or recall) with its interval; return the matplotlib Axes."""
        from geograft.figures.style import draw_scores  # noqa: PLC0415  (imports matplotlib)

        found = {name: self.metrics["classes"][class_key(i, score)] for i, name in enumerate(self.classes)}
        scores = {name: (_or_nan(metric.json_value), metric.interval) for name, metric in found.items()}
        return draw_scores(f"{score}, {self.split} tiles", scores, self.card.legend.colours, ax)

    def _repr_html_(self) -> str:
        content = self.content(self.split)
        rows = [CLASS_HEADER, *(_class_line(row) for row in content["per_class"]), self._mean_line(self.headline)]
        title = f"{self.run} on {self.tiles_scored} {self.split} tiles"
        return html_table(
            title, rows, (*self.notes, f"95 % confidence interval over {content['interval']['description']}")
        )

    def _mean_line(self, overall: Metrics) -> tuple[str, ...]:
        means = [overall[f"macro_{name}"] for name in HEADLINE_SCORES]
        values = [format_value(mean.json_value) for mean in means]
        intervals = (values[0], format_interval(means[0].interval), values[1], format_interval(means[1].interval))
        return ("mean", *intervals, values[2], values[3], f"{self.scheme.pixels(self.confusion):,}")

    def _probability_lines(self, content: Mapping[str, Any]) -> list[str]:
        overall = _overall(self.metrics)
        ap = f"average precision {_text(overall['average_precision'])}; " if overall.get("average_precision") else ""
        ece = format_value(content["overall"]["ece"])
        return [f"probabilities: {ap}calibration error {ece}, Brier score {_text(overall['brier'])}"]


CLASS_HEADER = ("class", "IoU", "", "F1", "", "precision", "recall", "pixels")
PRECISION_RECALL = ("precision", "recall")


def _overall(metrics: Mapping[str, Metrics]) -> Metrics:
    curve = {"average_precision": metrics["probability"]["average_precision"]} if "probability" in metrics else {}
    return metrics["overall"] | curve | metrics["brier"]


def _decision(card: ModelCard) -> dict[str, Any]:
    decision = {name: getattr(card, name) for name in ("threshold", "temperature", "calibrated")}
    return decision | ({"thresholds": list(card.output_thresholds)} if card.legend.overlapping else {})


def _curve_columns(counts: Int64[ndarray, "2 1001"]) -> dict[str, list[float | None]]:
    precision, recall = precision_recall_curve(counts)
    columns = {"threshold": THRESHOLDS, "precision": precision, "recall": recall}
    return {name: [_number(value) for value in column[::CURVE_STEP].tolist()] for name, column in columns.items()}


def _class_rows(
    metrics: Metrics, classes: Sequence[str], names: Sequence[str], pixels: ndarray | None = None
) -> list[dict[str, Any]]:
    rows = []
    for index, label in enumerate(classes):
        own = {name: metrics[class_key(index, name)] for name in names}
        support = {} if pixels is None else {"pixels": int(pixels[index])}
        rows.append({"class": label} | json_values(own) | support | {"intervals": json_intervals(own)})
    return rows


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _class_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    with_intervals = (
        text for name in ("iou", "f1") for text in (format_value(row[name]), format_interval(row["intervals"][name]))
    )
    others = (format_value(row[name]) for name in PRECISION_RECALL)
    return (row["class"], *with_intervals, *others, f"{row['pixels']:,}")


def _scene_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["scene"], *(format_value(row[score]) for score in HEADLINE_SCORES), f"{row['pixels']:,}")


def _shape_lines(content: Mapping[str, Any]) -> list[str]:
    lines = []
    if boundary := content.get("boundary"):
        rows = [
            (
                row["class"],
                format_value(row["f1"]),
                format_interval(row["intervals"]["f1"]),
                *(format_value(row[name]) for name in PRECISION_RECALL),
            )
            for row in boundary["per_class"]
        ]
        title = f"boundaries within {boundary['tolerance_m']:g} m"
        lines += format_table([(title, "F1", "", *PRECISION_RECALL), *rows])
    if objects := content.get("objects"):
        f1 = Metric(*(_or_nan(value) for value in (objects["f1"], *(objects["intervals"]["f1"] or (None, None)))))
        precision, recall = (format_value(objects[name]) for name in PRECISION_RECALL)
        lines.append(
            f"objects of {objects['class']}: F1 {_text(f1)}; {objects['matched']:,} matched at IoU over 0.5, of "
            f"{objects['mapped']:,} mapped (precision {precision}) and {objects['labelled']:,} labelled "
            f"(recall {recall})"
        )
    return lines


def _against_lines(content: Mapping[str, Any]) -> list[str]:
    if "against" not in content:
        return []
    against = content["against"]
    rows = [
        (
            name,
            format_value(against["overall"][score], "+.3f"),
            format_interval(against["overall_intervals"][score], "+.3f"),
        )
        for name, score in (("accuracy", "accuracy"), ("IoU", "iou"), ("F1", "f1"))
    ]
    return format_table([(f"difference to {against['run']}", "", ""), *rows])


def _text(metric: Metric) -> str:
    return " ".join(filter(None, metric.format()))


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


DEFAULT = EvaluateConfig()


def evaluate(
    run: StrPath | Sequence[StrPath],
    split: Split = "test",
    tiles: StrPath | None = None,
    out: StrPath | None = None,
    against: StrPath | None = None,
    config: EvaluateConfig = DEFAULT,
) -> Evaluation:
    """Score a run, or the mean of several, on one split, with 95 % confidence intervals; write the scores to `out`.

    Tiles are predicted as `predict` maps their scenes: with the same windows, blending, backend, precision and TTA. On
    the same settings, the confusion matrix is that of the map, pixel for pixel.

    `tiles` is another tile set with the same classes and bands (default: the run's own). `out` defaults to
    scores-SPLIT.json in the run folder, or scores-FOLDER-SPLIT.json for a tile set FOLDER; these files are overwritten.
    With several runs, the first run's folder gets the file. A bundle is not changed, so it needs `out`. With
    `against`, another run is scored on the same tiles, and differences get paired intervals. Takes about as long as
    mapping the tiles and half a window around them, for each run. Memory: that of `predict`, 16 kB per block, and the
    canvases of `geograft.mapping.shapes` for boundaries and objects.

    Raises:
        InputError: when the run or the tile set is invalid, they do not match, or the split has no tiles.
        SettingError: when the class of objects does not exist, or `against` has other classes.
        OutputError: when `out` exists or cannot be written, and for a bundle without `out`.
    """
    tiles, out, against = optional_path(tiles), optional_path(out), optional_path(against)
    runs = to_runs(run)
    other = "" if tiles is None else f"{tiles.resolve().name}-"
    if out is None and is_bundle(runs[0]):
        raise unchanged_bundle_error(runs[0], "scores", "--out SCORES.json")
    path = out or runs[0] / f"scores-{other}{split}.json"
    with lock_output(path, enabled=out is not None or runs[0].is_dir()):
        if out is not None:
            refuse_existing(out)
        result = _score_with_baseline(runs, split, tiles, against, config)
        write_json(path, result.content(path.stem.removeprefix("scores-")))
    return result


def _score_with_baseline(
    runs: tuple[Path, ...], split: Split, tiles: Path | None, against: Path | None, config: EvaluateConfig
) -> Evaluation:
    model = RunModel.open(runs, config)
    tile_set = open_run_tiles(runs[0], tiles)
    baseline = None if against is None else _open_baseline(against, model.card, tile_set, config)
    result = score_split(model, tile_set, split, config)
    if baseline is not None and against is not None:
        theirs = score_split(baseline, tile_set, split, config)
        result = replace(result, baseline=theirs, notes=(*result.notes, *_leakage_notes(against, tile_set)))
    return with_context(result, tile_set)


def with_context(result: Evaluation, tile_set: TileSet) -> Evaluation:
    """Return scores with those in place of the run's own test tiles beside them, and whether the split leaks."""
    if result.places and "in place" not in result.places.parts:
        beside = read_scores_in_place(result.run, result.prediction)
        result = replace(result, places=replace(result.places, beside=beside))
    if tile_set.meta.fingerprint == result.card.data_fingerprint:
        result = replace(result, verdict=audit_tile_set(tile_set).verdict)
    return result


def score_split(model: RunModel, tile_set: TileSet, split: Split, config: EvaluateConfig) -> Evaluation:
    """Return the scores of a run on one split of an open tile set, without writing them.

    Raises:
        InputError: when run and tile set do not match, or the split has no tiles.
        SettingError: when the class of objects does not exist.
    """
    task = ScoreTask.plan(model, tile_set, split, config)
    counts = task.count()
    return scores_of(task, counts, model.notes)


def scores_of(task: ScoreTask, counts: SplitCounts, model_notes: Sequence[str]) -> Evaluation:
    """Return the scores that follow from the counts of all cells; `model_notes` are those of the networks."""
    model, tile_set, config, card = task.model, task.tile_set, task.config, task.model.card
    biased = task.split == "val" and card.calibrated
    notes = ("threshold and temperature were fitted on validation tiles: scores are optimistic.",) if biased else ()
    resolution = resolution_note(tile_set.title, tile_set.meta.resolution_m, card)
    if task.shapes.cleaning:
        notes = (*notes, f"objects of {config.objects} are cleaned as by `geograft polygons`, with the run's settings.")
    notes = (*model_notes, *notes, *tile_set_band_notes(tile_set, card), *([resolution] if resolution else []))
    in_place = known_scenes_in_place(model.runs, tile_set, task.split)
    places = None if in_place is None else score_places(counts, place_names(tile_set), in_place)
    return Evaluation(
        model.runs[0],
        task.split,
        tile_set.folder,
        card,
        len(task.tiles),
        counts,
        asdict(config),
        notes=notes,
        places=places,
        prediction=_prediction(model, config),
    )


def _prediction(model: RunModel, config: EvaluateConfig) -> dict[str, Any]:
    """Return what the map of a model depends on."""
    settings = {name: getattr(config, name) for name in ("window_px", "overlap", "tta", "place")}
    return {"weights": [read_card(run).weights_digest for run in model.runs]} | settings | _decision(model.card)


def _open_baseline(run: Path, card: ModelCard, tile_set: TileSet, config: EvaluateConfig) -> RunModel:
    baseline = RunModel.open(run, config)
    check_fit(baseline.card, tile_set)
    if baseline.card.legend.names != card.legend.names:
        raise SettingError(
            f"--against {run} has classes {baseline.card.legend.names}, not {card.legend.names}. "
            "Give a run with the same classes."
        )
    return baseline


def _leakage_notes(run: Path, tile_set: TileSet) -> tuple[str, ...]:
    """Return a note if a run was trained on another tile set, because its training data may overlap this one."""
    if read_card(run).data_fingerprint == tile_set.meta.fingerprint:
        return ()
    return (f"{run} was trained on another tile set: make sure that its training area does not overlap these tiles.",)
