"""Class maps, probabilities and uncertainty: from blended strips to the values in files.

The layers of a strip are the probability of the positive class for binary runs, else of each class; followed by the
standard deviation over the runs for an ensemble's uncertainty. A map of overlapping classes has one band per class.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8
from numpy import ndarray

from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.styles import INFERNO, VIRIDIS, overlapping_style, ramp_style
from geograft.geo.rasters.tags import BYTE_SCALE, SCALE_TAG, band_legend
from geograft.geo.rasters.writer import BLOCK_PX, MapLayout, class_layout, create_map
from geograft.legend import IGNORE, Legend
from geograft.mapping.blend import Strip
from geograft.mapping.sums import ArraySums, EncodingDtype

if TYPE_CHECKING:
    from geograft.mapping.device_blend import TensorSums

MAX_STD = np.float32(0.5)
"""Maximum standard deviation of values between 0 and 1."""
CLASSES, PROBABILITIES, UNCERTAINTY = "classes", "probabilities", "uncertainty"
"""Names of a strip's arrays in the ledger."""


@runtime_checkable
class MapValues(Protocol):
    """The values of a finished map's outputs: in a `Ledger`, or in the files of its units."""

    @property
    def panels(self) -> list[tuple[int, int]]:
        """First column and width of adjacent groups of columns, in which values are read fastest."""

    def data_extent(self, window: Window) -> Window | None:
        """Return the part of `window` between the first and the last column with data; None if there is none."""

    def read(self, name: str, window: Window, blank: Shaped[ndarray, "..."]) -> Shaped[ndarray, "..."]:
        """Return the array `name` in `window`, and the values of `blank`, of the same shape, where there is none."""


@dataclass(frozen=True)
class PixelCounts:
    """Number of pixels of a map that have a value, and number per class. Overlapping classes share pixels."""

    pixels: int
    by_class: Mapping[str, int]


@dataclass(frozen=True)
class ProbabilityEncoding:
    """Encoding of values from 0 to 1 in a file: uint8 with 250 for 1 and 255 for nodata, or float16 with NaN."""

    dtype: EncodingDtype

    @property
    def nodata(self) -> float:
        """The nodata value."""
        return IGNORE if self.dtype == "uint8" else float("nan")

    @property
    def maximum(self) -> int:
        """The value that represents 1."""
        return BYTE_SCALE if self.dtype == "uint8" else 1

    @property
    def scale(self) -> str:
        """Meaning of the values, for the file's metadata."""
        return f"0 to {BYTE_SCALE} stand for 0 to 1" if self.dtype == "uint8" else "0 to 1"

    def encode(self, values: Float32[ndarray, "b h w"], strip: Strip) -> Shaped[ndarray, "b h w"]:
        """Return the encoded values of a strip's data, nodata where it is not mapped."""
        scaled = np.rint(values * BYTE_SCALE) if self.dtype == "uint8" else values
        result: ndarray = scaled.astype(self.dtype)
        result[:, ~strip.mapped] = self.nodata
        return result

    def encode_probabilities(self, strip: Strip, legend: Legend) -> Shaped[ndarray, "classes h w"]:
        """Return the encoded probability of every class; on a GPU they are encoded there."""
        found = strip.sums.encoded_probabilities(legend.outputs, legend.binary, self.dtype, self.maximum)
        found[:, ~strip.mapped] = self.nodata
        return found


def class_values(strip: Strip, legend: Legend, thresholds: Sequence[float]) -> UInt8[ndarray, "bands h w"]:
    """Return the bands of the class map in a strip's data; 255 where it is not mapped.

    Binary: the positive class where its probability reaches the threshold. Several classes: the most probable one, the
    first of equal ones. Overlapping classes: one band per class, 1 where its probability reaches its threshold, else 0.
    """
    values = class_indices(strip.sums, legend, thresholds)
    if not legend.overlapping:
        values = np.array(legend.values, np.uint8)[values]
    values[:, ~strip.mapped] = IGNORE
    return values


def class_indices(
    sums: "ArraySums | TensorSums", legend: Legend, thresholds: Sequence[float]
) -> UInt8[ndarray, "bands h w"]:
    """Return the same classes as indices into the legend, also where a strip's data is not mapped."""
    if legend.overlapping or legend.binary:
        reached: UInt8[ndarray, "bands h w"] = sums.at_least(*thresholds).astype(np.uint8)
        return reached
    return sums.most_probable(legend.outputs)[None]


def class_probabilities(strip: Strip, legend: Legend) -> Float32[ndarray, "classes h w"]:
    """Return the probability of every class in a strip's data."""
    return strip.sums.probabilities(legend.outputs, legend.binary)


def class_entropy(strip: Strip, legend: Legend) -> Float32[ndarray, "1 h w"]:
    """Return the entropy of the class probabilities divided by its maximum for K classes, log K: 0 to 1.

    -sum(p log p) / log K, Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x, section 6. For overlapping classes
    the mean over the classes of the binary entropy.
    """
    if legend.overlapping:
        each = [entropy(np.stack([1 - p, p])) for p in class_probabilities(strip, legend)]
        return sum_classes(np.concatenate(each)) / np.float32(len(each))
    return entropy(class_probabilities(strip, legend))


def class_margin(strip: Strip, legend: Legend) -> Float32[ndarray, "1 h w"]:
    """Return 1 - the difference of the two largest probabilities: 1 where two classes are equally likely.

    Scheffer, Decomain and Wrobel (2001), doi:10.1007/3-540-44816-0_31. For overlapping classes the mean over the
    classes of the binary margin.
    """
    probabilities = class_probabilities(strip, legend)
    if legend.overlapping:
        return sum_classes(1 - np.abs(2 * probabilities - 1)) / np.float32(len(probabilities))
    ranked = np.sort(probabilities, axis=0)
    closeness: ndarray = 1 - (ranked[-1:] - ranked[-2:-1])
    return closeness.clip(0, 1)


def entropy(p: Float32[ndarray, "k h w"]) -> Float32[ndarray, "1 h w"]:
    """Return the entropy of the probabilities of K classes divided by log K."""
    terms = p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    normalised: ndarray = -sum_classes(terms) / np.float32(np.log(len(p)))
    return normalised.clip(0, 1)


def sum_classes(values: Float32[ndarray, "k h w"]) -> Float32[ndarray, "1 h w"]:
    """Return the sum over the classes, added in their order.

    So a pixel's value does not depend on the strip that it is in: NumPy's sum of eight or more values has another order
    where there is a single pixel.
    """
    total = values[:1].copy()
    for each in values[1:]:
        total += each
    return total


def ensemble_std(strip: Strip) -> Float32[ndarray, "1 h w"]:
    """Return the last layer, the standard deviation over the runs, divided by its maximum 0.5: 0 to 1."""
    return (strip.sums.layers(slice(-1, None)) / MAX_STD).clip(0, 1)


def write_class_map(path: Path, grid: Grid, values: MapValues, legend: Legend, tags: dict[str, str]) -> PixelCounts:
    """Write the class map, with names and colours, and return its pixel counts.

    GeoTIFF supports a colour table for single-band files only: a map of overlapping classes has a style for QGIS.

    Raises:
        OutputError: if the map cannot be written.
    """
    if legend.overlapping:
        names = tuple(dict(enumerate(band_legend(name).names)) for name in legend.names)
        style = overlapping_style(len(legend.names))
        layout = MapLayout(len(names), nodata=IGNORE, tags=tags, band_names=legend.names, categories=names, style=style)
        counts = _write(path, grid, values, CLASSES, layout)
        return PixelCounts(int(counts[0, :IGNORE].sum()), dict(zip(legend.names, counts[:, 1].tolist(), strict=True)))
    counts = _write(path, grid, values, CLASSES, class_layout(legend, legend.values, tags))
    pixels = {name: int(counts[0, value]) for name, value in zip(legend.names, legend.values, strict=True)}
    return PixelCounts(sum(pixels.values()), pixels)


def write_probabilities(
    path: Path, grid: Grid, values: MapValues, legend: Legend, dtype: EncodingDtype, tags: dict[str, str]
) -> None:
    """Write the probabilities, one band per class.

    Raises:
        OutputError: if the file cannot be written.
    """
    tags = tags | {SCALE_TAG: f"probability of the class: {ProbabilityEncoding(dtype).scale}"}
    # The second band of a binary map is the positive class.
    style = ramp_style(2 if legend.binary else 1, ProbabilityEncoding(dtype).maximum, VIRIDIS)
    _write(path, grid, values, PROBABILITIES, _layout(dtype, legend.names, tags, style))


def write_uncertainty(
    path: Path, grid: Grid, values: MapValues, dtype: EncodingDtype, tags: dict[str, str], what: str
) -> None:
    """Write the uncertainty; `what` describes the measure in the file's metadata.

    Raises:
        OutputError: if the file cannot be written.
    """
    tags = tags | {SCALE_TAG: f"{what}: {ProbabilityEncoding(dtype).scale}"}
    style = ramp_style(1, ProbabilityEncoding(dtype).maximum, INFERNO)
    _write(path, grid, values, UNCERTAINTY, _layout(dtype, (UNCERTAINTY,), tags, style))


def _layout(dtype: EncodingDtype, names: tuple[str, ...], tags: dict[str, str], style: str) -> MapLayout:
    nodata = ProbabilityEncoding(dtype).nodata
    return MapLayout(len(names), dtype, nodata, tags=tags, band_names=names, overviews="average", style=style)


def _write(path: Path, grid: Grid, values: MapValues, name: str, layout: MapLayout) -> Int64[ndarray, "bands 256"]:
    """Write an array of a map, and return the histogram of each band of a class map.

    Memory: 512 rows of all bands of a panel. Areas without data are skipped.
    """
    counts = np.zeros((layout.bands, IGNORE + 1), np.int64)
    with create_map(path, grid, layout) as writer:
        for window in _windows(grid, values):
            blank = np.full((layout.bands, window.height, window.width), layout.nodata, layout.dtype)
            pixels = values.read(name, window, blank)
            if name == CLASSES:
                counts += [np.bincount(band.ravel(), minlength=IGNORE + 1) for band in pixels]
            writer.write(pixels.astype(np.float32) if layout.dtype == "float16" else pixels, window)
    return counts


def _windows(grid: Grid, values: MapValues) -> Iterator[Window]:
    """Yield windows that cover all data, by rows of blocks and panels, each as wide as the data of its strips."""
    for row in range(0, grid.height, BLOCK_PX):
        for col, width in values.panels:
            window = values.data_extent(Window(row, col, min(BLOCK_PX, grid.height - row), width))
            if window is not None:
                yield window
