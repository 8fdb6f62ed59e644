"""What a scene looks like at a glance: where its edges run, on 64 x 64 cells, whatever its size, date and brightness.

Two images of the same ground differ in colour, haze and season; the lines between field and wood stay where they are.
So every cell holds the direction of the edges in it, not their sign: twice the angle of the gradient, weighted by its
strength (the structure tensor, Bigun & Granlund 1987, "Optimal orientation detection of linear symmetry", ICCV;
summed over bands as Di Zenzo 1986 does). Label masks are treated as images of one band a class.
"""

from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Complex128, Float64, Int8, Shaped, UInt8
from numpy import ndarray

from geograft.errors import InputError
from geograft.files import replacing
from geograft.geo.grid import Window
from geograft.labels import decoded
from geograft.legend import IGNORE

STRUCTURE = "structure.npy"
"""Name of the file in a tile set."""
SIDE = 64
FULL = 127.0
"""What stands for 1 in eight bits."""


class Thumbnail:
    """Means over the valid pixels of 64 x 64 cells of a scene, gathered window by window. 130 kB a band."""

    def __init__(self, bands: int, height: int, width: int) -> None:
        self._rows, self._cols = (np.arange(SIDE + 1) * length // SIDE for length in (height, width))
        self._sums = np.zeros((bands, SIDE, SIDE))
        self._pixels = np.zeros((SIDE, SIDE))

    def add(self, bands: Iterable[Shaped[ndarray, "h w"]], valid: Bool[ndarray, "h w"], window: Window) -> None:
        """Count the pixels of a window inside the scene; those that are not valid must be 0. No pixel comes twice."""
        rows, row_cells = _pieces(self._rows, window.row, window.stop_row)
        cols, col_cells = _pieces(self._cols, window.col, window.stop_col)
        place = np.ix_(row_cells, col_cells)
        for total, band in zip((*self._sums, self._pixels), chain(bands, [valid]), strict=True):
            total[place] += np.add.reduceat(np.add.reduceat(band, rows, axis=0, dtype=np.float64), cols, axis=1)

    def means(self) -> tuple[Float64[ndarray, "b 64 64"], Bool[ndarray, "64 64"]]:
        """Return the mean of every cell, and which cells are known: at least half of their pixels are valid."""
        area = np.outer(np.diff(self._rows), np.diff(self._cols))
        return self._sums / np.maximum(self._pixels, 1), (self._pixels * 2 >= area) & (area > 0)


def image_structure(thumbnail: Thumbnail) -> Int8[ndarray, "2 64 64"]:
    """Return the structure of an image: every band is brought to unit variance first, and weighs the same."""
    means, known = thumbnail.means()
    inside = means[:, known] if known.any() else np.zeros((len(means), 1))
    middle, spread = inside.mean(axis=1)[:, None, None], inside.std(axis=1)[:, None, None]
    return structure(np.where(known, means - middle, 0) / np.where(spread > 0, spread, 1), known)


def label_structure(thumbnail: Thumbnail) -> Int8[ndarray, "2 64 64"]:
    """Return the structure of a label mask, one band a class."""
    return structure(*thumbnail.means())


class Looks:
    """The structure of a scene's image and of its labels, gathered window by window while they are read.

    `layers` are the bands of labels that are looked at: one a class, without the first where classes exclude each
    other, for its edges are those of the others.
    """

    def __init__(self, bands: int, layers: int, height: int, width: int) -> None:
        self._image = Thumbnail(bands, height, width)
        self._labels = Thumbnail(layers, height, width)
        self._layers = layers

    def add(
        self,
        pixels: Shaped[ndarray, "b h w"],
        valid: Bool[ndarray, "h w"],
        labels: UInt8[ndarray, "h w"] | UInt8[ndarray, "o h w"],
        window: Window,
    ) -> None:
        """Count a window: pixels, 0 where not valid, and class indices or shares in 250ths, 255 where not labelled."""
        self._image.add(pixels, valid, window)
        if labels.ndim == 2:
            here = (labels == index for index in range(1, self._layers + 1))
            self._labels.add(here, labels != IGNORE, window)
        else:
            shares = np.nan_to_num(decoded(labels[-self._layers :]))
            self._labels.add(shares, (labels != IGNORE).any(axis=0), window)

    def structures(self) -> Int8[ndarray, "2 2 64 64"]:
        """Return the structure of the image, then that of the labels."""
        return np.stack([image_structure(self._image), label_structure(self._labels)])


def write_structures(path: Path, looks: Int8[ndarray, "n 2 2 64 64"]) -> None:
    """Write the structures of n scenes, whole or not at all. 16 kB a scene.

    Raises:
        OutputError: when it cannot be written.
    """
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, looks, allow_pickle=False)


def read_structures(path: Path) -> Int8[ndarray, "n 2 2 64 64"] | None:
    """Return the structures that `write_structures` wrote; None where there is no such file.

    Raises:
        InputError: when the file is something else.
    """
    if not path.is_file():
        return None
    try:
        looks: ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}. Remove it, or prepare the tile set again.") from error
    if looks.dtype != np.int8 or looks.shape[1:] != (2, 2, SIDE, SIDE):
        raise InputError(f"{path} holds no structures. Remove it, or prepare the tile set again.")
    return looks


def structure(bands: Float64[ndarray, "b 64 64"], known: Bool[ndarray, "64 64"]) -> Int8[ndarray, "2 64 64"]:
    """Return the edges of every cell as cosine and sine of twice their direction, times a strength from 0 to 1.

    In steps of 1/127. Strength saturates, so that a few strong edges do not decide alone; 0 in and beside unknown
    cells. The mean over the scene is taken away: two towns with streets to the north are not the same town.
    """
    along, across = np.gradient(bands, axis=(1, 2))
    tensor: Complex128[ndarray, "64 64"] = ((across + 1j * along) ** 2).sum(axis=0)
    inner = _inner(known)
    strength = np.abs(tensor)
    typical = strength[inner].mean() if inner.any() else 0.0
    soft = np.where(inner & (strength > 0), tensor / (strength + typical + 1e-300), 0)
    soft = np.where(inner, soft - soft[inner].mean() if inner.any() else 0, 0)
    # The mean taken away may carry a value past 1 by as much as the mean.
    parts = np.clip(np.stack([soft.real, soft.imag]), -1, 1)
    whole: Int8[ndarray, "2 64 64"] = np.rint(parts * FULL).astype(np.int8)
    return whole


def _inner(known: Bool[ndarray, "64 64"]) -> Bool[ndarray, "64 64"]:
    """Return the cells whose four neighbours are known: beside others a difference would show the mask's own edge."""
    wide = np.pad(known, 1)
    inner: Bool[ndarray, "64 64"] = known & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]
    return inner


def _pieces(edges: Shaped[ndarray, " _"], start: int, stop: int) -> tuple[list[int], list[int]]:
    """Return where cells begin within [start, stop), counted from `start`, and which cells those are."""
    found = [
        (max(low, start) - start, cell)
        for cell, (low, high) in enumerate(pairwise(edges.tolist()))
        if max(low, start) < min(high, stop)
    ]
    return [first for first, _ in found], [cell for _, cell in found]
