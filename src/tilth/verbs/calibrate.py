"""`tilth calibrate`: the threshold and the temperature of a run, chosen on its validation tiles and then fixed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from numpy import ndarray
from scipy.special import expit, logit, softmax

from tilth.calibration import (
    STEPS,
    best_temperature,
    best_threshold,
    calibration_error,
    log_loss,
    probability_counts,
    reliability_counts,
    reliability_rows,
    squared_error,
)
from tilth.card import ModelCard
from tilth.errors import InputError
from tilth.files import write_json
from tilth.geo.tilesets.tileset import TileSet
from tilth.learn.using.inference import Predictor
from tilth.legend import IGNORE
from tilth.progress import track
from tilth.table import table
from tilth.verbs.evaluate import check_fit, tiles_of
from tilth.verbs.shown import batched, read, stacked

RECORD = "calibration.json"
MOST_PIXELS = 500_000
"""Pixels that the temperature is fitted to; where there are more, a sample with a fixed seed."""
SEED = 0


@dataclass(frozen=True)
class Quality:
    """How well probabilities and the cut between classes fit the validation labels."""

    temperature: float
    threshold: float
    log_loss: float
    ece: float
    brier: float
    f1: float | None
    """Of class 1; None for more than two classes."""


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and what it gained on the validation tiles."""

    run: Path
    card: ModelCard
    pixels: int
    before: Quality
    after: Quality
    reliability: tuple[list[dict[str, float | None]], list[dict[str, float | None]]]
    """The diagram before and after."""

    def content(self) -> dict[str, Any]:
        """Return what calibration.json holds."""
        return {
            "chosen_on": self.card.calibrated,
            "pixels": self.pixels,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "reliability_before": self.reliability[0],
            "reliability_after": self.reliability[1],
        }

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        rows: list[tuple[str, ...]] = [("", "before", "after")]
        rows += [(name, *(f"{getattr(q, field):.3f}" for q in (self.before, self.after))) for name, field in ROWS]
        if self.before.f1 is not None and self.after.f1 is not None:
            rows.append(("F1", f"{self.before.f1:.3f}", f"{self.after.f1:.3f}"))
        return [
            *table(rows),
            f"Chosen on {self.card.calibrated}. These figures flatter: evaluate on test.",
            f"card: {self.run / 'card.json'}",
        ]


ROWS = (
    ("temperature", "temperature"),
    ("threshold", "threshold"),
    ("log loss", "log_loss"),
    ("calibration error", "ece"),
    ("Brier score", "brier"),
)


def calibrate(run: Path, tiles: Path | None = None) -> Calibration:
    """Choose threshold and temperature on the validation tiles of a run, write them into its card and return them.

    The temperature makes the log loss least, on 500,000 labelled pixels at most. With two classes the threshold has the
    best F1, and so the best IoU, over all labelled pixels. The test tiles have no part in it. Given again, it chooses
    the same. calibration.json in the run says what was gained. `tiles` is where the run's tile set lies now, if it was
    moved. Takes as long as predicting the validation tiles; memory: the sample, and a few tiles.

    Raises:
        InputError: when the run cannot be used, or the tile set is not the run's or has no labelled validation tile.
        OutputError: when the card cannot be written; it is then as it was.
    """
    predictor = Predictor.load(run)
    tile_set = TileSet.open(tiles or tiles_of(run))
    _check_own(run, predictor.card, tile_set)
    sample = _sampled(predictor, tile_set)
    temperature = best_temperature(sample.logits, sample.label)
    raw = best_threshold(sample.counts) if predictor.card.legend.binary else 0.5
    # Pixels on either side of a cut stay there when all logits are divided by one number.
    threshold = float(expit(logit(min(raw, 1 - 1e-6)) / temperature))
    count = len(tile_set.split("val"))
    chosen_on = f"{count:,} validation tiles of {tile_set.folder.resolve().name}"
    card = replace(predictor.card, temperature=temperature, threshold=threshold, calibrated=chosen_on)
    result = Calibration(
        run,
        card,
        len(sample.label),
        _quality(sample, 1.0, 0.5, 0.5),
        _quality(sample, temperature, threshold, raw),
        (reliability_rows(sample.reliability(1.0)), reliability_rows(sample.reliability(temperature))),
    )
    write_json(run / RECORD, result.content())
    card.write(run)
    return result


@dataclass(frozen=True)
class _Sample:
    logits: Float32[ndarray, "n o"]
    label: UInt8[ndarray, " n"]
    counts: Int64[ndarray, "2 1001"]
    """Of all labelled pixels, by the probability of class 1 at temperature 1; zeros for more than two classes."""

    def probabilities(self, temperature: float) -> Float32[ndarray, "k n"]:
        """Return the probabilities of the sample."""
        if self.logits.shape[1] == 1:
            first = expit(self.logits[:, 0] / np.float32(temperature))
            return np.stack([1 - first, first])
        return np.ascontiguousarray(softmax(self.logits / np.float32(temperature), axis=1).T)

    def reliability(self, temperature: float) -> Float64[ndarray, "15 3"]:
        """Return the counts of the reliability diagram."""
        p = self.probabilities(temperature)
        if len(p) == 2:
            return reliability_counts(p[1], self.label == 1)
        likeliest = p.argmax(axis=0)
        return reliability_counts(p.max(axis=0), likeliest == self.label)


def _sampled(predictor: Predictor, tile_set: TileSet) -> _Sample:
    """Return the sample of logits; every labelled pixel has the same chance to be in it."""
    labelled = sum(tile.valid * tile.window.height * tile.window.width for tile in tile_set.split("val"))
    share = min(1.0, MOST_PIXELS / max(labelled, 1))
    counts = np.zeros((2, STEPS + 1), np.int64)
    logits, labels = [], []
    for index, (own, label) in enumerate(_labelled(predictor, tile_set)):
        if predictor.card.legend.binary:
            counts += probability_counts(expit(own[:, 0]), label == 1)
        taken = np.random.default_rng((SEED, index)).random(len(label)) < share
        logits.append(own[taken])
        labels.append(label[taken])
    if not sum(map(len, labels)):
        raise InputError(f"{tile_set.folder} has no labelled validation pixel. Prepare it again with --val above 0.")
    return _Sample(np.concatenate(logits), np.concatenate(labels), counts)


def _labelled(
    predictor: Predictor, tile_set: TileSet
) -> Iterator[tuple[Float32[ndarray, "n o"], UInt8[ndarray, " n"]]]:
    """Yield logits and labels of the labelled pixels of each validation tile, each pixel of the ground once."""
    samples = tile_set.samples("val", once=True)
    batches = batched(range(len(samples)))
    for _, tiles in track(read(samples, batches), len(batches), "calibrating", "batches"):
        for logits, (_, label) in zip(predictor.logits(*stacked(tiles)), tiles, strict=True):
            known = label != IGNORE
            yield np.ascontiguousarray(logits[:, known].T), label[known]


def _quality(sample: _Sample, temperature: float, threshold: float, raw: float) -> Quality:
    """Return the quality of a choice; `raw` is the same threshold for probabilities at temperature 1."""
    probabilities = sample.probabilities(temperature)
    step = round(raw * STEPS)
    false_positive, true_positive = sample.counts[:, step:].sum(axis=1)
    both = int(false_positive + true_positive + sample.counts[1].sum())
    return Quality(
        temperature,
        threshold,
        log_loss(sample.logits, sample.label, temperature),
        float(calibration_error(sample.reliability(temperature))),
        squared_error(probabilities, sample.label) / len(sample.label),
        (2 * int(true_positive) / both if both else None) if len(probabilities) == 2 else None,
    )


def _check_own(run: Path, card: ModelCard, tile_set: TileSet) -> None:
    check_fit(card, tile_set)
    if tile_set.meta.fingerprint != card.data_fingerprint:
        raise InputError(
            f"{tile_set.folder} is not the tile set that trained {run}: its images, labels or tiles differ. "
            "Only validation tiles of a run's own tile set are sure to be neither trained nor test."
        )
    if not tile_set.split("val"):
        raise InputError(f"{tile_set.folder} has no val tiles. Prepare it again with --val above 0.")
