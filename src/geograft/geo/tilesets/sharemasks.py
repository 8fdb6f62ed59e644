"""Mask images whose bands say how much of a pixel each class has, or whether it has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window, cells
from geograft.geo.rasters.raster import Image
from geograft.geo.tilesets.scenes import LabelReader
from geograft.labels import coded, coded_together
from geograft.legend import Legend

CELL = (512, 512)
"""Rows and columns read at a time: a few times 2 MB a class."""
REST = 0
"""In place of a band: what the other classes leave of a pixel."""
LOOSE = 0.05
"""How far the shares of a pixel may sum from 1: seven shares in whole percents are rounded by 3.5 at most."""

MOST_LISTED = 5
ROUNDED = 1e-6
"""How far beyond 0 and 1 a share may lie that was computed in single precision."""


@dataclass(frozen=True)
class ShareBands:
    """Which bands of a mask are of which class, and what their values mean."""

    bands: tuple[int, ...]
    """By class index, counted from 1; 0 for one class that has what the others leave."""
    full: float
    """The value of a pixel that is wholly of a class."""
    fractions: bool
    """Whether values between 0 and `full` may be."""
    legend: Legend
    """The classes. Where they overlap, the shares of a pixel need not sum to 1."""
    ignore: int | None = None
    """The value of what is not known."""

    @property
    def needed(self) -> int:
        """How many bands a mask has at least."""
        return max(self.bands)


def fraction_mask_reader(path: Path, form: ShareBands) -> LabelReader:
    """Return what gives the shares in one mask image, one band an output, in 250ths.

    A class is not known of a pixel where its band holds NaN, the value to ignore, or a nodata value that is no share;
    of classes that exclude each other none is known then. What it returns raises InputError, naming the file, for
    values that are no shares, and for shares of classes that exclude each other that do not sum to 1.
    """
    mask = Image.open(path)

    def label(window: Window) -> UInt8[ndarray, "o h w"]:
        bands = np.empty((form.legend.outputs, window.height, window.width), np.uint8)
        for cell in cells(window, *CELL):
            bands[:, *cell.within(window).slices] = _coded(mask, cell, form)
        return bands

    return label


def _coded(mask: Image, window: Window, form: ShareBands) -> UInt8[ndarray, "o h w"]:
    shares, strange = _shares(mask, window, form)
    if strange.any():
        raise InputError(_strange(mask, form))
    if form.legend.overlapping:
        return coded(shares)
    together = _together(shares, form.bands)
    if together is None:
        raise InputError(_unbalanced(mask, form))
    return coded(together[1:]) if form.legend.outputs == 1 else coded_together(together)


def _shares(mask: Image, window: Window, form: ShareBands) -> tuple[Float64[ndarray, "k h w"], Bool[ndarray, "k h w"]]:
    """Return the shares of each class that has a band, 0 for the rest, and which values are no shares."""
    values = mask.values(window)
    found = np.zeros((len(form.bands), window.height, window.width))
    strange = np.zeros(found.shape, bool)
    for index, band in enumerate(form.bands):
        if band != REST:
            share = values[band - 1] / form.full
            unknown = _unknown(values[band - 1], form, mask.nodata[band - 1])
            fits = np.abs(share - 0.5) <= 0.5 + ROUNDED if form.fractions else (share == 0) | (share == 1)
            found[index] = np.where(unknown, np.nan, np.clip(share, 0, 1))
            strange[index] = ~(fits | unknown)
    return found, strange


def _unknown(values: Shaped[ndarray, "h w"], form: ShareBands, nodata: float | None) -> Bool[ndarray, "h w"]:
    unknown = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    # A nodata value that could be a share is more often a slip than meant.
    for hidden in (form.ignore, nodata if nodata is not None and not 0 <= nodata <= form.full else None):
        if hidden is not None:
            unknown |= values == hidden
    return unknown


def _together(shares: Float64[ndarray, "k h w"], bands: Sequence[int]) -> Float64[ndarray, "k h w"] | None:
    """Return shares that sum to 1, the rest included; None where they are too far from that in any pixel."""
    total = shares.sum(axis=0)
    if REST in bands:
        shares[bands.index(REST)] = np.maximum(1 - total, 0)
        total = shares.sum(axis=0)
    return None if (np.abs(total - 1) > LOOSE).any() else shares / total


def _strange(mask: Image, form: ShareBands) -> str:
    found: set[float] = set()
    for window in cells(mask.info.grid.window, *CELL):
        strange, values = _shares(mask, window, form)[1], mask.values(window)
        for index, band in enumerate(form.bands):
            found |= set(np.unique(values[band - 1][strange[index]])[:MOST_LISTED].tolist())
    some = ", ".join(f"{value:.6g}" for value in sorted(found)[:MOST_LISTED])
    full = f"{form.full:g}"
    if form.fractions:
        needed, remedy = f"shares are from 0 to {full}", ""
    else:
        needed, remedy = f"a band holds {full} where its class is, and 0", ", or take shares with --fractions"
    return (
        f"{mask.info.path} holds values such as {some}; {needed}. Give the value of a whole pixel with --full-value, "
        f"name the one of what is not known with --ignore{remedy}."
    )


def _unbalanced(mask: Image, form: ShareBands) -> str:
    sums: list[float] = []
    for window in cells(mask.info.grid.window, *CELL):
        total = _shares(mask, window, form)[0].sum(axis=0)
        sums += np.unique(total[np.isfinite(total)])[[0, -1]].tolist() if np.isfinite(total).any() else []
    rest = "" if REST in form.bands else "Name the missing class as 0, which has the rest. "
    return (
        f"{mask.info.path}: the shares of its classes sum to {min(sums):.3g} in one pixel and {max(sums):.3g} in "
        f"another, not to 1. {rest}If classes overlap, give --overlapping."
    )
