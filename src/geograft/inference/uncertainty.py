"""Uncertainty of predictions as acquisition functions: entropy, margin, or disagreement of runs and TTA views."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, Unpack, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Shaped
from numpy import ndarray

from geograft.card import ModelCard, read_card
from geograft.errors import InputError
from geograft.inference.predictor import EnsemblePredictor, PredictorOptions, Tta
from geograft.inference.probability import FlipRotation, flip_rotate, flip_rotations, undo_flip_rotate

Acquisition = Literal["entropy", "margin", "disagreement"]
Views: TypeAlias = Float32[ndarray, "v n k h w"]
"""The class probabilities of each pixel by every view: every run and every TTA transform of the tile."""


def entropy(views: Views) -> Float32[ndarray, "n h w"]:
    """Return the normalised entropy of the mean probabilities: 0 where one class is certain, 1 for equal ones.

    -sum(p log p) / log K, Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x, section 6.
    """
    p = views.mean(axis=0)
    terms = p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    normalised: ndarray = -terms.sum(axis=1) / np.float32(np.log(p.shape[1]))
    return normalised.clip(0, 1)


def margin(views: Views) -> Float32[ndarray, "n h w"]:
    """Return 1 - the difference of the two largest mean probabilities: 1 where two classes are equally likely.

    Scheffer, Decomain and Wrobel (2001), doi:10.1007/3-540-44816-0_31.
    """
    ranked = np.sort(views.mean(axis=0), axis=1)
    closeness: ndarray = 1 - (ranked[:, -1] - ranked[:, -2])
    return closeness.clip(0, 1)


def disagreement(views: Views) -> Float32[ndarray, "n h w"]:
    """Return twice the standard deviation over the views, for the class where it is largest: 0 to 1."""
    largest: ndarray = views.std(axis=0).max(axis=1)
    return (2 * largest).clip(0, 1)


ACQUISITIONS: Mapping[Acquisition, Callable[[Views], Float32[ndarray, "n h w"]]] = {
    "entropy": entropy,
    "margin": margin,
    "disagreement": disagreement,
}


@runtime_checkable
class ViewPredictor(Protocol):
    """A predictor of one view, such as `geograft.inference.predictor.EnsemblePredictor` of one run."""

    card: ModelCard
    notes: tuple[str, ...]

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> Float32[ndarray, "n layers t t"]:
        """Return the probability of the positive class if binary, else of each class. `pixels` are not yet scaled."""


class Uncertainty:
    """The uncertainty of runs about each pixel. On one machine, equal tiles give equal results to the bit.

    Attributes:
        card: the model card of the first run.
        notes: remarks for the user, one line each.
    """

    def __init__(self, predictors: Sequence[ViewPredictor], acquisition: Acquisition, tta: Tta = 1) -> None:
        self.card: ModelCard = predictors[0].card
        self.notes = tuple(dict.fromkeys(note for predictor in predictors for note in predictor.notes))
        self._predictors, self._transforms = tuple(predictors), flip_rotations(tta)
        self._acquisition = ACQUISITIONS[acquisition]

    @classmethod
    def load(cls, runs: Sequence[Path], acquisition: Acquisition, **options: Unpack[PredictorOptions]) -> "Uncertainty":
        """Load runs for tiles of the first run's size.

        Raises:
            InputError: if one of `runs` is not a finished run, or differs from the first in classes, bands or tiles.
            SettingError: for a device that this machine does not have, or a backend that is not installed.
        """
        _check_compatible(runs, [read_card(run) for run in runs])
        tta = options.pop("tta", 1)
        return cls([EnsemblePredictor.load((run,), **options) for run in runs], acquisition, tta)

    def __call__(self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]) -> Float32[ndarray, "n t t"]:
        """Return the uncertainty of every pixel of square tiles, 0 to 1. `pixels` are not yet scaled.

        For overlapping classes it is the mean of the binary uncertainty of each class.
        """
        views = np.stack(
            [self._view(predictor, each, pixels, valid) for predictor in self._predictors for each in self._transforms]
        )
        legend = self.card.legend
        if legend.binary or legend.overlapping:
            by_class = [self._acquisition(_binary_views(own)) for own in np.moveaxis(views, 2, 0)]
            return np.asarray(np.mean(by_class, axis=0))
        return self._acquisition(views)

    def _view(
        self,
        predictor: ViewPredictor,
        transform: FlipRotation,
        pixels: Shaped[ndarray, "n b t t"],
        valid: Bool[ndarray, "n t t"],
    ) -> Float32[ndarray, "n layers t t"]:
        """Return the layers that one run predicts for transformed tiles, transformed back."""
        images = flip_rotate(torch.from_numpy(pixels.astype(np.float32, order="C")), transform).numpy()
        mask = flip_rotate(torch.from_numpy(np.array(valid[:, None], order="C")), transform).numpy()[:, 0]
        layers = predictor(images.astype(pixels.dtype), mask)
        restored: ndarray = undo_flip_rotate(torch.from_numpy(layers), transform).numpy()
        return restored


def _binary_views(views: Float32[ndarray, "v n h w"]) -> Views:
    """Return the probability p of one class as those of two classes, (1 - p, p)."""
    return np.stack([1 - views, views], axis=2)


def mean_over_mask(uncertainty: Float32[ndarray, "n h w"], mask: Bool[ndarray, "n h w"]) -> Float64[ndarray, " n"]:
    """Return the mean uncertainty of each tile over the pixels in `mask`; 0 if it is empty."""
    total = np.where(mask, uncertainty, 0).sum(axis=(1, 2), dtype=np.float64)
    mean: Float64[ndarray, " n"] = total / np.maximum(mask.sum(axis=(1, 2)), 1)
    return mean


def _check_compatible(runs: Sequence[Path], cards: Sequence[ModelCard]) -> None:
    first = _kind(cards[0])
    for run, kind in zip(runs, map(_kind, cards), strict=True):
        for name, value, expected in zip(("classes", "bands", "tiles"), kind, first, strict=True):
            if value != expected:
                raise InputError(
                    f"{run} cannot be combined with {runs[0]}: {name} are {value}, not {expected}. "
                    "Use runs trained on the same classes, bands and tile size."
                )


def _kind(card: ModelCard) -> tuple[str, str, str]:
    indices = [index.formula for index in card.indices]
    bands = f"{', '.join([str(len(card.band_names)), *indices])} of {card.dtype}"
    kind = " (overlapping)" if card.legend.overlapping else ""
    return ", ".join(card.legend.names) + kind, bands, f"{card.tile_px} px"
