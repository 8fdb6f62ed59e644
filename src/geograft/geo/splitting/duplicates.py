"""The same ground under two names: pairs of scenes whose structure agrees, at some shift.

Two structures are laid over each other at every shift at which half of the scene still overlaps, and correlated over
the cells that overlap (normalised cross-correlation by FFT, Padfield 2012, "Masked object registration in the Fourier
domain", IEEE Trans. Image Process. 21(5)). Scenes of the same ground at the same extent reach 0.6 to 1;
what is needed of a pair follows from how much structure the two have, see `Match.needed`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Bool, Complex64, Float32, Int8
from numpy import ndarray

from geograft.geo.tilesets.structure import FULL, SIDE

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
