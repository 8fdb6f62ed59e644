"""Mask images: reading as class indices or as class fractions.

A mask has one band of class values, three bands of colours that stand for classes, or one band per class with class
fractions or presence.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8
from numpy import ndarray

from geograft.dataset.scenes import LabelReader, files_by_stem
from geograft.errors import InputError, SettingError
from geograft.files import check_input_file
from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.labels import encode_exclusive_fractions, encode_fractions
from geograft.legend import IGNORE, Legend
from geograft.text import join_names, pluralise

STRIP = (512, 8192)
MAX_DISTINCT = 4096
"""Number of values of a mask after which no more are counted."""
MAX_CLASSES = 254
MAX_LISTED_VALUES = 12
SCANNED_MASKS = 20
"""Number of masks that are read to list their values."""


@dataclass(frozen=True)
class MaskValues:
    """How the values of a mask, or its colours, become class indices."""

    values: tuple[int, ...]
    """Value by class index; a colour is the number 0xRRGGBB."""
    ignore: int | None = None
    """Value of pixels to ignore."""
    by_colour: bool = False
    """Whether values are colours: of three bands, of a colour table, or shades of grey."""
    ignore_undeclared: bool = False
    """Whether pixels of all other values are ignored."""


def check_pairs(
    pairs: Sequence[tuple[Path, Path]], needed: "MaskValues | FractionBands"
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Return the pairs whose mask fits the image and `needed`, and the mismatches as text.

    Raises:
        InputError: if a file cannot be opened.
    """
    mismatches = {pair: _mismatch(*pair, needed) for pair in pairs}
    return [pair for pair in pairs if not mismatches[pair]], [fault for fault in mismatches.values() if fault]


def mask_reader(path: Path, declared: MaskValues) -> LabelReader:
    """Return a reader of one mask image: class indices by position of the declared values, 255 for ignored ones.

    The reader raises InputError with the file name and all undeclared values, if there are any and they are not
    ignored.
    """
    mask = Image.open(path)

    def label(window: Window) -> UInt8[ndarray, "h w"]:
        labels, known = _indices(_read_values(mask, window, declared.by_colour), declared)
        if declared.ignore_undeclared:
            labels[~known] = IGNORE
        elif not known.all():
            raise InputError(_undeclared_values_message(mask, declared))
        return labels

    return label


def parse_colour(text: str) -> int:
    """Return the number 0xRRGGBB of a colour.

    >>> hex(parse_colour("#b50000")), hex(parse_colour("181, 0, 0"))
    ('0xb50000', '0xb50000')

    Raises:
        SettingError: if it is neither #RRGGBB nor three numbers from 0 to 255.
    """
    if re.fullmatch("#?[0-9a-fA-F]{6}", text.strip()):
        return int(text.strip().removeprefix("#"), 16)
    numbers = [int(number) for number in re.findall("[0-9]{1,9}", text)]
    if len(numbers) != 3 or max(numbers) > 255 or re.search(r"[^0-9\s,;()\[\]]", text):
        raise SettingError(f"{text!r} is not a colour. Give #RRGGBB, such as #b50000, or red, green and blue to 255.")
    return numbers[0] << 16 | numbers[1] << 8 | numbers[2]


NAME_COLUMNS, VALUE_COLUMNS = ("name", "class", "class_name", "label"), ("value", "id")
COLOUR_COLUMNS, BAND_COLUMNS = ("colour", "color", "hex", "rgb"), (("r", "red"), ("g", "green"), ("b", "blue"))


def read_class_table(path: Path) -> dict[int, str] | dict[str, str]:
    """Return the class names of a CSV file by colour, as #rrggbb, or by value if it has no colours.

    It has a column `name`, and `colour`, or `r`, `g` and `b`, or `value`.

    Raises:
        InputError: if it cannot be read, or lacks a column or a cell.
    """
    check_input_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = next((one for one in ",;\t" if one in text.partition("\n")[0]), ",")
        rows = [
            {str(key).strip().lower(): (cell or "").strip() for key, cell in row.items() if isinstance(cell, str)}
            for row in csv.DictReader(text.splitlines(), delimiter=delimiter)
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV file of classes: {error}. Check the path.") from error
    found: dict[int, str] | dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        name = next((row[key] for key in NAME_COLUMNS if row.get(key)), "")
        value = _table_value(path, number, row)
        if not name or value is None:
            raise InputError(
                f"{path}, line {number}: a class needs `name`, and `colour` or `r`, `g` and `b` or `value`. "
                "The first line has the names of the columns."
            )
        if value in found:
            raise InputError(f"{path}, line {number}: the value of {name} is that of another class. Remove one.")
        found[value] = name  # type: ignore[index]
    if not found:
        raise InputError(f"{path} has no classes. It needs a line with the names of the columns, then one per class.")
    return found


def _table_value(path: Path, number: int, row: Mapping[str, str]) -> int | str | None:
    """Return the colour or the value of a class in a table; None if there is neither."""
    bands = [next((row[key] for key in keys if row.get(key)), "") for keys in BAND_COLUMNS]
    colour = next((row[key] for key in COLOUR_COLUMNS if row.get(key)), " ".join(bands) if all(bands) else "")
    value = next((row[key] for key in VALUE_COLUMNS if row.get(key)), "")
    try:
        if colour:
            return format_value(parse_colour(colour), by_colour=True)
        return int(value) if value else None
    except (SettingError, ValueError) as error:
        raise InputError(f"{path}, line {number}: {error}") from error


def format_value(value: float, by_colour: bool) -> str:
    """Return a mask value as text: a number, or a colour as #rrggbb."""
    return f"#{int(value):06x}" if by_colour else f"{value:g}"


def count_values(mask: Image, by_colour: bool) -> Counter[float]:
    """Return the number of pixels of each value or colour of a mask, or of its first rows if it has very many."""
    found: Counter[float] = Counter()
    for window in block_windows(mask.info.grid.window, *STRIP):
        values, counts = np.unique(_read_values(mask, window, by_colour), return_counts=True)
        found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        if len(found) > MAX_DISTINCT:
            break
    return found


def has_colours(mask: Image) -> bool:
    """Return whether the pixels of a mask are colours, not values: three bands of bytes."""
    return mask.info.bands == 3 and mask.info.dtype == "uint8"


def classes_example(folder: Path, per_band: bool) -> str:
    """Return the values or colours in the masks of a folder, and a --classes that declares them.

    Reads the first masks.

    Raises:
        InputError: if the folder is missing or contains no masks, or one of them cannot be read.
    """
    paths = [found[0] for found in files_by_stem(folder).values()]
    with Image.open(paths[0]) as first:
        bands, by_colour = first.info.bands, has_colours(first)
    if per_band or (bands > 1 and not by_colour):
        needed = "" if per_band else " and --overlapping or --fractional"
        example = ",".join(f"{band}=NAME{band}" for band in range(1, bands + 1))
        return f"{paths[0]} has {pluralise(bands, 'band')}: add --classes {example}{needed}, with your names."
    counts: Counter[float] = Counter()
    for path in paths[:SCANNED_MASKS]:
        with Image.open(path) as mask:
            if (mask.info.bands, mask.info.dtype) == (first.info.bands, first.info.dtype):
                counts += count_values(mask, by_colour)
    return f"{_values_found(folder, counts, by_colour)} {_example_sentence(counts, by_colour)}"


def _values_found(folder: Path, counts: Counter[float], by_colour: bool) -> str:
    what = "colours" if by_colour else "values"
    return f"the masks in {folder} have the {what} {_format_counts(counts, by_colour)}."


def _example_sentence(counts: Counter[float], by_colour: bool) -> str:
    """Return what to pass for masks with these values."""
    if len(counts) > MAX_CLASSES:
        return f"These are {len(counts):,} or more, too many for classes: check that this is the folder of the masks."
    # Of two classes the first is the positive one, which is rarely 0 or black.
    values = sorted(counts, reverse=len(counts) == 2)
    names = ["background" if not value else f"NAME{place}" for place, value in enumerate(values, start=1)]
    pairs = [f"{format_value(value, by_colour)}={name}" for value, name in zip(values, names, strict=True)]
    return f'Declare them with your names: --classes "{",".join(pairs)}".'


def _format_counts(counts: Counter[float], by_colour: bool) -> str:
    return (
        join_names(
            (f"{format_value(value, by_colour)} in {count:,}" for value, count in counts.most_common()),
            limit=MAX_LISTED_VALUES,
        )
        + " pixels"
    )


def several_bands_advice(pairs: Sequence[tuple[Path, Path]]) -> str:
    """Return how to use masks with several bands, with the colours of the first one; empty if there is none."""
    for _, path in pairs:
        with Image.open(path) as mask:
            if mask.info.bands == 1:
                continue
            advice = "If each band of a mask is a class, use --overlapping or --fractional."
            if not has_colours(mask):
                return advice
            counts = count_values(mask, by_colour=True)
            found = f"{path.name} has the colours {_format_counts(counts, True)}."
            return f"{found} {_example_sentence(counts, True)} {advice}"
    return ""


def _mismatch(image_path: Path, mask_path: Path, needed: "MaskValues | FractionBands") -> str:
    """Return how a mask does not match its image, as text; empty if it does."""
    with Image.open(image_path) as image, Image.open(mask_path) as mask:
        grid, other = image.info.grid, mask.info.grid
        if fault := _format_fault(mask.info, needed):
            return f"mask {mask_path.name} has {fault}"
        if (grid.height, grid.width) != (other.height, other.width):
            sizes = f"{grid.width} x {grid.height} pixels, its mask {other.width} x {other.height}"
            return f"image {image_path.name} has {sizes}"
        return (
            "" if _same_position(grid, other) else f"mask {mask_path.name} has another CRS or position than its image"
        )


def _format_fault(info: ImageInfo, needed: "MaskValues | FractionBands") -> str:
    """Return what a mask has instead of the bands and dtype that are needed; empty if it has these."""
    if isinstance(needed, FractionBands):
        short = info.bands < needed.min_bands
        return f"{pluralise(info.bands, 'band')}, and band {needed.min_bands} is named as a class" if short else ""
    if needed.by_colour:
        fits = info.bands in (1, 3) and info.dtype == "uint8"
        return "" if fits else f"{pluralise(info.bands, 'band')} of {info.dtype} instead of colours: three of uint8"
    return "" if info.bands == 1 else f"{info.bands} bands instead of one"


def _same_position(grid: Grid, other: Grid) -> bool:
    """Return whether two grids agree to half a pixel; a grid without CRS agrees with any other."""
    if grid.crs is None or other.crs is None:
        return True
    corners = np.array([(0, 0), (grid.width, grid.height)])
    moved = [~grid.transform @ (other.transform @ tuple(corner)) for corner in corners]
    return grid.crs.equals(other.crs, ignore_axis_order=True) and bool((abs(moved - corners) < 0.5).all())


def _read_values(mask: Image, window: Window, by_colour: bool) -> Shaped[ndarray, "h w"]:
    """Return the values of a mask; with `by_colour`, its colours as 0xRRGGBB."""
    bands = mask.read_raw(window)
    if not by_colour:
        values: Shaped[ndarray, "h w"] = bands[0]
        return values
    if mask.info.palette:
        bands = mask.colour_table()[bands[0]].transpose(2, 0, 1)
    red, green, blue = np.broadcast_to(bands, (3, *bands.shape[1:])).astype(np.int32)
    colours: Shaped[ndarray, "h w"] = red << 16 | green << 8 | blue
    return colours


def _indices(
    pixels: Shaped[ndarray, "h w"], declared: MaskValues
) -> tuple[UInt8[ndarray, "h w"], Bool[ndarray, "h w"]]:
    """Return the class index of each pixel, and which pixels have a declared value."""
    pairs = [(value, index) for index, value in enumerate(declared.values)]
    pairs += [] if declared.ignore is None else [(declared.ignore, IGNORE)]
    keys, indices = np.array(sorted(pairs)).T
    places = np.searchsorted(keys, pixels).clip(max=len(keys) - 1)
    return indices.astype(np.uint8)[places], keys[places] == pixels


def _undeclared_values_message(mask: Image, declared: MaskValues) -> str:
    by_colour, ignored = declared.by_colour, () if declared.ignore is None else (declared.ignore,)
    known = (*declared.values, *ignored)
    counts = count_values(mask, by_colour)
    undeclared = Counter({value: count for value, count in counts.items() if value not in known})
    listed = ", ".join(format_value(value, by_colour) for value in sorted(known))
    mixed = (
        " Such colours arise where masks are saved as JPEG or resampled." if by_colour and len(undeclared) > 9 else ""
    )
    return (
        f"{mask.info.path} contains the undeclared {'colours' if by_colour else 'values'} "
        f"{_format_counts(undeclared, by_colour)} (declared: {listed}).{mixed} Declare them as classes with --classes, "
        "ignore one with --ignore, or all with --ignore-undeclared."
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
