"""`geograft calibrate`: fit the threshold and the temperature of a run on its validation tiles."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxtyping import Int64
from numpy import ndarray

from geograft.bundle import SUFFIX, copy_bundle
from geograft.card import CARD, ModelCard
from geograft.config import InferenceConfig
from geograft.dataset.joined import check_fit, open_run_tiles
from geograft.dataset.tileset import SPLITS, Split, TileSet
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import StrPath, atomic_update, optional_path, refuse_existing, to_json, write_json
from geograft.locks import lock_output
from geograft.mapping.canvases import HeldOutTiles, write_canvases
from geograft.mapping.logit_sample import LogitSample
from geograft.mapping.models import RunModel
from geograft.mapping.places import check_name, refuse_place
from geograft.mapping.run_calibration import UNCALIBRATED, PlaceCalibration, fit_place, fit_run
from geograft.mapping.shapes import object_class_index
from geograft.metrics.calibration import (
    STEPS,
    brier_sum,
    expected_calibration_error,
    log_loss,
    reliability_diagram,
)
from geograft.metrics.cleaning import CleaningChoice, choose_cleaning
from geograft.runs import is_bundle, local_run, unchanged_bundle_error
from geograft.text import format_table

CALIBRATION_FILE = "calibration.json"
DEFAULT = InferenceConfig()


@dataclass(frozen=True)
class CalibrationScores:
    """Temperature, thresholds and their scores on the validation labels."""

    temperature: float
    threshold: float
    log_loss: float
    ece: float
    brier: float
    f1: float | None
    """F1 of the positive class, or the mean over overlapping classes; None for more than two exclusive classes."""
    thresholds: tuple[float, ...] = ()
    """Thresholds of overlapping classes, instead of `threshold`."""


@dataclass(frozen=True)
class Calibration:
    """The fitted model card, with scores on the validation tiles before and after."""

    run: Path
    card: ModelCard
    pixels: int
    before: CalibrationScores
    after: CalibrationScores
    reliability: tuple[list[dict[str, float | None]], list[dict[str, float | None]]]
    """Reliability diagrams before and after."""
    cleaning: CleaningChoice | None = None
    """The cleaning of objects; None if it was not asked for."""
    bundle: Path | None = None
    """The bundle with the new card, if the run is a bundle."""

    def content(self) -> dict[str, Any]:
        """Return the content of calibration.json."""
        return {
            "chosen_on": self.card.calibrated,
            "pixels": self.pixels,
            "before": _to_json(self.before),
            "after": _to_json(self.after),
            "reliability_before": self.reliability[0],
            "reliability_after": self.reliability[1],
            **({"cleaning": asdict(self.cleaning)} if self.cleaning else {}),
        }

    def lines(self) -> list[str]:
        """Return the output of the command line."""
        before_after = self.before, self.after
        rows: list[tuple[str, ...]] = [("", "uncalibrated", "calibrated")]
        rows.append(("temperature", *(f"{scores.temperature:.3f}" for scores in before_after)))
        rows += [(name, *(f"{value:.3f}" for value in values)) for name, values in self._thresholds().items()]
        rows += [(name, *(f"{getattr(scores, field):.3f}" for scores in before_after)) for name, field in SCORE_ROWS]
        if self.before.f1 is not None and self.after.f1 is not None:
            f1s = (f"{self.before.f1:.3f}", f"{self.after.f1:.3f}")
            rows.append(("mean F1" if self.after.thresholds else "F1", *f1s))
        return [
            *format_table(rows),
            *([_describe_cleaning(self.cleaning)] if self.cleaning else []),
            f"Fitted on {self.card.calibrated}, where these scores are optimistic: evaluate on test.",
            f"card: {self.bundle or self.run / CARD}",
        ]

    def _thresholds(self) -> dict[str, tuple[float, float]]:
        """Return the thresholds before and after, by row name."""
        if not self.after.thresholds:
            return {"threshold": (self.before.threshold, self.after.threshold)}
        names = (f"threshold of {name}" for name in self.card.legend.names)
        return dict(zip(names, zip(self.before.thresholds, self.after.thresholds, strict=True), strict=True))


SCORE_ROWS = (
    ("log loss", "log_loss"),
    ("calibration error", "ece"),
    ("Brier score", "brier"),
)


def calibrate(
    run: StrPath,
    tiles: StrPath | None = None,
    config: InferenceConfig = DEFAULT,
    objects: str = "",
    out: StrPath | None = None,
) -> Calibration:
    """Fit threshold and temperature on the validation tiles of a run, write them into its card and return them.

    Tiles are predicted as `predict` maps their scenes, with the run's windows. Where windows overlap, the temperature
    divides the logit of their blended probability; in maps it divides the logits of each window before they are
    blended, which differs little. The temperature minimises the log loss on at most 500,000 labelled pixels. The
    threshold of a binary model maximises F1, and with it IoU, over all labelled pixels; where that is not better than
    0.5 in at least 80 % of the bootstrap samples of the tiles, it is 0.5. Overlapping classes have a threshold each and
    a common temperature. Test tiles are not used. The result is deterministic, and that of `train`, which does the same
    at its end. calibration.json in the run folder holds the scores of the uncalibrated run and of this one. `tiles` is
    the current path of the run's tile set, if it was moved. Takes as long as mapping the validation tiles. Memory: that
    of `predict`, and the sample.

    With `objects`, the name of a class, also the minimum area, the filling of holes and the closing of gaps that
    maximise the F1 of its objects are chosen (`geograft.metrics.cleaning.choose_cleaning`), with a second map of the
    validation tiles. `geograft polygons` applies them to maps of the run, and `geograft evaluate --objects` to its
    object scores. Without it, those of the card stay.

    A bundle is not changed: the calibrated one is written to `out`, and needs `tiles`.

    Raises:
        InputError: when the run is invalid, or the tile set is not that of the run or has no labelled validation tiles.
        SettingError: when the run has no class `objects`, or more than two classes.
        OutputError: when the card cannot be written, which is then unchanged; for a bundle without `out`, and for a
            folder with it.
    """
    run, tiles, out = Path(run), optional_path(tiles), optional_path(out)
    if is_bundle(run):
        return _calibrate_bundle(run, tiles, config, objects, out)
    if out is not None:
        raise OutputError(f"--out {out} is for bundles; the card of {run} is changed in its folder. Omit --out.")
    # The lock is that of a training, which writes the same card.
    with lock_output(run):
        result = _calibrate(run, tiles, config, objects)
        with atomic_update(run) as part:
            write_json(part / CALIBRATION_FILE, result.content())
            result.card.write(part)
    return result


def _calibrate_bundle(
    run: Path, tiles: Path | None, config: InferenceConfig, objects: str, out: Path | None
) -> Calibration:
    if out is None:
        raise unchanged_bundle_error(run, "a calibration", f"--out NAME{SUFFIX}")
    refuse_existing(out)
    with lock_output(out):
        result = _calibrate(run, tiles, config, objects)
        changes = {CARD: result.card.content, CALIBRATION_FILE: result.content()}
        copy_bundle(local_run(run), out, {name: to_json(content).encode() for name, content in changes.items()})
    return replace(result, bundle=out)


def calibrate_place(
    run: StrPath,
    tiles: StrPath,
    name: str = "",
    splits: Sequence[Split] = SPLITS,
    config: InferenceConfig = DEFAULT,
) -> PlaceCalibration:
    """Fit thresholds and temperature of a run to labelled tiles of another place, written to RUN/places/NAME.json.

    The run itself does not change: `geograft predict --place NAME` uses them. All tiles of `splits` are used, from one
    on. With fewer than 30 tiles, thresholds stay within 0.1 to 0.9 and the temperature within a factor of 2 of the
    run's. The run's threshold is kept unless the new one is better in at least 80 % of the bootstrap samples of the
    tiles.
    `name` is by default that of the tile set's folder.

    Raises:
        InputError: when the run is invalid, or the tile set has other classes or bands, or no labelled tiles in
            `splits`.
        SettingError: for a name that cannot be that of a file.
        OutputError: for a bundle, or when the file cannot be written.
    """
    run, tiles = Path(run), Path(tiles)
    name = name or tiles.resolve().name
    check_name(name)
    if is_bundle(run):
        raise unchanged_bundle_error(run, "a place", "the folder of the run")
    # The lock is that of a training, which replaces the weights.
    with lock_output(run):
        result = fit_place(run, TileSet.open(tiles), name, splits, config)
        result.place.write(run)
    return result


def _calibrate(run: Path, tiles: Path | None, config: InferenceConfig, objects: str) -> Calibration:
    refuse_place(config)
    model = RunModel.open(run, config, temperature=1.0)
    index = _object_class(model.card, objects)
    tile_set = open_run_tiles(run, tiles)
    _check_tile_set(run, model.card, tile_set)
    card, fit = fit_run(model, tile_set)
    sample, raw = fit.sample, tuple(choice.threshold for choice in fit.choices)
    flat = (UNCALIBRATED,) * len(raw)
    cleaning = None if index is None else _choose_cleaning(run, card, config, tile_set, index)
    card = replace(card, cleaning=cleaning.cleaning) if cleaning else card
    return Calibration(
        run,
        card,
        len(sample.label),
        _scores(sample, model.card, 1.0, flat, flat),
        _scores(sample, card, fit.temperature, fit.thresholds, raw),
        (reliability_diagram(sample.reliability(1.0)), reliability_diagram(sample.reliability(fit.temperature))),
        cleaning,
    )


def _object_class(card: ModelCard, objects: str) -> int | None:
    """Return the index of the class of objects; None for an empty name."""
    index = object_class_index(objects, card.legend.names)
    if index is not None and not card.legend.binary:
        raise SettingError(f"--objects {objects}: objects are cleaned in maps of two classes only. Omit it.")
    return index


def _choose_cleaning(
    run: Path, card: ModelCard, config: InferenceConfig, tile_set: TileSet, index: int
) -> CleaningChoice:
    """Return the best cleaning of a class on the validation tiles, mapped with the calibrated card."""
    model = RunModel((run,), card, config, {"cards": (card,)})
    with TemporaryDirectory() as folder:
        canvases = write_canvases(HeldOutTiles(model, tile_set, "val"), Path(folder) / "val")
        pairs = [canvas.read()[:2] for canvas in canvases]
    pixel_m2 = (tile_set.meta.resolution_m or 1.0) ** 2
    return choose_cleaning(pairs, index, card.legend.names[index], pixel_m2)


def _describe_cleaning(choice: CleaningChoice) -> str:
    """Return the cleaning and the F1 of objects before and after as text."""
    cleaning = choice.cleaning
    return (
        f"objects of {cleaning.objects}: F1 {choice.f1_before:.3f} before, {choice.f1:.3f} after: minimum area "
        f"{cleaning.min_area_m2:.3g} m2, holes up to {cleaning.fill_holes_m2:.3g} m2 filled, gaps up to "
        f"{2 * cleaning.close_px} px closed"
    )


def _threshold_fields(card: ModelCard, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """Return the threshold fields of CalibrationScores."""
    if card.legend.overlapping:
        return {"threshold": UNCALIBRATED, "thresholds": thresholds}
    return {"threshold": thresholds[0] if thresholds else UNCALIBRATED}


def _scores(
    sample: LogitSample, card: ModelCard, temperature: float, thresholds: tuple[float, ...], raw: tuple[float, ...]
) -> CalibrationScores:
    """Return the scores at a temperature; `raw` are the equivalent thresholds at temperature 1."""
    f1s = [_f1(counts, threshold) for counts, threshold in zip(sample.counts, raw, strict=True)]
    defined = [f1 for f1 in f1s if f1 is not None]
    return CalibrationScores(
        temperature=temperature,
        log_loss=log_loss(sample.logits, sample.label, temperature),
        ece=float(expected_calibration_error(sample.reliability(temperature))),
        brier=brier_sum(sample.probabilities(temperature), sample.label) / len(sample.label),
        f1=sum(defined) / len(defined) if defined else None,
        **_threshold_fields(card, thresholds),
    )


def _f1(counts: Int64[ndarray, "2 1001"], threshold: float) -> float | None:
    """Return the F1 of a class at a threshold; None if it occurs in neither labels nor predictions."""
    false_positive, true_positive = counts[:, round(threshold * STEPS) :].sum(axis=1)
    total = int(false_positive + true_positive + counts[1].sum())
    return 2 * int(true_positive) / total if total else None


def _to_json(scores: CalibrationScores) -> dict[str, Any]:
    return {name: value for name, value in asdict(scores).items() if name != "thresholds" or value}


def _check_tile_set(run: Path, card: ModelCard, tile_set: TileSet) -> None:
    check_fit(card, tile_set)
    if tile_set.meta.fingerprint != card.data_fingerprint:
        raise InputError(
            f"{tile_set.title} is not the tile set of {run}: its images, labels or tiles differ. "
            "Give the tile set that the run was trained on, so that no training or test tile is used."
        )
    if not tile_set.split("val"):
        raise InputError(f"{tile_set.title} has no val tiles. Run prepare again with --val above 0.")
