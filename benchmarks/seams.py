"""The seam of a probability map: its steps at the borders of tiles relative to its steps elsewhere.

A line lies between two neighbouring columns or rows. The step at a line is the mean absolute difference of the
probabilities at its two sides. A line is a border if the pixels kept of a tile begin or end there. Tiles repeat, so the
borders are the lines at certain phases of a period of `stride` pixels.

The image's own edges, of a crown say, make far larger steps than a good blend does. So the same area is mapped several
times with the tiles shifted, and each line is compared with itself:

    seam = sum of steps at lines that are borders / sum of steps at the same lines in the maps where they are not

A map without a trace of tiles has 1. Shifts should be multiples of the network's own stride (quality.tile_shifts). The
standard error is a jackknife over blocks of one period of lines, rows and columns together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class Tiling:
    """Where the pixels kept of each tile begin and end, the same in both directions."""

    stride: int
    """Pixels from one tile to the next."""
    phases: frozenset[int]
    """Borders, modulo the stride."""

    @classmethod
    def of(cls, begin: int, stop: int, stride: int) -> "Tiling":
        """Return the tiling in which the first tile keeps the pixels from `begin` up to `stop`, exclusive."""
        return cls(stride, frozenset((begin % stride, stop % stride)))


@dataclass(frozen=True)
class Seam:
    """Steps of a map at borders relative to elsewhere. 1 means no seam."""

    ratio: float
    """Steps at borders relative to the same lines of the area where they are not borders."""
    standard_error: float
    """Standard error of `ratio`."""
    uncorrected: float
    """Steps at borders relative to all other lines, so it includes the image's own edges."""
    max_ratio: float
    """The largest ratio over all phases, borders or not. Without artefacts between borders it is 1 plus noise."""


def seam(maps: Sequence[ndarray], shifts: Sequence[int], tiling: Tiling, margin: int) -> Seam:
    """Return the seam of `maps`, (h, w) each, whose pixel (0, 0) lies at (shift, shift) of the area.

    Only pixels at least `margin` pixels inside every map count.

    Raises:
        ValueError: if fewer than three periods of lines remain.
    """
    steps, phases = _lines(maps, shifts, tiling.stride, margin)
    border = np.isin(phases, sorted(tiling.phases))
    pairs = _blocks(*_pairs(steps, border), tiling.stride)
    if np.count_nonzero(pairs[:, 1]) < 3:
        raise ValueError(
            f"{np.count_nonzero(pairs[:, 1])} periods of {tiling.stride} lines; 3 are needed: use larger or more maps"
        )
    return Seam(
        _ratio(pairs),
        _jackknife(pairs),
        float(steps[border].mean() / steps[~border].mean()),
        max(_ratio(np.stack(_pairs(steps, phases == phase), axis=-1)) for phase in range(tiling.stride)),
    )


def mean_steps(probabilities: ndarray, axis: int) -> ndarray:
    """Return the mean absolute step at each line across `axis` of a map; step i lies between pixels i and i + 1."""
    differences = np.abs(np.diff(probabilities.astype(np.float64), axis=axis))
    mean: ndarray = differences.mean(axis=1 - axis)
    return mean


def _lines(maps: Sequence[ndarray], shifts: Sequence[int], stride: int, margin: int) -> tuple[ndarray, ndarray]:
    """Return the steps at the area's lines in each map, and the phase of each line there, (maps, lines) both.

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
    """Return for each line the sum of its steps where `chosen`, and its mean step where not, times as many maps.

    Both are 0 for a line that is chosen in no map or in all.
    """
    times, others = chosen.sum(axis=0), (~chosen).sum(axis=0)
    counts = (times > 0) & (others > 0)
    here = np.where(chosen, steps, 0).sum(axis=0)
    elsewhere = np.where(chosen, 0, steps).sum(axis=0) / np.maximum(others, 1) * times
    return here * counts, elsewhere * counts


def _blocks(here: ndarray, elsewhere: ndarray, stride: int) -> ndarray:
    """Return the sums of both over complete periods of lines, (blocks, 2). The remaining lines are dropped."""
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
    """Return the standard error of the ratio by a leave-one-block-out jackknife."""
    total, n = pairs.sum(axis=0), len(pairs)
    here, elsewhere = (total - pairs).T
    without = here / elsewhere
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
