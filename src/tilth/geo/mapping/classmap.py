"""Class maps, probabilities and uncertainty: what files hold, made from strips of blended layers.

A strip's layers are the probability of class 1 for two classes, else of each class; and, for a spread, one more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, Shaped, UInt8
from numpy import ndarray

from tilth.geo.grid import Grid, Window
from tilth.geo.mapping.blend import Strip
from tilth.geo.mapping.ledger import Ledger
from tilth.geo.rasters.maptags import CERTAIN, SCALE_TAG
from tilth.geo.rasters.rasterout import BLOCK_PX, MapLayout, create_map
from tilth.legend import IGNORE, Legend

MOST_SPREAD = np.float32(0.5)
"""The largest standard deviation that numbers between 0 and 1 can have."""
CLASSES, PROBABILITIES, UNCERTAINTY = "classes", "probabilities", "uncertainty"
"""Names of a strip's arrays in the ledger."""

Numbers = Literal["uint8", "float16"]


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


def class_values(strip: Strip, legend: Legend, threshold: float) -> UInt8[ndarray, "h w"]:
    """Return the map's value of every pixel of a strip's data; 255 where it is not mapped.

    With two classes a pixel is class 1 where its probability is at least `threshold`. With more it is the most probable
    one, the first where two are equal.
    """
    index = strip.at_least(threshold)[0] if legend.binary else strip.sums[: legend.outputs].argmax(axis=0)
    values: ndarray = np.array(legend.values, np.uint8)[index.astype(np.intp)]
    values[~strip.mapped] = IGNORE
    return values


def probabilities(strip: Strip, legend: Legend) -> Float32[ndarray, "classes h w"]:
    """Return the probability of every class in a strip's data."""
    layers = strip.layers[: legend.outputs]
    return np.concatenate([1 - layers, layers]) if legend.binary else layers


def entropy(strip: Strip, legend: Legend) -> Float32[ndarray, "1 h w"]:
    """Return the entropy of the class probabilities, divided by the largest that K classes can have, log K: 0 to 1.

    -sum(p log p) / log K, Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x, section 6.
    """
    p = probabilities(strip, legend)
    terms = p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
    share: ndarray = -terms.sum(axis=0, keepdims=True) / np.float32(np.log(len(legend.names)))
    return share.clip(0, 1)


def spread(strip: Strip) -> Float32[ndarray, "1 h w"]:
    """Return the last layer, a standard deviation over runs, divided by the largest there can be, 0.5: 0 to 1."""
    return (strip.layers[-1:] / MOST_SPREAD).clip(0, 1)


def write_class_map(path: Path, grid: Grid, ledger: Ledger, legend: Legend, tags: dict[str, str]) -> dict[str, int]:
    """Write a finished ledger's classes as a map, with names and colours; return the mapped pixels by class name.

    Raises:
        OutputError: when the map cannot be written.
    """
    colours = dict(zip(legend.values, legend.colours, strict=True))
    layout = MapLayout(nodata=IGNORE, colours=colours, tags=tags, band_names=("class",))
    counts = _write(path, grid, ledger, CLASSES, layout)
    return {name: int(counts[value]) for name, value in zip(legend.names, legend.values, strict=True)}


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


def _write(path: Path, grid: Grid, ledger: Ledger, name: str, layout: MapLayout) -> Int64[ndarray, " 256"]:
    """Write an array of a ledger's strips, and return how often each byte occurs in it.

    Memory: 512 rows of all bands of a panel. Where strips hold no data, nothing is done.
    """
    counts = np.zeros(IGNORE + 1, np.int64)
    flat = name == CLASSES
    with create_map(path, grid, layout) as writer:
        for window in _windows(grid, ledger):
            shape = (window.height, window.width)
            blank = np.full(shape if flat else (layout.bands, *shape), layout.nodata, layout.dtype)
            pixels = ledger.read(name, window, blank)
            if flat:
                counts += np.bincount(pixels.ravel(), minlength=len(counts))
                pixels = pixels[None]
            writer.write(pixels.astype(np.float32) if layout.dtype == "float16" else pixels, window)
    return counts


def _windows(grid: Grid, ledger: Ledger) -> Iterator[Window]:
    """Yield windows that hold all data, row of blocks by row of blocks, each as wide as its strips' data."""
    for row in range(0, grid.height, BLOCK_PX):
        for col, width in ledger.panels:
            window = ledger.occupied(Window(row, col, min(BLOCK_PX, grid.height - row), width))
            if window is not None:
                yield window
