"""Images and mask images of the same name, and mask values as class indices.

Mask images whose bands say how much of a pixel each class has, or whether it has it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8
from numpy import ndarray

from geograft.dataset.scenes import LabelReader, counted
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, cells
from geograft.geo.rasters.raster import Image
from geograft.labels import coded, coded_together
from geograft.legend import IGNORE, Legend

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
STRIP = (512, 8192)


def pairs(images: Path, masks: Path, bands: int | None = None) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Return the (image, mask) pairs that share a name and a size, by name, and in words what has no partner.

    A mask has one band, or at least so many `bands` where these are given.

    Raises:
        InputError: when a folder is missing, or a file cannot be opened.
    """
    left, right = _by_stem(images), _by_stem(masks)
    doubles = {name: found for side in (left, right) for name, found in side.items() if len(found) > 1}
    faults = [f"{' and '.join(path.name for path in found)} share a name" for found in doubles.values()]
    faults += [f"image {left[name][0].name} has no mask" for name in sorted(left.keys() - right.keys())]
    faults += [f"mask {right[name][0].name} has no image" for name in sorted(right.keys() - left.keys())]
    names = sorted(left.keys() & right.keys() - doubles.keys())
    found = [(left[name][0], right[name][0]) for name in names]
    misfits = {pair: _misfit(*pair, bands) for pair in found}
    return [pair for pair in found if not misfits[pair]], faults + [fault for fault in misfits.values() if fault]


def mask_reader(path: Path, values: Sequence[int], ignore: int | None) -> LabelReader:
    """Return what gives the labels of one mask image: class indices by their place in `values`, 255 for `ignore`.

    What it returns raises InputError, naming the file and all its other values, when there are any.
    """
    mask = Image.open(path)

    def label(window: Window) -> UInt8[ndarray, "h w"]:
        labels, known = _indices(mask.values(window)[0], values, ignore)
        if not known.all():
            raise InputError(_undeclared(mask, values, ignore))
        return labels

    return label


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder that holds the images, and the one of the masks.")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found[path.stem].append(path)
    if not found:
        raise InputError(f"{folder} holds no PNG, JPEG or TIFF files. Check the path.")
    return found


def _misfit(image_path: Path, mask_path: Path, bands: int | None) -> str:
    """Return in words how a mask does not fit its image; empty when it does."""
    with Image.open(image_path) as image, Image.open(mask_path) as mask:
        grid, other = image.info.grid, mask.info.grid
        if bands is None and mask.info.bands != 1:
            return f"mask {mask_path.name} has {mask.info.bands} bands instead of one"
        if bands is not None and mask.info.bands < bands:
            return f"mask {mask_path.name} has {counted(mask.info.bands, 'band')}, and band {bands} is named as a class"
        if (grid.height, grid.width) != (other.height, other.width):
            sizes = f"{grid.width} x {grid.height} pixels, its mask {other.width} x {other.height}"
            return f"image {image_path.name} has {sizes}"
        return "" if _same_place(grid, other) else f"mask {mask_path.name} lies elsewhere on the ground than its image"


def _same_place(grid: Grid, other: Grid) -> bool:
    """Return whether two grids agree to half a pixel; those without CRS agree with any."""
    if grid.crs is None or other.crs is None:
        return True
    corners = np.array([(0, 0), (grid.width, grid.height)])
    moved = [~grid.transform @ (other.transform @ tuple(corner)) for corner in corners]
    return grid.crs.equals(other.crs, ignore_axis_order=True) and bool((abs(moved - corners) < 0.5).all())


def _indices(
    pixels: Shaped[ndarray, "h w"], values: Sequence[int], ignore: int | None
) -> tuple[UInt8[ndarray, "h w"], Shaped[ndarray, "h w"]]:
    """Return the class index of every pixel, and which pixels hold a declared value."""
    pairs = [(value, index) for index, value in enumerate(values)] + ([] if ignore is None else [(ignore, IGNORE)])
    keys, indices = np.array(sorted(pairs)).T
    places = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
    return indices.astype(np.uint8)[places], keys[places] == pixels


def _undeclared(mask: Image, values: Sequence[int], ignore: int | None) -> str:
    strangers: set[float] = set()
    for window in cells(mask.info.grid.window, *STRIP):
        pixels = mask.values(window)[0]
        strangers |= set(np.unique(pixels[~_indices(pixels, values, ignore)[1]]).tolist())
    found = ", ".join(f"{value:g}" for value in sorted(strangers)[:20])
    declared = ", ".join(map(str, sorted([*values, *([] if ignore is None else [ignore])])))
    return (
        f"{mask.info.path} holds the values {found}, which are neither classes nor ignored (declared: {declared}). "
        "Declare them as classes, or name the one to ignore."
    )


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
