"""`geograft calibrate`: the threshold and the temperature of a run, chosen on its validation tiles and then fixed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from numpy import ndarray
from scipy.special import expit, logit, softmax

from geograft.card import ModelCard, tiles_of
from geograft.dataset.tileset import TileSet, check_fit
from geograft.errors import InputError
from geograft.files import write_json
from geograft.inference.predictor import Predictor
from geograft.legend import IGNORE
from geograft.mapping.scoring import batched, read, stacked
from geograft.metrics.calibration import (
    STEPS,
    best_temperature,
    best_threshold,
    calibration_error,
    log_loss,
    probability_counts,
    reliability_of,
    reliability_rows,
    squared_error,
)
from geograft.metrics.confusion import Counting
from geograft.progress import track
from geograft.text import table

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
    """Of class 1, or the mean over overlapping classes; None for more than two that exclude each other."""
    thresholds: tuple[float, ...] = ()
    """Of each overlapping class, in place of the one threshold."""


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
            "before": _plain(self.before),
            "after": _plain(self.after),
            "reliability_before": self.reliability[0],
            "reliability_after": self.reliability[1],
        }

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        both = self.before, self.after
        rows: list[tuple[str, ...]] = [("", "before", "after")]
        rows.append(("temperature", *(f"{q.temperature:.3f}" for q in both)))
        rows += [(name, *(f"{cut:.3f}" for cut in cuts)) for name, cuts in self._cuts().items()]
        rows += [(name, *(f"{getattr(q, field):.3f}" for q in both)) for name, field in ROWS]
        if self.before.f1 is not None and self.after.f1 is not None:
            f1s = (f"{self.before.f1:.3f}", f"{self.after.f1:.3f}")
            rows.append(("mean F1" if self.after.thresholds else "F1", *f1s))
        return [
            *table(rows),
            f"Chosen on {self.card.calibrated}. These figures flatter: evaluate on test.",
            f"card: {self.run / 'card.json'}",
        ]

    def _cuts(self) -> dict[str, tuple[float, float]]:
        """Return by name what a pixel must reach to be mapped as a class, before and after."""
        if not self.after.thresholds:
            return {"threshold": (self.before.threshold, self.after.threshold)}
        names = (f"threshold of {name}" for name in self.card.legend.names)
        return dict(zip(names, zip(self.before.thresholds, self.after.thresholds, strict=True), strict=True))


ROWS = (
    ("log loss", "log_loss"),
    ("calibration error", "ece"),
    ("Brier score", "brier"),
)


def calibrate(run: Path, tiles: Path | None = None) -> Calibration:
    """Choose threshold and temperature on the validation tiles of a run, write them into its card and return them.

    The temperature makes the log loss least, on 500,000 labelled pixels at most. With two classes the threshold has the
    best F1, and so the best IoU, over all labelled pixels; overlapping classes have one each, and one temperature
    together, for which each class's label of a pixel counts. The test tiles have no part in it. Given again, it chooses
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
    raw = tuple(best_threshold(counts) for counts in sample.counts)
    # Pixels on either side of a cut stay there when all logits are divided by one number.
    cuts = tuple(float(expit(logit(min(each, 1 - 1e-6)) / temperature)) for each in raw)
    count = len(tile_set.split("val"))
    chosen_on = f"{count:,} validation tiles of {tile_set.folder.resolve().name}"
    card = replace(predictor.card, temperature=temperature, calibrated=chosen_on, **_chosen(predictor.card, cuts))
    result = Calibration(
        run,
        card,
        len(sample.label),
        _quality(sample, predictor.card, 1.0, (0.5,) * len(raw), (0.5,) * len(raw)),
        _quality(sample, card, temperature, cuts, raw),
        (reliability_rows(sample.reliability(1.0)), reliability_rows(sample.reliability(temperature))),
    )
    write_json(run / RECORD, result.content())
    card.write(run)
    return result


@dataclass(frozen=True)
class _Sample:
    """Some of the labelled pixels; of overlapping classes each label is by itself, as of two classes."""

    logits: Float32[ndarray, "n o"]
    label: UInt8[ndarray, " n"]
    counts: Int64[ndarray, "cuts 2 1001"]
    """Of all labelled pixels, by the probability of class 1, or of each overlapping class, at temperature 1."""

    def probabilities(self, temperature: float) -> Float32[ndarray, "k n"]:
        """Return the probabilities of the sample."""
        if self.logits.shape[1] == 1:
            first = expit(self.logits[:, 0] / np.float32(temperature))
            return np.stack([1 - first, first])
        return np.ascontiguousarray(softmax(self.logits / np.float32(temperature), axis=1).T)

    def reliability(self, temperature: float) -> Float64[ndarray, "15 3"]:
        """Return the counts of the reliability diagram."""
        return reliability_of(self.probabilities(temperature), self.label)


def _sampled(predictor: Predictor, tile_set: TileSet) -> _Sample:
    """Return the sample of logits; every labelled pixel has the same chance to be in it."""
    legend = predictor.card.legend
    labelled = sum(tile.valid * tile.window.height * tile.window.width for tile in tile_set.split("val"))
    labelled *= legend.outputs if legend.overlapping else 1
    share = min(1.0, MOST_PIXELS / max(labelled, 1))
    counts = np.zeros((legend.outputs if legend.binary or legend.overlapping else 0, 2, STEPS + 1), np.int64)
    logits, labels = [], []
    for index, (own, label) in enumerate(_labelled(predictor, tile_set)):
        if len(counts):  # overlapping classes come in turn
            counts[index % len(counts)] += probability_counts(expit(own[:, 0]), label == 1)
        taken = np.random.default_rng((SEED, index)).random(len(label)) < share
        logits.append(own[taken])
        labels.append(label[taken])
    if not sum(map(len, labels)):
        raise InputError(f"{tile_set.folder} has no labelled validation pixel. Prepare it again with --val above 0.")
    return _Sample(np.concatenate(logits), np.concatenate(labels), counts)


def _labelled(
    predictor: Predictor, tile_set: TileSet
) -> Iterator[tuple[Float32[ndarray, "n o"], UInt8[ndarray, " n"]]]:
    """Yield logits and labels of the labelled pixels of each validation tile, each pixel of the ground once.

    Of overlapping classes, one after another by itself: logits (n, 1), and labels of 0 and 1.
    """
    counting = Counting.of(predictor.card.legend)
    samples = tile_set.samples("val", once=True)
    batches = batched(range(len(samples)))
    for _, tiles in track(read(samples, batches), len(batches), "calibrating", "batches"):
        for logits, (_, label) in zip(predictor.logits(*stacked(tiles)), tiles, strict=True):
            classes = counting.classed(label)
            pairs = zip(logits[:, None], classes, strict=True) if counting.overlapping else [(logits, classes)]
            for own, truth in pairs:
                known = truth != IGNORE
                yield np.ascontiguousarray(own[:, known].T), truth[known]


def _chosen(card: ModelCard, cuts: tuple[float, ...]) -> dict[str, Any]:
    """Return the fields of a card, or of a quality, that hold the thresholds."""
    return {"threshold": 0.5, "thresholds": cuts} if card.legend.overlapping else {"threshold": (*cuts, 0.5)[0]}


def _quality(
    sample: _Sample, card: ModelCard, temperature: float, cuts: tuple[float, ...], raw: tuple[float, ...]
) -> Quality:
    """Return the quality of a choice; `raw` are the same thresholds for probabilities at temperature 1."""
    f1s = [_f1(counts, each) for counts, each in zip(sample.counts, raw, strict=True)]
    there = [f1 for f1 in f1s if f1 is not None]
    return Quality(
        temperature=temperature,
        log_loss=log_loss(sample.logits, sample.label, temperature),
        ece=float(calibration_error(sample.reliability(temperature))),
        brier=squared_error(sample.probabilities(temperature), sample.label) / len(sample.label),
        f1=sum(there) / len(there) if there else None,
        **_chosen(card, cuts),
    )


def _f1(counts: Int64[ndarray, "2 1001"], threshold: float) -> float | None:
    """Return the F1 of a class at a threshold; None where it is nowhere."""
    false_positive, true_positive = counts[:, round(threshold * STEPS) :].sum(axis=1)
    both = int(false_positive + true_positive + counts[1].sum())
    return 2 * int(true_positive) / both if both else None


def _plain(quality: Quality) -> dict[str, Any]:
    return {name: value for name, value in asdict(quality).items() if name != "thresholds" or value}


def _check_own(run: Path, card: ModelCard, tile_set: TileSet) -> None:
    check_fit(card, tile_set)
    if tile_set.meta.fingerprint != card.data_fingerprint:
        raise InputError(
            f"{tile_set.folder} is not the tile set that trained {run}: its images, labels or tiles differ. "
            "Only validation tiles of a run's own tile set are sure to be neither trained nor test."
        )
    if not tile_set.split("val"):
        raise InputError(f"{tile_set.folder} has no val tiles. Prepare it again with --val above 0.")
