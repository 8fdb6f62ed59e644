"""Duplicate scenes: find scenes that show the same area although they are not in one group.

The structure of a scene is the orientation of its edges on 64 x 64 cells, whatever its size, date and brightness. Two
images of the same area differ in colour, haze and season, but edges such as field boundaries stay in place. So each
cell has the orientation of its edges without their sign: twice the angle of the gradient, weighted by its strength
(the structure tensor, Bigun & Granlund 1987, "Optimal orientation detection of linear symmetry", ICCV; summed over
bands as in Di Zenzo 1986). Label masks are treated as images with one band per class.

Two structures are compared at every shift at which at least half of the scene overlaps, by normalised cross-correlation
over the overlapping cells (FFT; Padfield 2012, "Masked object registration in the Fourier domain", IEEE Trans. Image
Process. 21(5)). Scenes of the same area and extent reach 0.6 to 1; the threshold depends on how much structure the two
scenes have, see `Match.threshold`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import scipy.fft
from jaxtyping import Bool, Complex64, Complex128, Float32, Float64, Int8, Shaped, UInt8
from numpy import ndarray

from geograft.dataset.neighbours import Outlines, project_to_mercator, shared_area
from geograft.dataset.scenes import LabelledScene
from geograft.errors import InputError
from geograft.files import atomic_write
from geograft.geo.grid import Window
from geograft.geo.vectors.writer import tile_outlines
from geograft.labels import decode_fractions
from geograft.legend import IGNORE

STRUCTURE = "structure.npy"
"""File name in a tile set."""
CELLS = 64
INT8_SCALE = 127.0
"""The int8 value that stands for 1."""


class Thumbnail:
    """Means over the valid pixels of 64 x 64 cells of a scene, accumulated by window. 130 kB per band."""

    def __init__(self, bands: int, height: int, width: int) -> None:
        self._rows, self._cols = (np.arange(CELLS + 1) * length // CELLS for length in (height, width))
        self._sums = np.zeros((bands, CELLS, CELLS))
        self._pixels = np.zeros((CELLS, CELLS))

    def add(self, bands: Iterable[Shaped[ndarray, "h w"]], valid: Bool[ndarray, "h w"], window: Window) -> None:
        """Add a window of the scene. Pixels that are not valid must be 0. Windows must not overlap."""
        rows, row_cells = _pieces(self._rows, window.row, window.stop_row)
        cols, col_cells = _pieces(self._cols, window.col, window.stop_col)
        place = np.ix_(row_cells, col_cells)
        for total, band in zip((*self._sums, self._pixels), chain(bands, [valid]), strict=True):
            total[place] += np.add.reduceat(np.add.reduceat(band, rows, axis=0, dtype=np.float64), cols, axis=1)

    def means(self) -> tuple[Float64[ndarray, "b 64 64"], Bool[ndarray, "64 64"]]:
        """Return the mean of each cell, and which cells are known: at least half of their pixels are valid."""
        area = np.outer(np.diff(self._rows), np.diff(self._cols))
        return self._sums / np.maximum(self._pixels, 1), (self._pixels * 2 >= area) & (area > 0)


def image_structure(thumbnail: Thumbnail) -> Int8[ndarray, "2 64 64"]:
    """Return the structure of an image. Bands are standardised first, so all have equal weight."""
    means, known = thumbnail.means()
    inside = means[:, known] if known.any() else np.zeros((len(means), 1))
    mean, std = inside.mean(axis=1)[:, None, None], inside.std(axis=1)[:, None, None]
    return structure_tensor(np.where(known, means - mean, 0) / np.where(std > 0, std, 1), known)


def label_structure(thumbnail: Thumbnail) -> Int8[ndarray, "2 64 64"]:
    """Return the structure of a label mask with one band per class."""
    return structure_tensor(*thumbnail.means())


class StructureAccumulator:
    """Compute the structures of a scene's image and labels, window by window while they are read.

    `label_bands` is the number of label bands: one per class, without the first if classes are mutually exclusive,
    because its edges are those of the others.
    """

    def __init__(self, bands: int, label_bands: int, height: int, width: int) -> None:
        self._image = Thumbnail(bands, height, width)
        self._labels = Thumbnail(label_bands, height, width)
        self._label_bands = label_bands

    def add(
        self,
        pixels: Shaped[ndarray, "b h w"],
        valid: Bool[ndarray, "h w"],
        labels: UInt8[ndarray, "h w"] | UInt8[ndarray, "o h w"],
        window: Window,
    ) -> None:
        """Add a window: pixels, 0 if not valid, and class indices or fractions in 250ths, 255 if not labelled."""
        self._image.add(pixels, valid, window)
        if labels.ndim == 2:
            here = (labels == index for index in range(1, self._label_bands + 1))
            self._labels.add(here, labels != IGNORE, window)
        else:
            fractions = np.nan_to_num(decode_fractions(labels[-self._label_bands :]))
            self._labels.add(fractions, (labels != IGNORE).any(axis=0), window)

    def structures(self) -> Int8[ndarray, "2 2 64 64"]:
        """Return the structures of the image and of the labels, stacked."""
        return np.stack([image_structure(self._image), label_structure(self._labels)])


def write_structures(path: Path, structures: Int8[ndarray, "n 2 2 64 64"]) -> None:
    """Write the structures of n scenes, atomically. 16 kB per scene.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as part, part.open("wb") as file:
        np.save(file, structures, allow_pickle=False)


def read_structures(path: Path, scenes: int) -> Int8[ndarray, "n 2 2 64 64"] | None:
    """Return the structures that `write_structures` wrote for that many scenes; None if the file does not exist.

    Raises:
        InputError: if the file is damaged or holds something else.
    """
    if not path.is_file():
        return None
    try:
        # Mapped first: a header may name a shape that memory does not hold.
        structures: ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}. Remove it, or prepare the tile set again.") from error
    if structures.dtype != np.int8 or structures.shape != (scenes, 2, 2, CELLS, CELLS):
        raise InputError(
            f"{path} is not a file of the structures of {scenes} scenes: {structures.dtype} {structures.shape}. "
            "Remove it, or prepare the tile set again."
        )
    return np.array(structures)


def structure_tensor(bands: Float64[ndarray, "b 64 64"], known: Bool[ndarray, "64 64"]) -> Int8[ndarray, "2 64 64"]:
    """Return the edges of each cell as cosine and sine of twice their angle, times a strength from 0 to 1.

    In steps of 1/127. Strength saturates, so a few strong edges do not dominate; it is 0 in unknown cells and next to
    them. The mean over the scene is subtracted: two towns are not the same because the streets of both run north.
    """
    along, across = np.gradient(bands, axis=(1, 2))
    tensor: Complex128[ndarray, "64 64"] = ((across + 1j * along) ** 2).sum(axis=0)
    inner = _inner(known)
    strength = np.abs(tensor)
    typical = strength[inner].mean() if inner.any() else 0.0
    soft = np.where(inner & (strength > 0), tensor / (strength + typical + 1e-300), 0)
    soft = np.where(inner, soft - soft[inner].mean() if inner.any() else 0, 0)
    # Subtracting the mean may move values beyond 1.
    parts = np.clip(np.stack([soft.real, soft.imag]), -1, 1)
    whole: Int8[ndarray, "2 64 64"] = np.rint(parts * INT8_SCALE).astype(np.int8)
    return whole


def _inner(known: Bool[ndarray, "64 64"]) -> Bool[ndarray, "64 64"]:
    """Return the cells whose four neighbours are known. Elsewhere gradients would show the edge of the mask."""
    wide = np.pad(known, 1)
    inner: Bool[ndarray, "64 64"] = known & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]
    return inner


def _pieces(edges: Shaped[ndarray, " _"], start: int, stop: int) -> tuple[list[int], list[int]]:
    """Return the offsets from `start` of the cells within [start, stop), and their indices."""
    found = [
        (max(low, start) - start, cell)
        for cell, (low, high) in enumerate(pairwise(edges.tolist()))
        if max(low, start) < min(high, stop)
    ]
    return [first for first, _ in found], [cell for _, cell in found]


MIN_OVERLAP = 0.5
"""Fraction of a scene that must overlap the other."""
MIN_SIMILARITY = 0.35
MIN_PEAK_RATIO = 1.5
"""Minimum ratio of the best to the second-best peak. Repeating patterns, such as orchards, match at many shifts."""
STANDARD_ERRORS = 10.0
MIN_COARSE_SIMILARITY = 0.25
"""Minimum correlation on 32 x 32 cells for a comparison on 64 x 64. Pairs that show the same area reach 0.6."""
BATCH_SIZE = 128
PEAK_RADIUS = 3
"""Shifts within this many cells of the best one belong to its peak."""


@dataclass(frozen=True)
class Match:
    """The correlation of two structures at their best shift."""

    left: int
    right: int
    similarity: float
    """Correlation over the overlapping cells, -1 to 1."""
    threshold: float
    """Minimum similarity of duplicates: 0.35, or 10 / sqrt(n) if that is higher.

    n is the effective number of overlapping cells with structure, (sum w)^2 / sum w^2 of their squared strengths w. An
    edge crosses about four cells, so unrelated structures correlate with a standard error of sqrt(4 / 2n). The
    threshold is seven standard errors, because straight roads correlate more than random structures do.
    """
    second_peak: float
    """Best correlation at a shift more than three cells from the best one."""
    shift: tuple[float, float]
    """Position of the right scene's upper left corner on the left scene, in fractions of its height and width."""

    @property
    def is_duplicate(self) -> bool:
        """Whether the two scenes show the same area."""
        return self.similarity >= max(self.threshold, MIN_PEAK_RATIO * self.second_peak)


def find_matches_within(structures: Int8[ndarray, "n 2 64 64"]) -> list[Match]:
    """Return the duplicates among n scenes, with left < right; see `find_matches`. 30 s for 1,000 scenes."""
    return [
        found
        for i, j in candidate_pairs(structures, structures, distinct=True)
        if (found := match_structures(structures[i], structures[j], (i, j))) is not None and found.is_duplicate
    ]


def find_matches(left: Int8[ndarray, "n 2 64 64"], right: Int8[ndarray, "m 2 64 64"]) -> list[Match]:
    """Return the pairs of a left and a right scene that show the same area; see `match_structures`.

    All pairs are compared on 32 x 32 cells first. 30 s for 500,000 pairs on one core; 16 kB per scene, plus 10 MB.
    """
    return [
        found
        for i, j in candidate_pairs(left, right)
        if (found := match_structures(left[i], right[j], (i, j))) is not None and found.is_duplicate
    ]


def candidate_pairs(
    left: Int8[ndarray, "n 2 64 64"], right: Int8[ndarray, "m 2 64 64"], distinct: bool = False
) -> Iterator[tuple[int, int]]:
    """Yield the pairs that are similar enough on 32 x 32 cells to be compared on 64 x 64.

    With `distinct`, only pairs with left < right.
    """
    mine, theirs = _coarse(left), _coarse(right)
    weights = 1 / np.where(_allowed(CELLS // 2), _overlap(CELLS // 2), np.inf)
    for first in range(0, len(theirs), BATCH_SIZE):
        for i, one in enumerate(mine):
            start = max(first, i + 1) if distinct else first
            product = (one * theirs[start : first + BATCH_SIZE].conj()).sum(axis=1)
            best = (scipy.fft.irfft2(product, s=(CELLS, CELLS)) * weights).max(axis=(1, 2), initial=0)
            for j in np.flatnonzero(best >= MIN_COARSE_SIMILARITY) if len(best) else ():
                yield i, start + int(j)


def match_structures(
    left: Int8[ndarray, "2 64 64"], right: Int8[ndarray, "2 64 64"], names: tuple[int, int] = (0, 0)
) -> Match | None:
    """Return the best match of two structures over all shifts; None if one of them has no edges."""
    mine, theirs = (part.astype(np.float32) / np.float32(INT8_SCALE) for part in (left, right))
    if not mine.any() or not theirs.any():
        return None
    energies = [_over_shifts(w, np.ones_like(w)) for w in (_power(mine), _power(theirs))]
    energies[1] = np.roll(energies[1][::-1, ::-1], 1, axis=(0, 1))
    product = sum((_over_shifts(a, b) for a, b in zip(mine, theirs, strict=True)), np.zeros_like(energies[0]))
    scale = np.sqrt(np.maximum(energies[0], 0) * np.maximum(energies[1], 0))
    # Rounding leaves a small energy at shifts without structure.
    usable = _allowed(CELLS) & (scale > 1e-3)
    similar = np.where(usable, product / np.where(usable, scale, 1), -1)
    place = np.unravel_index(int(similar.argmax()), similar.shape)
    row, col = (int((index + CELLS) % (2 * CELLS) - CELLS) for index in place)
    cells = min(
        _cells(one) * float(energy[place]) / float(_power(one).sum())
        for one, energy in zip((mine, theirs), energies, strict=True)
    )
    return Match(
        *names,
        similarity=float(similar[place]),
        threshold=max(MIN_SIMILARITY, STANDARD_ERRORS / float(np.sqrt(max(cells, 1e-9)))),
        second_peak=float(
            np.roll(similar, (PEAK_RADIUS - place[0], PEAK_RADIUS - place[1]), axis=(0, 1))[_off_peak()].max()
        ),
        shift=(row / CELLS, col / CELLS),
    )


def _power(parts: Float32[ndarray, "2 n n"]) -> Float32[ndarray, "n n"]:
    power: Float32[ndarray, "n n"] = (parts**2).sum(axis=0)
    return power


def _cells(parts: Float32[ndarray, "2 n n"]) -> float:
    """Return the effective number of cells with structure."""
    power = _power(parts).astype(float)
    return float(power.sum() ** 2 / (power**2).sum())


def _over_shifts(left: Float32[ndarray, "n n"], right: Float32[ndarray, "n n"]) -> Float32[ndarray, "k k"]:
    """Return the sum of left(x + shift) * right(x) for every shift; negative shifts wrap to the end."""
    shape = (2 * left.shape[0], 2 * left.shape[1])
    product = scipy.fft.rfft2(left, s=shape) * scipy.fft.rfft2(right, s=shape).conj()
    summed: Float32[ndarray, "k k"] = scipy.fft.irfft2(product, s=shape)
    return summed


def _coarse(parts: Int8[ndarray, "n 2 64 64"]) -> Complex64[ndarray, "n 2 64 33"]:
    """Return the spectra of the structures on 32 x 32 cells, normalised to unit energy and zero-padded."""
    half = CELLS // 2
    small = parts.reshape(len(parts), 2, half, 2, half, 2).mean(axis=(3, 5), dtype=np.float32)
    energy = np.sqrt((small**2).sum(axis=(1, 2, 3), keepdims=True))
    spectra: Complex64[ndarray, "n 2 64 33"] = scipy.fft.rfft2(small / np.maximum(energy, 1e-6), s=(CELLS, CELLS))
    return spectra


def _overlap(side: int) -> Float32[ndarray, "k k"]:
    """Return the fraction of `side` x `side` cells that overlap at every shift."""
    steps = np.abs((np.arange(2 * side) + side) % (2 * side) - side)
    line = ((side - steps) / side).astype(np.float32)
    fraction: Float32[ndarray, "k k"] = np.outer(line, line)
    return fraction


def _allowed(side: int) -> Bool[ndarray, "k k"]:
    allowed: Bool[ndarray, "k k"] = _overlap(side) >= MIN_OVERLAP
    return allowed


def _off_peak() -> Bool[ndarray, "128 128"]:
    """Return all shifts except those around the peak, which was rolled to (PEAK_RADIUS, PEAK_RADIUS)."""
    far = np.ones((2 * CELLS, 2 * CELLS), bool)
    far[: 2 * PEAK_RADIUS + 1, : 2 * PEAK_RADIUS + 1] = False
    return far


def find_duplicate_scenes(
    scenes: Sequence[LabelledScene], structures: Int8[ndarray, "n 2 2 64 64"] | None
) -> list[tuple[str, str]]:
    """Return the pairs of scenes of different groups that show the same area, at least 1 % of one of them.

    Pairs are found by location if all scenes have a CRS, otherwise by the structure of images or labels; none are found
    without `structures`. 1,000 scenes take 1 s with a CRS and 60 s without.
    """
    shapes, crs = tile_outlines(
        [(scene.name, scene.info.grid.window) for scene in scenes], {scene.name: scene.info.grid for scene in scenes}
    )
    if crs is not None:
        locations = Outlines(project_to_mercator(np.array(shapes, object), crs)[0], np.arange(len(scenes)))
        found = {(i, j) for i, j in shared_area(locations, locations)[1].tolist()}
    elif structures is not None:
        found = {(one.left, one.right) for part in (0, 1) for one in find_matches_within(structures[:, part])}
    else:
        found = set()
    pairs = {(min(pair), max(pair)) for pair in found}
    return [(scenes[i].name, scenes[j].name) for i, j in sorted(pairs) if scenes[i].group != scenes[j].group]
