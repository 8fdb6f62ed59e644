"""How unsure runs are of what they see: by the probabilities themselves, or by how far runs and turns disagree."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, Unpack, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Shaped
from numpy import ndarray

from geograft.card import ModelCard, read_card
from geograft.errors import InputError
from geograft.inference.predictor import Mapper, Options, Tta
from geograft.inference.probability import Turn, turned, turned_back, turns

Measure = Literal["entropy", "margin", "spread"]
Views: TypeAlias = Float32[ndarray, "v n k h w"]
"""The probability of each class of each pixel, once for every run and every turn of the tile."""


def entropy(views: Views) -> Float32[ndarray, "n h w"]:
    """Return the entropy of the mean probabilities over its largest, log K: 0 where one class is certain.

    -sum(p log p) / log K, Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x, section 6.
    """
    p = views.mean(axis=0)
    terms = p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    share: ndarray = -terms.sum(axis=1) / np.float32(np.log(p.shape[1]))
    return share.clip(0, 1)


def margin(views: Views) -> Float32[ndarray, "n h w"]:
    """Return 1 less the distance between the two largest mean probabilities: 1 where two classes are equally likely.

    Scheffer, Decomain and Wrobel (2001), doi:10.1007/3-540-44816-0_31.
    """
    ranked = np.sort(views.mean(axis=0), axis=1)
    closeness: ndarray = 1 - (ranked[:, -1] - ranked[:, -2])
    return closeness.clip(0, 1)


def spread(views: Views) -> Float32[ndarray, "n h w"]:
    """Return twice the standard deviation over the views, of the class where it is largest: 0 to 1."""
    largest: ndarray = views.std(axis=0).max(axis=1)
    return (2 * largest).clip(0, 1)


MEASURES: Mapping[Measure, Callable[[Views], Float32[ndarray, "n h w"]]] = {
    "entropy": entropy,
    "margin": margin,
    "spread": spread,
}


@runtime_checkable
class Seer(Protocol):
    """One run that maps tiles, as `geograft.inference.predictor.Mapper` does."""

    card: ModelCard
    notes: tuple[str, ...]

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> Float32[ndarray, "n layers t t"]:
        """Return the probability of class 1 for two classes, else of each class; `pixels` are in the images' units."""


class Doubt:
    """Runs as a measure of doubt. Equal tiles give equal doubt, to the bit, on one machine.

    Attributes:
        card: of the first run.
        notes: what the user should know, a line each.
    """

    def __init__(self, seers: Sequence[Seer], measure: Measure, tta: Tta = 1) -> None:
        self.card: ModelCard = seers[0].card
        self.notes = tuple(dict.fromkeys(note for seer in seers for note in seer.notes))
        self._seers, self._measure, self._turns = tuple(seers), MEASURES[measure], turns(tta)

    @classmethod
    def load(cls, runs: Sequence[Path], measure: Measure, **options: Unpack[Options]) -> "Doubt":
        """Read the run folders and make their networks ready for tiles of the first run's size.

        Raises:
            InputError: when one of `runs` is no finished run or differs from the first in what a batch of tiles is.
            SettingError: for a device that this machine does not have, or a backend that is not installed.
        """
        _check_alike(runs, [read_card(run) for run in runs])
        tta = options.pop("tta", 1)
        return cls([Mapper.load((run,), **options) for run in runs], measure, tta)

    def __call__(self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]) -> Float32[ndarray, "n t t"]:
        """Return the doubt of every pixel of square tiles, 0 to 1; `pixels` are in the images' own units.

        Each of overlapping classes is doubted for itself, as one of two, and the mean over the classes counts.
        """
        views = np.stack([self._seen(seer, turn, pixels, valid) for seer in self._seers for turn in self._turns])
        legend = self.card.legend
        if legend.binary or legend.overlapping:
            each = [self._measure(_with_the_rest(own)) for own in np.moveaxis(views, 2, 0)]
            return np.asarray(np.mean(each, axis=0))
        return self._measure(views)

    def _seen(
        self, seer: Seer, turn: Turn, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> Float32[ndarray, "n layers t t"]:
        """Return the layers that one run gives to tiles in one turn, turned back."""
        images = turned(torch.from_numpy(pixels.astype(np.float32, order="C")), turn).numpy()
        seen = turned(torch.from_numpy(np.array(valid[:, None], order="C")), turn).numpy()[:, 0]
        layers = seer(images.astype(pixels.dtype), seen)
        upright: ndarray = turned_back(torch.from_numpy(layers), turn).numpy()
        return upright


def _with_the_rest(views: Float32[ndarray, "v n h w"]) -> Views:
    """Return the probabilities of one class as those of two: of the rest, and of the class."""
    return np.stack([1 - views, views], axis=2)


def mean_inside(doubt: Float32[ndarray, "n h w"], counted: Bool[ndarray, "n h w"]) -> Float64[ndarray, " n"]:
    """Return the mean doubt of each tile over its counted pixels; 0 where there are none."""
    total = np.where(counted, doubt, 0).sum(axis=(1, 2), dtype=np.float64)
    mean: Float64[ndarray, " n"] = total / np.maximum(counted.sum(axis=(1, 2)), 1)
    return mean


def _check_alike(runs: Sequence[Path], cards: Sequence[ModelCard]) -> None:
    first = _kind(cards[0])
    for run, kind in zip(runs, map(_kind, cards), strict=True):
        for what, here, there in zip(("classes are", "bands are", "tiles are"), kind, first, strict=True):
            if here != there:
                raise InputError(
                    f"{run} cannot be set beside {runs[0]}: its {what} {here}, there {there}. "
                    "Give runs that were trained on tile sets of one kind."
                )


def _kind(card: ModelCard) -> tuple[str, str, str]:
    indices = [index.formula for index in card.indices]
    bands = f"{', '.join([str(len(card.band_names)), *indices])} of {card.dtype}"
    kind = " (overlapping)" if card.legend.overlapping else ""
    return ", ".join(card.legend.names) + kind, bands, f"{card.tile_px} px"
