"""Probabilities of an array of pixels, predicted in windows and blended exactly as `predict` maps a raster."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32, Shaped
from numpy import ndarray

from geograft.card import ModelCard
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.indices import Index, append_indices
from geograft.mapping.blend import blend
from geograft.mapping.classmap import class_probabilities
from geograft.mapping.models import RunModel
from geograft.mapping.plan import plan_blend, sample_windows


@dataclass(frozen=True)
class ArraySource:
    """An array in memory to read tiles from (a `RasterSource`)."""

    pixels: Shaped[ndarray, "b h w"]
    valid: Bool[ndarray, "h w"]
    indices: Sequence[Index] = ()
    """Spectral indices, appended to the bands."""

    def is_empty(self, window: Window) -> bool:
        """Whether a window has no valid pixel."""
        return not self.valid[window.slices].any()

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the bands and spectral indices of a window, and a mask of the valid pixels."""
        valid = self.valid[window.slices]
        pixels = np.where(valid, self.pixels[:, *window.slices], self.pixels.dtype.type(0))
        return append_indices(pixels, valid, self.indices), valid

    def mask_of_interest(self, window: Window) -> None:
        """All valid pixels are wanted."""


def predict_array(model: RunModel, pixels: ndarray, valid: ndarray | None = None) -> Float32[ndarray, "k h w"]:
    """Return the probability of each class of each pixel (bands, height, width), NaN where a pixel is not valid.

    They are those of the raster with these pixels. Not valid are pixels where `valid` is False, or a band is NaN or
    infinite.

    Raises:
        InputError: if the array does not have the bands and the dtype of the run, or `valid` another size.
        SettingError: if the device or the backend is not available.
    """
    card = model.card
    _check_array(pixels, card)
    known = np.isfinite(pixels).all(axis=0)
    if valid is not None:
        if valid.shape != pixels.shape[1:]:
            raise InputError(f"valid has the shape {valid.shape}, but the pixels have {pixels.shape[1:]}.")
        known &= valid
    source = ArraySource(pixels, known, card.indices)
    height, width = known.shape
    itemsize = 4 if card.indices else pixels.dtype.itemsize
    plan = plan_blend((height, width), len(card.band_names) * itemsize, card, model.settings, model.layers)
    result = np.full((len(card.legend.names), height, width), np.nan, np.float32)
    if known.any():
        sample = partial(sample_windows, plan, source)
        predictor = model.predictor(plan.lanes.tiles.tile_px, plan.batch_size, sample)
        for strip in blend(plan, source, predictor):
            if strip.data.width and strip.data.height:
                found = class_probabilities(strip, card.legend)
                result[:, *strip.data.slices] = np.where(strip.mapped, found, np.float32(np.nan))
    return result


def _check_array(pixels: ndarray, card: ModelCard) -> None:
    names = ", ".join(card.band_names[: card.bands])
    if pixels.ndim != 3 or len(pixels) != card.bands or 0 in pixels.shape:
        raise InputError(
            f"the array has the shape {pixels.shape}; the run needs (bands, height, width) with {card.bands} bands "
            f"({names})."
        )
    if pixels.dtype != card.dtype:
        raise InputError(
            f"the array holds {pixels.dtype}; the run was trained on {card.dtype}. Give pixels in the units of "
            "training, unscaled."
        )
