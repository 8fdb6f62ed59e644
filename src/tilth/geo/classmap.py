"""Class maps and probabilities as files hold them, from strips of blended probabilities."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from tilth.geo.blend import Strip
from tilth.geo.grid import Grid, Window
from tilth.geo.ledger import Ledger
from tilth.geo.rasterout import BLOCK_PX, MapLayout, create_map
from tilth.legend import IGNORE, Legend

CERTAIN = 250
"""What stands for probability 1 in a file of probabilities."""
CLASSES, PROBABILITIES = "classes", "probabilities"
"""Names of a strip's arrays in the ledger."""


def class_values(strip: Strip, legend: Legend, threshold: float) -> UInt8[ndarray, "h w"]:
    """Return the map's value of every pixel of a strip; 255 where it is not valid.

    With two classes the strip holds the probability of class 1, which a pixel is from `threshold` on. With more it is
    the most probable one, the first where two are equal.
    """
    index = strip.at_least(threshold)[0] if legend.binary else strip.sums.argmax(axis=0)
    values: ndarray = np.array(legend.values, np.uint8)[index.astype(np.intp)]
    values[~strip.valid] = IGNORE
    return values


def probability_bytes(strip: Strip, legend: Legend) -> UInt8[ndarray, "classes h w"]:
    """Return the probability of every class, 0 to 250 for 0 to 1; 255 where a pixel is not valid."""
    scaled = np.rint(strip.probabilities * CERTAIN).astype(np.uint8)
    every = np.concatenate([CERTAIN - scaled, scaled]) if legend.binary else scaled
    every[:, ~strip.valid] = IGNORE
    return every


def class_pixels(ledger: Ledger, legend: Legend) -> dict[str, int]:
    """Return the number of pixels by class name in a ledger's strips; those that are not valid are left out."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for _, values in ledger.bands(CLASSES, BLOCK_PX):
        counts += np.bincount(values.ravel(), minlength=IGNORE + 1)
    return {name: int(counts[value]) for name, value in zip(legend.names, legend.values, strict=True)}


def write_class_map(path: Path, grid: Grid, ledger: Ledger, legend: Legend, tags: dict[str, str]) -> None:
    """Write a finished ledger's classes as a map, with names and colours.

    Raises:
        OutputError: when the map cannot be written.
    """
    colours = dict(zip(legend.values, legend.colours, strict=True))
    layout = MapLayout(nodata=IGNORE, colours=colours, tags=tags, band_names=("class",))
    with create_map(path, grid, layout) as writer:
        for row, values in ledger.bands(CLASSES, BLOCK_PX):
            writer.write(values[None], Window(row, 0, values.shape[0], grid.width))


def write_probabilities(path: Path, grid: Grid, ledger: Ledger, legend: Legend, tags: dict[str, str]) -> None:
    """Write a finished ledger's probabilities, one band a class.

    Memory: 512 rows of all classes, one byte each.

    Raises:
        OutputError: when the file cannot be written.
    """
    layout = MapLayout(len(legend.names), nodata=IGNORE, tags=tags, band_names=legend.names, overviews="average")
    with create_map(path, grid, layout) as writer:
        for row, values in ledger.bands(PROBABILITIES, BLOCK_PX):
            writer.write(values, Window(row, 0, values.shape[1], grid.width))
