"""How much a map of probabilities steps at the borders of tiles, to what it steps elsewhere.

A line lies between two neighbouring columns, or rows; the step at a line is the mean of |p - p of the neighbour| along
it. A line is a border where a tile begins or ends to count. Tiles repeat, so borders are the lines at certain places
("phases") of a period of `stride` pixels.

What the image does at a line (a crown's edge that happens to lie there) is far more than what a good blend does. So the
same ground is mapped several times, with the tiles shifted against it, and each line is compared with itself:

    seam = sum of steps at lines that are borders / sum of steps at the same lines in the maps where they are none

A map without any trace of tiles has 1. Shifts should be multiples of the network's own stride (quality.shifts_of). The
standard error is a jackknife over blocks of one period of lines, rows and columns together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class Tiling:
    """Where tiles begin and end to count, in both directions alike."""

    stride: int
    """Pixels from one tile to the next."""
    phases: frozenset[int]
    """Lines, modulo the stride, at which a tile begins or ends to count."""

    @classmethod
    def of(cls, begin: int, stop: int, stride: int) -> "Tiling":
        """Return the tiling whose first tile counts in the pixels from `begin` to before `stop`."""
        return cls(stride, frozenset((begin % stride, stop % stride)))


@dataclass(frozen=True)
class Seam:
    """How much a map steps at borders to elsewhere; 1 is none the more."""

    ratio: float
    """At borders, to the same lines of the ground where they are none."""
    error: float
    """Standard error of `ratio`."""
    plain: float
    """At borders, to all other lines: what the image does at the lines is in it."""
    worst: float
    """The largest ratio over all phases, borders or not: 1 and noise where no place between borders stands out."""


def seam(maps: Sequence[ndarray], shifts: Sequence[int], tiling: Tiling, margin: int) -> Seam:
    """Return the seam of `maps`, (h, w) each, of which pixel (0, 0) lies at (shift, shift) of the ground.

    Only ground counts that lies at least `margin` pixels inside every map.
    """
    steps, phases = _lines(maps, shifts, tiling.stride, margin)
    border = np.isin(phases, sorted(tiling.phases))
    pairs = _blocks(*_pairs(steps, border), tiling.stride)
    if np.count_nonzero(pairs[:, 1]) < 3:
        raise ValueError(f"Too few lines, in {len(pairs)} periods of {tiling.stride}: give larger or more maps.")
    return Seam(
        _ratio(pairs),
        _jackknife(pairs),
        float(steps[border].mean() / steps[~border].mean()),
        max(_ratio(np.stack(_pairs(steps, phases == phase), axis=-1)) for phase in range(tiling.stride)),
    )


def mean_steps(probabilities: ndarray, axis: int) -> ndarray:
    """Return the mean absolute step at every line across `axis` of a map; the step at index i is before pixel i + 1."""
    differences = np.abs(np.diff(probabilities.astype(np.float64), axis=axis))
    mean: ndarray = differences.mean(axis=1 - axis)
    return mean


def _lines(maps: Sequence[ndarray], shifts: Sequence[int], stride: int, margin: int) -> tuple[ndarray, ndarray]:
    """Return the steps of the ground's lines in every map, and the phase that each has there, (maps, lines) both.

    Lines across columns come first, then those across rows.
    """
    begin = max(shifts) + margin
    stop = min(shift + min(each.shape) for each, shift in zip(maps, shifts, strict=True)) - margin
    parts = [
        each[begin - shift : stop - shift, begin - shift : stop - shift]
        for each, shift in zip(maps, shifts, strict=True)
    ]
    steps = np.stack([np.concatenate([mean_steps(part, axis) for axis in (1, 0)]) for part in parts])
    places = np.tile(np.arange(begin + 1, stop), 2)
    return steps, np.stack([(places - shift) % stride for shift in shifts])


def _pairs(steps: ndarray, chosen: ndarray) -> tuple[ndarray, ndarray]:
    """Return for every line the steps where it is `chosen`, added up, and as many times its mean step where it is not.

    Both are 0 for a line that is chosen nowhere, or everywhere.
    """
    times, others = chosen.sum(axis=0), (~chosen).sum(axis=0)
    counts = (times > 0) & (others > 0)
    here = np.where(chosen, steps, 0).sum(axis=0)
    elsewhere = np.where(chosen, 0, steps).sum(axis=0) / np.maximum(others, 1) * times
    return here * counts, elsewhere * counts


def _blocks(here: ndarray, elsewhere: ndarray, stride: int) -> ndarray:
    """Return the sums of both over whole periods of lines, (blocks, 2); what is left over is dropped."""
    half = len(here) // 2
    found = [
        np.array([both[first : first + stride].sum() for both in (here, elsewhere)])
        for start in (0, half)
        for first in range(start, start + half - stride + 1, stride)
    ]
    return np.array(found).reshape(-1, 2)


def _ratio(pairs: ndarray) -> float:
    here, elsewhere = pairs.sum(axis=0)
    return float(here / elsewhere)


def _jackknife(pairs: ndarray) -> float:
    """Return the standard error of the ratio from leaving out one block at a time."""
    total, n = pairs.sum(axis=0), len(pairs)
    here, elsewhere = (total - pairs).T
    without = here / elsewhere
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
