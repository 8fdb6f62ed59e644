"""From candidates to suggestions: which to label, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geograft.geo.grid import Window
from geograft.selection import batch
from geograft.verbs.suggest.looking import Candidate


@dataclass(frozen=True)
class Suggestion:
    """One tile to label."""

    rank: int
    """From 1 on: the order in which to label."""
    raster: int
    """Which of the rasters."""
    window: Window
    score: float
    """Share of all the doubt that it covers beyond the tiles before it."""
    doubt: float
    """Mean over its pixels, 0 to 1."""
    novelty: float | None
    """Distance to what the run was trained on, over the threshold of its area of applicability: outside above 1."""


def ranked(candidates: Sequence[Candidate], count: int) -> tuple[Suggestion, ...]:
    """Return the `count` candidates that are best labelled together, the first so many of which are the best so many.

    See `geograft.selection`: the pieces are the quarters of the tiles. The order of the candidates has no say.
    """
    owners = np.repeat(np.arange(len(candidates)), [len(one.unsure) for one in candidates])
    features = np.concatenate([one.looks for one in candidates])
    weights = np.concatenate([one.unsure for one in candidates])
    found = batch(features, weights, owners, count)
    chosen = [candidates[position] for position in found.positions]
    return tuple(
        Suggestion(rank, one.raster, one.window, float(gain), one.doubt, one.novelty)
        for rank, (one, gain) in enumerate(zip(chosen, found.gains, strict=True), start=1)
    )
