"""Mask images: pairing with images by name, and reading as class indices or as class fractions.

A mask has one band of class values, or one band per class with class fractions or presence.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8
from numpy import ndarray

from geograft.dataset.scenes import LabelReader
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.rasters.raster import Image
from geograft.labels import encode_exclusive_fractions, encode_fractions
from geograft.legend import IGNORE, Legend
from geograft.text import pluralise

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
STRIP = (512, 8192)


def pair_images_and_masks(
    images: Path, masks: Path, bands: int | None = None
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Return the (image, mask) pairs with equal names and sizes, sorted by name, and a list of mismatches as text.

    A mask must have one band, or at least `bands` if given.

    Raises:
        InputError: if a folder is missing, or a file cannot be opened.
    """
    left, right = _by_stem(images), _by_stem(masks)
    duplicates = {name: found for side in (left, right) for name, found in side.items() if len(found) > 1}
    faults = [f"{' and '.join(path.name for path in found)} have the same name" for found in duplicates.values()]
    faults += [f"image {left[name][0].name} has no mask" for name in sorted(left.keys() - right.keys())]
    faults += [f"mask {right[name][0].name} has no image" for name in sorted(right.keys() - left.keys())]
    names = sorted(left.keys() & right.keys() - duplicates.keys())
    found = [(left[name][0], right[name][0]) for name in names]
    mismatches = {pair: _mismatch(*pair, bands) for pair in found}
    return [pair for pair in found if not mismatches[pair]], faults + [fault for fault in mismatches.values() if fault]


def mask_reader(path: Path, values: Sequence[int], ignore: int | None) -> LabelReader:
    """Return a reader of one mask image: class indices by position in `values`, 255 for `ignore`.

    The reader raises InputError with the file name and all undeclared values, if there are any.
    """
    mask = Image.open(path)

    def label(window: Window) -> UInt8[ndarray, "h w"]:
        labels, known = _indices(mask.read_raw(window)[0], values, ignore)
        if not known.all():
            raise InputError(_undeclared_values_message(mask, values, ignore))
        return labels

    return label


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Pass the folder of the images and the folder of the masks.")
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found[path.stem].append(path)
    if not found:
        raise InputError(f"{folder} contains no PNG, JPEG or TIFF files. Check the path.")
    return found


def _mismatch(image_path: Path, mask_path: Path, bands: int | None) -> str:
    """Return how a mask does not match its image, as text; empty if it does."""
    with Image.open(image_path) as image, Image.open(mask_path) as mask:
        grid, other = image.info.grid, mask.info.grid
        if bands is None and mask.info.bands != 1:
            return f"mask {mask_path.name} has {mask.info.bands} bands instead of one"
        if bands is not None and mask.info.bands < bands:
            return (
                f"mask {mask_path.name} has {pluralise(mask.info.bands, 'band')}, and band {bands} is named as a class"
            )
        if (grid.height, grid.width) != (other.height, other.width):
            sizes = f"{grid.width} x {grid.height} pixels, its mask {other.width} x {other.height}"
            return f"image {image_path.name} has {sizes}"
        return (
            "" if _same_position(grid, other) else f"mask {mask_path.name} has another CRS or position than its image"
        )


def _same_position(grid: Grid, other: Grid) -> bool:
    """Return whether two grids agree to half a pixel; a grid without CRS agrees with any other."""
    if grid.crs is None or other.crs is None:
        return True
    corners = np.array([(0, 0), (grid.width, grid.height)])
    moved = [~grid.transform @ (other.transform @ tuple(corner)) for corner in corners]
    return grid.crs.equals(other.crs, ignore_axis_order=True) and bool((abs(moved - corners) < 0.5).all())


def _indices(
    pixels: Shaped[ndarray, "h w"], values: Sequence[int], ignore: int | None
) -> tuple[UInt8[ndarray, "h w"], Shaped[ndarray, "h w"]]:
    """Return the class index of each pixel, and which pixels have a declared value."""
    pairs = [(value, index) for index, value in enumerate(values)] + ([] if ignore is None else [(ignore, IGNORE)])
    keys, indices = np.array(sorted(pairs)).T
    places = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
    return indices.astype(np.uint8)[places], keys[places] == pixels


def _undeclared_values_message(mask: Image, values: Sequence[int], ignore: int | None) -> str:
    undeclared: set[float] = set()
    for window in block_windows(mask.info.grid.window, *STRIP):
        pixels = mask.read_raw(window)[0]
        undeclared |= set(np.unique(pixels[~_indices(pixels, values, ignore)[1]]).tolist())
    found = ", ".join(f"{value:g}" for value in sorted(undeclared)[:20])
    declared = ", ".join(map(str, sorted([*values, *([] if ignore is None else [ignore])])))
    return (
        f"{mask.info.path} contains the undeclared values {found} (declared: {declared}). "
        "Declare them as classes with --classes, or ignore a value with --ignore."
    )


MASK_BLOCK = (512, 512)
"""Rows and columns read at a time: a few times 2 MB per class."""
REMAINDER = 0
"""In place of a band number: the class is the remainder, 1 minus the fractions of the others."""
MAX_SUM_ERROR = 0.05
"""Tolerance of the sum of the fractions of a pixel. Rounding seven classes to whole percent gives 0.035 at most."""

MAX_LISTED = 5
ROUNDING_ERROR = 1e-6
"""Tolerance for fractions below 0 or above 1 that were computed in single precision."""


@dataclass(frozen=True)
class FractionBands:
    """The classes of the bands of a mask, and the meaning of their values."""

    bands: tuple[int, ...]
    """Band number by class index, from 1; 0 for the class that is the remainder."""
    full_value: float
    """Value of a pixel that belongs to a class completely."""
    allow_partial: bool
    """Whether values between 0 and `full_value` are allowed."""
    legend: Legend
    """The classes. If they overlap, fractions need not sum to 1."""
    ignore: int | None = None
    """Value of unknown pixels."""

    @property
    def min_bands(self) -> int:
        """The minimum number of bands of a mask."""
        return max(self.bands)


def fraction_mask_reader(path: Path, layout: FractionBands) -> LabelReader:
    """Return a reader of the class fractions in one mask image, in 250ths, one band per output.

    A class is unknown in a pixel if its band is NaN, the value to ignore, or a nodata value that is not a valid
    fraction; if classes are mutually exclusive, the whole pixel is unknown then. The reader raises InputError with the
    file name for values that are not fractions, and for fractions of exclusive classes that do not sum to 1.
    """
    mask = Image.open(path)

    def label(window: Window) -> UInt8[ndarray, "o h w"]:
        bands = np.empty((layout.legend.outputs, window.height, window.width), np.uint8)
        for cell in block_windows(window, *MASK_BLOCK):
            bands[:, *cell.relative_to(window).slices] = _encode(mask, cell, layout)
        return bands

    return label


def _encode(mask: Image, window: Window, layout: FractionBands) -> UInt8[ndarray, "o h w"]:
    fractions, invalid = _read_fractions(mask, window, layout)
    if invalid.any():
        raise InputError(_invalid_values_message(mask, layout))
    if layout.legend.overlapping:
        return encode_fractions(fractions)
    normalised = _normalise(fractions, layout.bands)
    if normalised is None:
        raise InputError(_sum_message(mask, layout))
    return encode_fractions(normalised[1:]) if layout.legend.outputs == 1 else encode_exclusive_fractions(normalised)


def _read_fractions(
    mask: Image, window: Window, layout: FractionBands
) -> tuple[Float64[ndarray, "k h w"], Bool[ndarray, "k h w"]]:
    """Return the fraction of each class, 0 for the remainder, and which values are not valid fractions."""
    values = mask.read_raw(window)
    found = np.zeros((len(layout.bands), window.height, window.width))
    invalid = np.zeros(found.shape, bool)
    for index, band in enumerate(layout.bands):
        if band != REMAINDER:
            fraction = values[band - 1] / layout.full_value
            unknown = _unknown_mask(values[band - 1], layout, mask.nodata[band - 1])
            valid = (
                np.abs(fraction - 0.5) <= 0.5 + ROUNDING_ERROR
                if layout.allow_partial
                else (fraction == 0) | (fraction == 1)
            )
            found[index] = np.where(unknown, np.nan, np.clip(fraction, 0, 1))
            invalid[index] = ~(valid | unknown)
    return found, invalid


def _unknown_mask(values: Shaped[ndarray, "h w"], layout: FractionBands, nodata: float | None) -> Bool[ndarray, "h w"]:
    unknown = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    # A nodata value that is a valid fraction, such as 0, is more often a mistake than intended.
    for value in (layout.ignore, nodata if nodata is not None and not 0 <= nodata <= layout.full_value else None):
        if value is not None:
            unknown |= values == value
    return unknown


def _normalise(fractions: Float64[ndarray, "k h w"], bands: Sequence[int]) -> Float64[ndarray, "k h w"] | None:
    """Return the fractions normalised to 1, with the remainder; None if the sum of any pixel is too far from 1."""
    total = fractions.sum(axis=0)
    if REMAINDER in bands:
        fractions[bands.index(REMAINDER)] = np.maximum(1 - total, 0)
        total = fractions.sum(axis=0)
    return None if (np.abs(total - 1) > MAX_SUM_ERROR).any() else fractions / total


def _invalid_values_message(mask: Image, layout: FractionBands) -> str:
    found: set[float] = set()
    for window in block_windows(mask.info.grid.window, *MASK_BLOCK):
        invalid, values = _read_fractions(mask, window, layout)[1], mask.read_raw(window)
        for index, band in enumerate(layout.bands):
            found |= set(np.unique(values[band - 1][invalid[index]])[:MAX_LISTED].tolist())
    some = ", ".join(f"{value:.6g}" for value in sorted(found)[:MAX_LISTED])
    full = f"{layout.full_value:g}"
    if layout.allow_partial:
        needed, remedy = f"fractions must be from 0 to {full}", ""
    else:
        needed, remedy = f"values must be {full} for the class and 0 otherwise", ", or use --fractional"
    return (
        f"{mask.info.path} contains values such as {some}; {needed}. Set the value of a full pixel with --full-value, "
        f"or the value of unknown pixels with --ignore{remedy}."
    )


def _sum_message(mask: Image, layout: FractionBands) -> str:
    sums: list[float] = []
    for window in block_windows(mask.info.grid.window, *MASK_BLOCK):
        total = _read_fractions(mask, window, layout)[0].sum(axis=0)
        sums += np.unique(total[np.isfinite(total)])[[0, -1]].tolist() if np.isfinite(total).any() else []
    rest = "" if REMAINDER in layout.bands else "Declare the missing class as 0, the remainder. "
    return (
        f"{mask.info.path}: the class fractions sum to {min(sums):.3g} in one pixel and to {max(sums):.3g} in another "
        f"instead of 1. {rest}If classes overlap, use --overlapping."
    )
