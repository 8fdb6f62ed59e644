"""Class maps, probabilities and uncertainty: what files hold, made from strips of blended layers.

A strip's layers are the probability of class 1 for two classes, else of each class; and, for a spread, one more. The
map of classes that overlap has a band for each of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8
from numpy import ndarray

from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.tags import CERTAIN, SCALE_TAG
from geograft.geo.rasters.writer import BLOCK_PX, MapLayout, create_map
from geograft.legend import IGNORE, Legend
from geograft.mapping.blend import Strip
from geograft.mapping.ledger import Ledger

MOST_SPREAD = np.float32(0.5)
"""The largest standard deviation that numbers between 0 and 1 can have."""
CLASSES, PROBABILITIES, UNCERTAINTY = "classes", "probabilities", "uncertainty"
"""Names of a strip's arrays in the ledger."""

Numbers = Literal["uint8", "float16"]


@dataclass(frozen=True)
class Mapped:
    """How many pixels of a map have a value, and how many are of each class: of several at once where these overlap."""

    pixels: int
    by_class: Mapping[str, int]


@dataclass(frozen=True)
class Shares:
    """Numbers from 0 to 1 as a file holds them: bytes of which 250 is 1 and 255 nodata, or half floats with NaN."""

    dtype: Numbers

    @property
    def nodata(self) -> float:
        """What stands where the map has no value."""
        return IGNORE if self.dtype == "uint8" else float("nan")

    @property
    def scale(self) -> str:
        """How the numbers are to be read."""
        return f"0 to {CERTAIN} stand for 0 to 1" if self.dtype == "uint8" else "0 to 1"

    def stored(self, values: Float32[ndarray, "b h w"], strip: Strip) -> Shaped[ndarray, "b h w"]:
        """Return the numbers of a strip's data as the file holds them."""
        scaled = np.rint(values * CERTAIN) if self.dtype == "uint8" else values
        result: ndarray = scaled.astype(self.dtype)
        result[:, ~strip.mapped] = self.nodata
        return result


def class_values(strip: Strip, legend: Legend, cuts: Sequence[float]) -> UInt8[ndarray, "bands h w"]:
    """Return the map's bands of every pixel of a strip's data; 255 where it is not mapped.

    With two classes a pixel is class 1 where its probability is at least the one of `cuts`. With more it is the most
    probable one, the first where two are equal. Each overlapping class has a band: 1 where its probability is at least
    its own of `cuts`, else 0.
    """
    if legend.overlapping:
        values = strip.at_least(*cuts).astype(np.uint8)
    else:
        index = strip.at_least(*cuts)[0] if legend.binary else strip.sums[: legend.outputs].argmax(axis=0)
        values = np.array(legend.values, np.uint8)[index.astype(np.intp)][None]
    values[:, ~strip.mapped] = IGNORE
    return values


def probabilities(strip: Strip, legend: Legend) -> Float32[ndarray, "classes h w"]:
    """Return the probability of every class in a strip's data."""
    layers = strip.layers[: legend.outputs]
    return np.concatenate([1 - layers, layers]) if legend.binary else layers


def entropy(strip: Strip, legend: Legend) -> Float32[ndarray, "1 h w"]:
    """Return the entropy of the class probabilities, divided by the largest that K classes can have, log K: 0 to 1.

    -sum(p log p) / log K, Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x, section 6. Of overlapping classes it
    is that of all their answers, which is the mean over the classes of that of being in the class or not.
    """
    if legend.overlapping:
        each = [_entropy(np.stack([1 - p, p])) for p in probabilities(strip, legend)]
        return np.asarray(np.mean(each, axis=0))
    return _entropy(probabilities(strip, legend))


def _entropy(p: Float32[ndarray, "k h w"]) -> Float32[ndarray, "1 h w"]:
    terms = p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    share: ndarray = -terms.sum(axis=0, keepdims=True) / np.float32(np.log(len(p)))
    return share.clip(0, 1)


def spread(strip: Strip) -> Float32[ndarray, "1 h w"]:
    """Return the last layer, a standard deviation over runs, divided by the largest there can be, 0.5: 0 to 1."""
    return (strip.layers[-1:] / MOST_SPREAD).clip(0, 1)


def write_class_map(path: Path, grid: Grid, ledger: Ledger, legend: Legend, tags: dict[str, str]) -> Mapped:
    """Write a finished ledger's classes as a map, with names and colours, and return what it holds.

    A map of overlapping classes has no colours, for a file has a table for a single band alone.

    Raises:
        OutputError: when the map cannot be written.
    """
    if legend.overlapping:
        layout = MapLayout(len(legend.names), nodata=IGNORE, tags=tags, band_names=legend.names)
        counts = _write(path, grid, ledger, CLASSES, layout)
        return Mapped(int(counts[0, :IGNORE].sum()), dict(zip(legend.names, counts[:, 1].tolist(), strict=True)))
    colours = dict(zip(legend.values, legend.colours, strict=True))
    layout = MapLayout(nodata=IGNORE, colours=colours, tags=tags, band_names=("class",))
    counts = _write(path, grid, ledger, CLASSES, layout)
    pixels = {name: int(counts[0, value]) for name, value in zip(legend.names, legend.values, strict=True)}
    return Mapped(sum(pixels.values()), pixels)


def write_probabilities(
    path: Path, grid: Grid, ledger: Ledger, legend: Legend, dtype: Numbers, tags: dict[str, str]
) -> None:
    """Write a finished ledger's probabilities, one band a class.

    Raises:
        OutputError: when the file cannot be written.
    """
    tags = tags | {SCALE_TAG: f"probability of the class: {Shares(dtype).scale}"}
    _write(path, grid, ledger, PROBABILITIES, _layout(dtype, legend.names, tags))


def write_uncertainty(path: Path, grid: Grid, ledger: Ledger, dtype: Numbers, tags: dict[str, str], what: str) -> None:
    """Write a finished ledger's uncertainty; `what` says in words what 0 to 1 means.

    Raises:
        OutputError: when the file cannot be written.
    """
    tags = tags | {SCALE_TAG: f"{what}: {Shares(dtype).scale}"}
    _write(path, grid, ledger, UNCERTAINTY, _layout(dtype, (UNCERTAINTY,), tags))


def _layout(dtype: Numbers, names: tuple[str, ...], tags: dict[str, str]) -> MapLayout:
    return MapLayout(len(names), dtype, Shares(dtype).nodata, tags=tags, band_names=names, overviews="average")


def _write(path: Path, grid: Grid, ledger: Ledger, name: str, layout: MapLayout) -> Int64[ndarray, "bands 256"]:
    """Write an array of a ledger's strips, and return how often each byte occurs in each band of classes.

    Memory: 512 rows of all bands of a panel. Where strips hold no data, nothing is done.
    """
    counts = np.zeros((layout.bands, IGNORE + 1), np.int64)
    with create_map(path, grid, layout) as writer:
        for window in _windows(grid, ledger):
            blank = np.full((layout.bands, window.height, window.width), layout.nodata, layout.dtype)
            pixels = ledger.read(name, window, blank)
            if name == CLASSES:
                counts += [np.bincount(band.ravel(), minlength=IGNORE + 1) for band in pixels]
            writer.write(pixels.astype(np.float32) if layout.dtype == "float16" else pixels, window)
    return counts


def _windows(grid: Grid, ledger: Ledger) -> Iterator[Window]:
    """Yield windows that hold all data, row of blocks by row of blocks, each as wide as its strips' data."""
    for row in range(0, grid.height, BLOCK_PX):
        for col, width in ledger.panels:
            window = ledger.occupied(Window(row, col, min(BLOCK_PX, grid.height - row), width))
            if window is not None:
                yield window
