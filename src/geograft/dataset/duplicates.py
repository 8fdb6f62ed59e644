"""Which scenes show the same ground without anybody having said so.

What a scene looks like at a glance: where its edges run, on 64 x 64 cells, whatever its size, date and brightness.

Two images of the same ground differ in colour, haze and season; the lines between field and wood stay where they are.
So every cell holds the direction of the edges in it, not their sign: twice the angle of the gradient, weighted by its
strength (the structure tensor, Bigun & Granlund 1987, "Optimal orientation detection of linear symmetry", ICCV;
summed over bands as Di Zenzo 1986 does). Label masks are treated as images of one band a class.

The same ground under two names: pairs of scenes whose structure agrees, at some shift.

Two structures are laid over each other at every shift at which half of the scene still overlaps, and correlated over
the cells that overlap (normalised cross-correlation by FFT, Padfield 2012, "Masked object registration in the Fourier
domain", IEEE Trans. Image Process. 21(5)). Scenes of the same ground at the same extent reach 0.6 to 1;
what is needed of a pair follows from how much structure the two have, see `Match.needed`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import scipy.fft
from jaxtyping import Bool, Complex64, Complex128, Float32, Float64, Int8, Shaped, UInt8
from numpy import ndarray

from geograft.dataset.neighbours import Outlines, on_mercator, shared_ground
from geograft.dataset.scenes import LabelledScene
from geograft.errors import InputError
from geograft.files import replacing
from geograft.geo.grid import Window
from geograft.geo.vectors.outlines import outlines
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


LEAST_OVERLAP = 0.5
"""Share of a scene that must lie on the other."""
LEAST_SIMILARITY = 0.35
CLEAR = 1.5
"""The best shift is at least this many times better than the best one elsewhere: rows of an orchard fit many times."""
STANDARD_ERRORS = 10.0
COARSE = 0.25
"""What a pair must reach on 32 x 32 cells to be looked at closely; pairs of the same ground reach 0.6."""
AT_ONCE = 128
NEAR = 3
"""Cells around the best shift that belong to it."""


@dataclass(frozen=True)
class Match:
    """How well two structures agree at their best shift."""

    left: int
    right: int
    similarity: float
    """Correlation over the overlap, -1 to 1."""
    needed: float
    """What it takes to call two scenes the same ground: 0.35, or more where there is little structure.

    10 / sqrt(n) with n the effective number of cells that hold structure in the overlap, (sum w)^2 / sum w^2 of their
    squared strengths w. An edge runs through about four cells, so that unrelated structures correlate with a standard
    error of sqrt(4 / 2n). This is seven of them, for straight roads alone resemble each other more than chance has it.
    """
    runner_up: float
    """The best correlation at any shift farther than three cells away."""
    shift: tuple[float, float]
    """Where the right scene's upper left corner lies on the left scene, in shares of its height and width."""

    @property
    def same_ground(self) -> bool:
        """Whether the two show the same ground."""
        return self.similarity >= max(self.needed, CLEAR * self.runner_up)


def matches_among(looks: Int8[ndarray, "n 2 64 64"]) -> list[Match]:
    """Return the pairs that show the same ground, left before right; see `matches`. Half a minute for 1,000 scenes."""
    return [
        found
        for i, j in candidates(looks, looks, distinct=True)
        if (found := match(looks[i], looks[j], (i, j))) is not None and found.same_ground
    ]


def matches(left: Int8[ndarray, "n 2 64 64"], right: Int8[ndarray, "m 2 64 64"]) -> list[Match]:
    """Return the pairs, one of each, that show the same ground; see `match`.

    All pairs are compared on 32 x 32 cells first. Half a minute for 500,000 pairs on one core; memory: 16 kB a scene
    and 10 MB.
    """
    return [
        found
        for i, j in candidates(left, right)
        if (found := match(left[i], right[j], (i, j))) is not None and found.same_ground
    ]


def candidates(
    left: Int8[ndarray, "n 2 64 64"], right: Int8[ndarray, "m 2 64 64"], distinct: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield the pairs that are alike enough on 32 x 32 cells to be looked at closely.

    With `distinct`, only those whose right one has the larger number.
    """
    mine, theirs = _coarse(left), _coarse(right)
    weights = 1 / np.where(_allowed(SIDE // 2), _overlap(SIDE // 2), np.inf)
    for first in range(0, len(theirs), AT_ONCE):
        for i, one in enumerate(mine):
            start = max(first, i + 1) if distinct else first
            product = (one * theirs[start : first + AT_ONCE].conj()).sum(axis=1)
            best = (scipy.fft.irfft2(product, s=(SIDE, SIDE)) * weights).max(axis=(1, 2), initial=0)
            for j in np.flatnonzero(best >= COARSE) if len(best) else ():
                yield i, start + int(j)


def match(
    left: Int8[ndarray, "2 64 64"], right: Int8[ndarray, "2 64 64"], names: tuple[int, int] = (0, 0)
) -> Match | None:
    """Return how well two structures agree at the best shift; None where one of them has no structure at all."""
    mine, theirs = (part.astype(np.float32) / np.float32(FULL) for part in (left, right))
    if not mine.any() or not theirs.any():
        return None
    energies = [_over_shifts(w, np.ones_like(w)) for w in (_power(mine), _power(theirs))]
    energies[1] = np.roll(energies[1][::-1, ::-1], 1, axis=(0, 1))
    product = sum((_over_shifts(a, b) for a, b in zip(mine, theirs, strict=True)), np.zeros_like(energies[0]))
    scale = np.sqrt(np.maximum(energies[0], 0) * np.maximum(energies[1], 0))
    # Rounding leaves a breath of energy where there is none.
    usable = _allowed(SIDE) & (scale > 1e-3)
    similar = np.where(usable, product / np.where(usable, scale, 1), -1)
    place = np.unravel_index(int(similar.argmax()), similar.shape)
    row, col = (int((index + SIDE) % (2 * SIDE) - SIDE) for index in place)
    cells = min(
        _cells(one) * float(energy[place]) / float(_power(one).sum())
        for one, energy in zip((mine, theirs), energies, strict=True)
    )
    return Match(
        *names,
        similarity=float(similar[place]),
        needed=max(LEAST_SIMILARITY, STANDARD_ERRORS / float(np.sqrt(max(cells, 1e-9)))),
        runner_up=float(np.roll(similar, (NEAR - place[0], NEAR - place[1]), axis=(0, 1))[_elsewhere()].max()),
        shift=(row / SIDE, col / SIDE),
    )


def _power(parts: Float32[ndarray, "2 n n"]) -> Float32[ndarray, "n n"]:
    power: Float32[ndarray, "n n"] = (parts**2).sum(axis=0)
    return power


def _cells(parts: Float32[ndarray, "2 n n"]) -> float:
    """Return the effective number of cells that hold structure."""
    power = _power(parts).astype(float)
    return float(power.sum() ** 2 / (power**2).sum())


def _over_shifts(left: Float32[ndarray, "n n"], right: Float32[ndarray, "n n"]) -> Float32[ndarray, "k k"]:
    """Return the sum of left(x + shift) * right(x) for every shift, negative ones at the end."""
    shape = (2 * left.shape[0], 2 * left.shape[1])
    product = scipy.fft.rfft2(left, s=shape) * scipy.fft.rfft2(right, s=shape).conj()
    summed: Float32[ndarray, "k k"] = scipy.fft.irfft2(product, s=shape)
    return summed


def _coarse(parts: Int8[ndarray, "n 2 64 64"]) -> Complex64[ndarray, "n 2 64 33"]:
    """Return the spectra of the structures on half as many cells, of unit energy each, padded for free shifts."""
    half = SIDE // 2
    small = parts.reshape(len(parts), 2, half, 2, half, 2).mean(axis=(3, 5), dtype=np.float32)
    energy = np.sqrt((small**2).sum(axis=(1, 2, 3), keepdims=True))
    spectra: Complex64[ndarray, "n 2 64 33"] = scipy.fft.rfft2(small / np.maximum(energy, 1e-6), s=(SIDE, SIDE))
    return spectra


def _overlap(side: int) -> Float32[ndarray, "k k"]:
    """Return the share of `side` x `side` cells that overlap at every shift."""
    steps = np.abs((np.arange(2 * side) + side) % (2 * side) - side)
    line = ((side - steps) / side).astype(np.float32)
    share: Float32[ndarray, "k k"] = np.outer(line, line)
    return share


def _allowed(side: int) -> Bool[ndarray, "k k"]:
    allowed: Bool[ndarray, "k k"] = _overlap(side) >= LEAST_OVERLAP
    return allowed


def _elsewhere() -> Bool[ndarray, "128 128"]:
    """Return all shifts but those near the one that was rolled to (NEAR, NEAR)."""
    far = np.ones((2 * SIDE, 2 * SIDE), bool)
    far[: 2 * NEAR + 1, : 2 * NEAR + 1] = False
    return far


def same_ground(scenes: Sequence[LabelledScene], looks: Int8[ndarray, "n 2 2 64 64"] | None) -> list[tuple[str, str]]:
    """Return the pairs of scenes of different groups that show the same ground, at least a hundredth of one of them.

    By where they lie, where all have a CRS; otherwise by what images or labels look like, see `duplicates`,
    and not at all without `looks`. 1,000 scenes with a CRS take a second, without one a minute.
    """
    shapes, crs = outlines(
        [(scene.name, scene.info.grid.window) for scene in scenes], {scene.name: scene.info.grid for scene in scenes}
    )
    if crs is not None:
        places = Outlines(on_mercator(np.array(shapes, object), crs)[0], np.arange(len(scenes)))
        found = {(i, j) for i, j in shared_ground(places, places)[1].tolist()}
    elif looks is not None:
        found = {(one.left, one.right) for part in (0, 1) for one in matches_among(looks[:, part])}
    else:
        found = set()
    pairs = {(min(pair), max(pair)) for pair in found}
    return [(scenes[i].name, scenes[j].name) for i, j in sorted(pairs) if scenes[i].group != scenes[j].group]
